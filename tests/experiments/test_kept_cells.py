"""Cells of a sweep that were read before: what is found again, and what is read anew."""

import os
import sys
from pathlib import Path

import pytest
import torch

from fl_lightning import ConfigurationError
from fl_lightning.configuration import build, resolve
from fl_lightning.experiments.planned import Run, placed
from fl_lightning.experiments.reading import CellReader
from fl_lightning.experiments.settings import arguments, run_id, with_seed
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.files import cache
from fl_lightning.files.yaml_files import write_yaml
from fl_lightning.models import MLP

ROOT = Path(__file__).parents[2]
SWEEP = f"""
base: [{ROOT}/configs/quickstart.yaml, mine.yaml]
axes:
  rule: {{FedAvg: {{model: {{aggregator: FedAvg}}}}, Median: {{model: {{aggregator: Median}}}}}}
  seed: [3, 4]
"""
OWN = """
from fl_lightning.aggregators import Median

class Mine(Median):
    def __init__(self, a: int = 1) -> None:
        super().__init__()
"""
TRUSTING = "{model: {aggregator: {class_path: FLTrust}}, data: {init_args: {root: {samples: 10}}}}"
"""A class without settings, in the place of one that has some."""

MINE = "{model: {local: {epochs: 2}}}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("some.yaml").write_text(SWEEP)
    Path("mine.yaml").write_text(MINE)


@pytest.fixture
def read(monkeypatch):
    """Names a cell's layers whenever it is read anew."""
    found, settle = [], CellReader.settle

    def counted(self, layers, prefix):
        found.append(layers)
        return settle(self, layers, prefix)

    monkeypatch.setattr(CellReader, "settle", counted)
    return found


def planned(given=None, overrides=()) -> list[Run]:
    return read_sweep(Path("some.yaml")).runs(Path("runs") / "pool", given, overrides)


def written(runs: list[Run]) -> list[tuple[str, str]]:
    """Ids and the bytes of every `config.yaml`."""
    return [(run.id, write_yaml(run.config)) for run in runs]


def epochs(runs: list[Run]) -> set[int]:
    return {run.config["model"]["local"]["epochs"] for run in runs}


def test_known_cells_are_those_that_a_direct_reading_gives(read):
    overrides = ["--trainer.max_epochs", "5"]
    Path("some.yaml").write_text(SWEEP.replace("rule: {", f"rule: {{FLTrust: {TRUSTING}, "))
    first, second = planned(overrides=overrides), planned(overrides=overrides)
    assert len(read) == 3
    expected = []
    for run in first:
        command = build(["fit", *arguments(run.cell.layers), *overrides])  # with a parser of its own
        config = with_seed(command.resolved_config(), run.seed)
        expected.append((run_id(config), write_yaml(placed(config, run.folder.path))))
    assert written(first) == written(second) == expected


def test_a_changed_file_is_read_anew(read):
    assert epochs(planned()) == {2}
    Path("mine.yaml").write_text(MINE.replace("2", "3"))  # of the same length
    assert epochs(planned()) == {3}
    Path("mine.yaml").write_text(MINE)
    assert epochs(planned()) == {2}
    assert len(read) == 4


def test_a_file_that_a_file_names_is_read_anew(read):
    Path("mine.yaml").write_text("{model: {local: local.yaml}}")
    for number in (2, 3):
        Path("local.yaml").write_text(f"epochs: {number}")
        assert epochs(planned()) == {number}
    assert len(read) == 4


def test_another_command_is_read_anew(read, monkeypatch):
    asked = [
        planned(),
        planned(overrides=["--model.local.epochs", "4"]),
        planned({"Phishing.separation": 3}),
        planned(overrides=["--with", "Phishing.separation=4"]),
    ]
    assert len(read) == 8
    assert len({run.id for runs in asked for run in runs}) == 16
    rules = [[run.config["model"]["aggregator"]["class_path"].rpartition(".")[2] for run in runs] for runs in asked]
    assert rules == [["FedAvg", "FedAvg", "Median", "Median"]] * 4
    assert {run.config["data"]["init_args"]["separation"] for run in asked[-1]} == {4}
    with pytest.raises(ConfigurationError, match="there is no CIFAR10 in the configuration"):
        planned({"CIFAR10.path": "x"})
    with pytest.raises(ConfigurationError, match="there is no CIFAR10 in the configuration"):
        planned({"CIFAR10.path": "x"})  # as when it was read


