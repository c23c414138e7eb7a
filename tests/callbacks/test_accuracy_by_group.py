"""Accuracy class by class and client by client, against counting by hand, over ranks and over an interruption."""

import json
from typing import Any

import pytest
import torch
from ranks import on_ranks
from tiny import TinyClient, fit, tiny_federation, tiny_tensors, tiny_trainer

from fl_lightning import (
    AccuracyByGroup,
    BackdoorMetrics,
    CohortSampler,
    ConfigurationError,
    FederatedDataModule,
    LastCheckpoint,
    RunRecord,
)
from fl_lightning.callbacks.accuracy_by_group import owners
from fl_lightning.data import IID, ByKey, MultiLabel, PackedKeys, Regression, TensorSamples

COHORT = CohortSampler(clients_per_round=4, malicious_fraction=0.25)
GROUPS, TEST_GROUPS = ["a", "b", "c", "d", "e", "f", "g", "h"], ["h", "b", "strange", "a", "a"]


def grouped(partition: Any = None, **settings: Any) -> FederatedDataModule:
    usual: dict[str, Any] = {"keys": GROUPS * 25, "test_keys": TEST_GROUPS * 10}
    return FederatedDataModule.from_datasets(
        tiny_tensors(200),
        tiny_tensors(50, seed=1),
        partition=partition or ByKey(),
        num_classes=3,
        class_names=["x", "y", "z"],
        eval_batch_size=8,
        **{**usual, **settings},
    )


def run(devices: int, folder: str, rounds: int = 2, ckpt_path: Any = None) -> tuple[dict[str, float], dict[str, Any]]:
    groups = AccuracyByGroup(clients=True)
    callbacks = [BackdoorMetrics(), groups, RunRecord(), LastCheckpoint()]
    settings: dict[str, Any] = {"default_root_dir": folder, "enable_checkpointing": True}
    trainer = tiny_trainer(rounds, devices=devices, callbacks=callbacks, **settings)
    trainer.fit(tiny_federation(cohort=COHORT), grouped(), ckpt_path=ckpt_path)
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return found, groups.last


def test_groups_are_counted_exactly_on_any_number_of_ranks(tmp_path):
    found, last = run(1, "one")
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert (record["acc_by_class"], record["acc_by_client"]) == (last["class"], last["client"])
    lines = [json.loads(line) for line in (tmp_path / "one" / "accuracy_by_group.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    counts = lines[-1]
    right, every = sum(counts["class_right"]), sum(counts["class_all"])
    assert (every, right / every) == (50, found["val/acc"])
    assert counts["class"] == [0, 1, 2]
    assert (counts["client"], counts["client_all"]) == ([0, 1, 7], [20, 10, 10])
    of_classes = [a / b for a, b in zip(counts["class_right"], counts["class_all"], strict=True)]
    shares = {str(c): a / b for c, a, b in zip((0, 1, 7), counts["client_right"], (20, 10, 10), strict=True)}
    assert last == {"class": dict(zip("xyz", of_classes, strict=True)), "client": shares}
    assert found["val/acc_client_min"] == min(shares.values())
    assert found["val/acc_client_mean"] == pytest.approx(sum(shares.values()) / 3)
    assert found["val/acc_class_min"] == min(last["class"].values())
    spread = torch.tensor(list(shares.values()), dtype=torch.float64).std(unbiased=False).item()
    assert found["val/acc_client_std"] == pytest.approx(spread)
    ranks = on_ranks(3, run, 3, str(tmp_path / "three"))
    assert ranks == [(found, last)] * 3
    files = [(tmp_path / folder / "accuracy_by_group.jsonl").read_text() for folder in ("one", "three")]
    assert files[0] == files[1]


def test_an_interrupted_run_has_every_line_once(tmp_path):
    whole, _ = run(1, "whole", rounds=3)
    run(1, "broken", rounds=1)
    resumed, _ = run(1, "broken", rounds=3, ckpt_path="last")
    assert resumed == whole
    files = [(tmp_path / folder / "accuracy_by_group.jsonl").read_text() for folder in ("whole", "broken")]
    assert files[0] == files[1]


def test_several_labels_are_counted_each(tmp_path):
    class Fixed(TinyClient):
        def forward(self, inputs):
            return torch.where(torch.arange(3) == 1, -1.0, inputs[:, :3]) + 0 * self.net(inputs)

        def training_step(self, batch, batch_idx):
            return 0 * self.net(batch[0]).sum()

    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    samples = TensorSamples(x, (x[:, :3] > 0).long(), outcome=MultiLabel())
    data = FederatedDataModule.from_datasets(samples, samples, partition=IID(num_clients=8))
    metrics = AccuracyByGroup()
    fit(tiny_federation(client=Fixed(), attacks=[], cohort=COHORT), data, rounds=1, callbacks=[metrics])
    assert metrics.last == {"class": {"0": 1.0, "1": float((x[:, 1] <= 0).double().mean()), "2": 1.0}}


def test_a_client_of_several_groups_has_all_their_test_samples():
    data = grouped(PackedKeys(num_clients=3))
    data.setup("fit")
    found, names = owners(data), sorted(GROUPS)
    for i, name in enumerate(TEST_GROUPS * 10):
        holders = [c for c, rows in enumerate(data.clients) if name in {GROUPS[row % 8] for row in rows.tolist()}]
        assert [int(found[i])] == (holders if name in names else [-1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: grouped(test_keys=None), "needs test samples that belong to clients, but these data have none"),
        (lambda: grouped(IID(num_clients=8)), r"client 1 and 0 share a group"),
        (
            lambda: FederatedDataModule.from_datasets(
                *[TensorSamples(torch.rand(40, 6), torch.rand(40), outcome=Regression())] * 2, partition=IID(num_clients=8)
            ),
            "AccuracyByGroup needs classes, but the task asks for numbers; leave it out",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_before_training(data, message):
    made = data()
    made.setup("fit")
    callback = AccuracyByGroup(clients=True)
    with pytest.raises(ConfigurationError, match=message):
        callback._check(made)


def test_the_refusal_comes_before_the_first_round():
    federation = tiny_federation(cohort=COHORT)
    with pytest.raises(ConfigurationError, match="needs test samples"):
        fit(federation, grouped(test_keys=None), callbacks=[AccuracyByGroup(clients=True)])
    assert federation.client_updates == 0
    with pytest.raises(ConfigurationError, match="AccuracyByGroup measures nothing"):
        AccuracyByGroup(classes=False)
