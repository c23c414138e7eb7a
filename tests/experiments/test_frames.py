"""Runs as data frames."""

import math
from pathlib import Path

import pytest
import torch
from test_results import finish

from fl_lightning import CohortSampler, ConfigurationError, Simulation, experiments
from fl_lightning.aggregators import Median
from fl_lightning.data import IID, Phishing
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.models import MLP


def test_a_row_per_run_and_one_per_evaluation(tmp_path: Path) -> None:
    for name, acc in (("b/second", 0.5), ("a", 0.25), ("a/earlier/1", 0.75)):
        finish(RunFolder(tmp_path / name), acc, asr=0.125)
    (tmp_path / "a" / "config.yaml").write_text(
        "model: {aggregator: {class_path: fl_lightning.aggregators.Krum}, attacks: [{class_path: DBA}, {class_path: PGD}],"
        " client: CNN}\n"
    )
    frame = experiments.runs(tmp_path)
    assert frame["run"].tolist() == ["a", "b/second"]
    assert frame["acc"].tolist() == [0.25, 0.5]
    assert frame[["rule", "attacks", "model", "data"]].to_numpy().tolist() == [["Krum", "DBA + PGD", "CNN", ""], [""] * 4]
    assert frame["state"].tolist() == ["finished", "finished"]
    rounds = experiments.curves(tmp_path)
    assert rounds.groupby("run")["round"].apply(list).to_dict() == {"a": [1, 2, 3, 4], "b/second": [1, 2, 3, 4]}
    assert rounds["acc"].max() == 0.5


def test_a_changed_record_is_not_believed(tmp_path: Path) -> None:
    Simulation(
        MLP,
        Median(),
        Phishing(IID(num_clients=5), num_train=200, num_test=100),
        cohort=CohortSampler(clients_per_round=5, malicious_fraction=0.0),
        rounds=1,
        folder=tmp_path / "run",
        enable_progress_bar=False,
    ).run()
    frame = experiments.runs(tmp_path)
    assert frame.loc[0, ["rule", "model", "data", "state"]].tolist() == ["Median", "MLP", "Phishing", "finished"]
    assert experiments.load_model(tmp_path / "run")(torch.zeros(1, 45)).shape == (1, 2)
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"rounds": 1', '"rounds": 7'))
    frame = experiments.runs(tmp_path / "run")
    assert frame["run"].tolist() == ["."]
    assert frame["state"].tolist() == ["failed"]
    assert math.isnan(frame["acc"][0])


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no run in"):
        experiments.runs(tmp_path)
    with pytest.raises(ConfigurationError, match=r"there is no folder .*nowhere"):
        experiments.curves(tmp_path / "nowhere")


def test_nothing_else_is_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = experiments.nothing
