"""What callbacks keep of every round in a run that begins with a prefix: as from its start, or its own rule's alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import fit, tiny_federation

from fl_lightning import (
    BackdoorMetrics,
    ClientRecord,
    CohortSampler,
    ConfigurationError,
    DetectionMetrics,
    LastCheckpoint,
    RunRecord,
    experiments,
)
from fl_lightning.aggregators import Aggregator, Krum, MultiKrum
from fl_lightning.attacks import ValueTrigger
from fl_lightning.experiments import forks
from fl_lightning.experiments.prefix import Prefix, same_rounds
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.files.run_files import read_lines, write_whole
from fl_lightning.files.sealed import sealed

T, ROUNDS = 3, 5
LATE = CohortSampler(clients_per_round=7, malicious_fraction=0.3, start_round=T)


def run(folder: Path, rule: Aggregator, rounds: int = ROUNDS, ckpt_path: str | None = None) -> dict[str, Any]:
    """The record of a run; one that is forked goes on by `ckpt_path="last"`."""
    trigger = ValueTrigger(column=5, value=4.0, source_label=1, target_label=0, poison_fraction=0.5)
    callbacks = [BackdoorMetrics(), LastCheckpoint(), RunRecord({"seed_everything": 0}), DetectionMetrics()]
    fit(
        tiny_federation(cohort=LATE, attacks=[trigger], aggregator=rule), rounds=rounds, ckpt_path=ckpt_path,
        callbacks=[*callbacks, ClientRecord(every_n_rounds=2)], default_root_dir=folder, enable_checkpointing=True,
    )  # fmt: skip
    return json.loads((folder / "run.json").read_text())


def forked(folder: Path, rule: str | None, rounds: int = T) -> RunFolder:
    """A run's folder as a sweep's job leaves it when the run is to begin, with `prefix` beside it."""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    entry = {"folder": "../prefix", "id": "prefix", "round": rounds, "exact": rule is None, "rule": rule}
    write_whole(folder / forks.NOTE, json.dumps(sealed(entry)))
    assert forks.begin(RunFolder(folder)).startswith("forked from")
    return RunFolder(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its start, and the first rounds of it: clients of two are in a file by the last checkpoint."""
    base = tmp_path_factory.mktemp("base")
    run(base / "whole", Krum(num_malicious=2))
    run(base / "prefix", Krum(num_malicious=2), T)
    return base


def test_rows_of_the_first_rounds_are_there_after_a_fork(base):
    folder = forked(base / "same", None).path
    record = run(folder, Krum(num_malicious=2), ckpt_path="last")
    assert experiments.clients(folder).equals(experiments.clients(base / "whole"))
    assert sorted(set(experiments.clients(folder)["round"])) == list(range(ROUNDS))
    assert (folder / "detection.jsonl").read_bytes() == (base / "whole" / "detection.jsonl").read_bytes()
    assert record["detection"] == json.loads((base / "whole" / "run.json").read_text())["detection"]
    assert [path.name for path in (base / "prefix" / "clients").iterdir()] == ["from-round-0000000.parquet"]  # untouched


def test_what_another_rule_judged_does_not_count(base):
    folder = forked(base / "other", "Krum").path
    record = run(folder, MultiKrum(num_malicious=2), ckpt_path="last")
    assert [line["round"] for line in read_lines(folder / "detection.jsonl")] == [3, 4]
    assert (record["detection"]["attacked_rounds"], record["detection"]["clean_rounds"]) == (ROUNDS - T, 0)
    assert record["detection"]["clean_fpr"] is None
    assert sorted(set(experiments.clients(folder)["round"])) == list(range(ROUNDS))  # and who took part is known all the same


def test_a_prefix_that_was_stopped_early_says_so(base):
    """To run it anew would end the same."""
    with pytest.raises(
        ConfigurationError, match=rf"has ended after {T} of {T + 1} rounds .*; give fewer prefix\.rounds than {T}"
    ):
        forked(base / "early", None, T + 1)
    assert not (base / "early" / "last.ckpt").exists()


@pytest.mark.parametrize("attacks", [[], [{"class_path": "SignFlip"}]])
def test_a_prefix_has_neither_a_recipe_nor_a_lifespan(attacks):
    """Which need an attack, and one that ends; in a prefix there is none."""
    lifespan, clients = (
        {"class_path": f"fl_lightning.{name}", "init_args": {}} for name in ("BackdoorLifespan", "ClientRecord")
    )
    recipe = {"attackers": {"epochs": 6}, "attackers_optimizer": {"class_path": "torch.optim.SGD"}, "attackers_scheduler": None}
    cohort = {"participation": "fixed_share", "start_round": 2, "end_round": 4}
    model = {"aggregator": {"class_path": "FedAvg"}, "attacks": [{"class_path": "SignFlip"}], "cohort": cohort, **recipe}
    config = {"trainer": {"max_epochs": 9, "callbacks": [lifespan, clients]}, "model": model}
    clean = Prefix(2, []).clean(config, {**config, "model": {**model, "attacks": attacks}})
    assert clean["trainer"]["callbacks"] == [clients]
    assert [clean["model"][name] for name in recipe] == [None] * 3
    assert same_rounds(config, clean) == bool(attacks)
    for given, kept in ((lifespan, []), (clients, [clients]), (None, None)):
        alone = {**config, "trainer": {"max_epochs": 9, "callbacks": given}}
        assert Prefix(2, []).clean(alone, alone)["trainer"]["callbacks"] == kept
