import hashlib
from typing import Any

import pytest
import torch
from small_config import CONFIG, changed
from torch import nn

from fl_lightning import cohort
from fl_lightning.callbacks import digests
from fl_lightning.callbacks.digests import compare, config_sha256, experiment, weights_sha256


def test_hash_depends_on_the_experiment_alone():
    def digest(config):
        return config_sha256(config)

    assert digest(CONFIG) == digest(changed(trainer={"max_epochs": 4, "logger": True}, ckpt_path="x"))
    assert digest(CONFIG) == digest(changed(data={"path": "/elsewhere", "num": 1}))
    assert digest(CONFIG) != digest(changed(data={"path": "/here", "num": 2}))
    assert digest(CONFIG) != digest(changed(seed_everything=1))
    assert digest(CONFIG) != digest(changed(trainer={"max_epochs": 5}))
    assert "trainer" not in experiment(CONFIG)


def test_hash_does_not_depend_on_what_changes_no_bit():
    def digest(**local):
        return config_sha256(changed(model={"local": {"batch_size": 64, **local}, "compile_rules": "auto"}))

    assert digest() == digest(executor="graph", branches=1) == digest(executor="auto", branches=8)
    assert digest() != digest(executor="stacked")
    assert digest(executor="stacked") == digest(executor="stacked", branches=1)
    assert digest() != digest(batch_size=32)


def test_compare_names_every_difference():
    assert list(compare({"a": 1, "b": [1, {"c": 2}]}, {"a": 1, "b": [1, {"c": 3}], "d": 4})) == [
        "b[1].c is 2 there and 3 here",
        "d is None there and 4 here",
    ]


def test_digest_is_of_names_types_shapes_and_bytes():
    module = nn.Linear(2, 2)
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert weights_sha256(module) == digest.hexdigest()
    with torch.no_grad():
        module.bias[0] = torch.nextafter(module.bias[0], torch.tensor(9.0))
    assert weights_sha256(module) != digest.hexdigest()


def test_noise_has_the_digest_of_before_other_inputs_could_be_named():
    def digest(ood: Any) -> str:
        rule = {"class_path": "fl_lightning.aggregators.BackdoorIndicator", "init_args": {"ood": ood, "epochs": 3}}
        return config_sha256({"model": {"aggregator": {"class_path": "Bucketing", "init_args": {"rule": rule}}}})

    noise = {"samples": 8, "low": 0.0, "high": 1.0}
    assert digest(noise) == digest({"class_path": "fl_lightning.data.Noise", "init_args": noise})
    assert digest(noise) != digest({"class_path": "mine.Noise", "init_args": noise})
    assert digest(noise) != digest({"class_path": "fl_lightning.data.Noise", "init_args": {**noise, "samples": 9}})


def test_kernels_of_earlier_versions_leave_the_digest_as_it_was():
    def digest(name: str, **settings: Any) -> str:
        return config_sha256({"model": {"client": {"class_path": name, "init_args": {"hidden": 8, **settings}}}})

    for name in ("CNN", "fl_lightning.models.CNN", "fl_lightning.models.cnn.CNN"):
        assert digest(name) == digest(name, kernel_size=3) != digest(name, kernel_size=5)
    assert digest("mine.CNN") != digest("mine.CNN", kernel_size=3)


def test_tweets_by_user_have_the_digest_of_before_there_were_others():
    def digest(**settings: Any) -> str:
        return config_sha256({"data": {"class_path": "Twitter", "init_args": {"num_test": 8, **settings}}})

    before = {"by_user": True, "train_split": "train", "test": "held_out"}
    assert digest() == digest(**before)
    for name, other in (("by_user", False), ("train_split", "full_text"), ("test", "given")):
        assert digest(**{**before, name: other}) != digest()


@pytest.mark.parametrize(
    "inside", [lambda rule: rule, lambda rule: {"class_path": "Bucketing", "init_args": {"rule": rule, "s": 2}}]
)
def test_verdicts_leave_the_digest_as_it_was_before_there_were_any(inside):
    def digest(**rule: Any) -> str:
        return config_sha256({"model": {"aggregator": inside({"class_path": "Median", **rule})}})

    for verdicts in (False, True):
        assert digest(init_args={"verdicts": verdicts}) == digest()
        assert digest(init_args={"b": 1, "verdicts": verdicts}) == digest(init_args={"b": 1}) != digest()
    assert digest(init_args={}) != digest()  # as written before


def test_digests_go_by_the_cohorts_own_default():
    assert digests.SELDOM == cohort.SELDOM


@pytest.mark.parametrize(
    ("attack", "later"),
    [
        ("PixelTrigger", {"target_mode": "all_to_one", "source_label": None, "per_batch": False}),
        ("fl_lightning.attacks.DBA", {"target_mode": "all_to_one", "source_label": None}),
        ("Neurotoxin", {"by": "last_step", "per_layer": False}),
        ("PGD", {"epochs": None}),
        ("ALIE", {"biased": False}),
    ],
)
def test_later_settings_of_attacks_leave_the_digest_as_it_was(attack, later):
    def digest(**settings: Any) -> str:
        return config_sha256({"model": {"attacks": [{"class_path": attack, "init_args": {"own": 1, **settings}}]}})

    assert digest(**later) == digest()
    assert len({digest(**{name: "other"}) for name in later} | {digest()}) == len(later) + 1


def test_what_one_attack_has_had_for_long_stays_in_the_digest():
    digest = [
        config_sha256({"model": {"attacks": [{"class_path": "LabelFlip", "init_args": of}]}})
        for of in ({"source_label": None}, {})
    ]
    assert digest[0] != digest[1]