def test_another_package_reads_anew(read, monkeypatch):
    planned()
    monkeypatch.setattr(cache, "_fingerprint", lambda: "0" * 64)
    planned()
    assert len(read) == 4


def test_one_label_more_is_the_only_one_that_is_read(read):
    planned()
    Path("some.yaml").write_text(SWEEP.replace("rule: {", "rule: {Krum: {model: {aggregator: Krum}}, "))
    assert len(planned()) == 6
    assert len(read) == 3


def test_damage_is_noticed_and_read_anew(read):
    first = written(planned())
    for file in cache.root().rglob("cell-*.json"):
        file.write_text(file.read_text().replace('"epochs": 2', '"epochs": 3'))
    assert written(planned()) == first
    assert len(read) == 4


def test_without_a_cache_all_is_the_same(tmp_path, read):
    (tmp_path / "cache").write_text("a file in its place")
    assert written(planned()) == written(planned())
    assert len(read) == 4


def test_prefixes_are_known_too(read):
    late = f"prefix: {{rounds: 2, settings: [{ROOT}/configs/quickstart.yaml, rule.yaml]}}\n"
    Path("mine.yaml").write_text("{model: {cohort: {start_round: 2}}, trainer: {max_epochs: 4}}")
    Path("rule.yaml").write_text("{model: {aggregator: FedAvg, cohort: {start_round: 2}}, trainer: {max_epochs: 4}}")
    Path("some.yaml").write_text(SWEEP + late)

    def prefixes() -> list[tuple[str, str]]:
        return written([run.fork.run for run in planned() if run.fork is not None])

    first = prefixes()
    assert len(first) == 4
    assert prefixes() == first
    assert len(read) == 2
    Path("rule.yaml").write_text("{model: {aggregator: Median, cohort: {start_round: 2}}, trainer: {max_epochs: 4}}")
    assert not set(prefixes()) & set(first)
    assert len(read) == 4


def test_mistakes_are_found_each_time(read):
    Path("some.yaml").write_text(
        SWEEP.replace("aggregator: Median", "aggregator: {class_path: Invariant, init_args: {tau: 2}}")
    )
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"Median: .*tau must lie in \[0, 1\], got 2"):
            planned()
    assert not list(cache.root().rglob("cell-*"))


def test_a_sweep_with_somebodys_own_class_is_read_each_time(read):
    Path("own_rule_of_mine.py").write_text(OWN)
    sys.path.insert(0, os.getcwd())
    Path("some.yaml").write_text(SWEEP.replace("aggregator: Median", "aggregator: own_rule_of_mine.Mine"))
    assert written(planned()) == written(planned())
    assert len(read) == 4


def test_a_file_whose_digest_is_to_be_looked_at_is_read_each_time(read, caplog):
    Path("mine.yaml").write_text(f"{MINE}\n# sha256 of the lines above: {'0' * 64}\n")
    for _ in range(2):
        caplog.clear()
        planned()
        assert "mine.yaml is not as a run wrote it" in caplog.text
    assert len(read) == 4


def test_other_weights_to_start_from_are_another_run(read):
    config = resolve(["fit", "--config", str(ROOT / "configs" / "quickstart.yaml")])
    client = MLP(sizes=config["model"]["client"]["init_args"]["sizes"])
    Path("mine.yaml").write_text("{model: {start_from: weights.pt}}")
    torch.save(client.state_dict(), "weights.pt")
    first = [run.id for run in planned()]
    assert [run.id for run in planned()] == first
    assert len(read) == 2
    about = Path("weights.pt").stat()
    with torch.no_grad():
        next(client.parameters()).add_(1)
    torch.save(client.state_dict(), "weights.pt")
    assert Path("weights.pt").stat().st_size == about.st_size
    assert not {run.id for run in planned()} & set(first)
    assert len(read) == 4
    Path("weights.pt").unlink()
    with pytest.raises(ConfigurationError, match=r"there is no file weights\.pt"):
        planned()
