"""TensorBoard, CSV and any other Lightning logger see the same metrics by the same names."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fl_lightning.cli import main

QUICKSTART = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
ARGS = ["--data.init_args.num_train", "2000", "--data.init_args.num_test", "300", "--trainer.max_epochs", "2"]
EXPECTED = {
    "val/acc",
    "val/asr",
    "round/excluded_updates",
    "round/refused",
    "diagnostics/kept_fraction",
    "diagnostics/norm_after",
}


class Recorder(Logger):
    """Stands for W&B, MLflow and the like: it takes what any Lightning logger is given."""

    seen: dict[str, list[tuple[float, int]]]
    settings: Any = None

    def __init__(self, greeting: str) -> None:
        self.seen = {}
        RECORDERS.append(self)
        self.greeting = greeting

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.seen.setdefault(name, []).append((value, int(step or 0)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.settings = params


RECORDERS: list[Recorder] = []


def test_tensorboard_and_csv_by_default(tmp_path):
    main(["fit", "--config", QUICKSTART, *ARGS, "--trainer.default_root_dir", str(tmp_path)])
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    settings = yaml.safe_load((tmp_path / "csv" / "version_0" / "hparams.yaml").read_text())
    assert settings == yaml.safe_load((tmp_path / "config.yaml").read_text())
    board = EventAccumulator(str(tmp_path / "tensorboard" / "version_0"))
    board.Reload()
    tags = set(board.scalars.Keys()) - {"epoch", "final/acc", "final/asr"}
    assert tags == set(rows[0]) - {"epoch", "step"}
    assert tags >= EXPECTED, EXPECTED - tags
    assert [event.step for event in board.Scalars("val/acc")] == [1, 2]
    assert [float(row["val/acc"]) for row in rows if row["val/acc"]] == pytest.approx(
        [e.value for e in board.Scalars("val/acc")]
    )

    results = json.loads((tmp_path / "run.json").read_text())
    for measure in ("acc", "asr"):
        (final,) = board.Scalars(f"final/{measure}")
        assert (final.value, final.step) == (pytest.approx(results[measure]), 2)
    row = hparams(board, "session_start_info").session_start_info
    assert row.hparams["model/aggregator/init_args/tau"].number_value == 0.6
    columns = hparams(board, "experiment").experiment.metric_infos
    assert {info.name.tag for info in columns} == {"final/acc", "final/asr"}


def hparams(board: EventAccumulator, part: str) -> Any:
    """What the HPARAMS tab is made of."""
    content = board.summary_metadata[f"_hparams_/{part}"].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)  # pyrefly: ignore[missing-attribute]


def test_what_is_evaluated_later_stands_at_the_checkpoints_round(tmp_path):
    quiet = ["--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)]
    main(["fit", "--config", QUICKSTART, *ARGS, *quiet])
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path / "logs")]
    checkpoint = ["--ckpt_path", str(tmp_path / "last.ckpt")]
    main(["test", "--config", QUICKSTART, *ARGS, *quiet[2:], *logger, *checkpoint])
    with (tmp_path / "logs" / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["step"] == "2"
    assert float(row["test/acc"]) == json.loads((tmp_path / "run.json").read_text())["acc"]


def test_a_logger_of_the_users_choice_gets_the_same_names_and_steps(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "test_loggers", sys.modules[__name__])
    logger = ["--trainer.logger", "test_loggers.Recorder", "--trainer.logger.init_args.greeting", "hello"]
    main(["fit", "--config", QUICKSTART, *ARGS, *logger, "--trainer.default_root_dir", str(tmp_path)])
    (recorder,) = RECORDERS
    RECORDERS.clear()
    assert set(recorder.seen) >= EXPECTED
    assert [step for _, step in recorder.seen["val/acc"]] == [1, 2]
    assert recorder.settings == yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert not (tmp_path / "csv").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_no_logger_on_request(tmp_path):
    main(["fit", "--config", QUICKSTART, *ARGS, "--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("config.yaml", "last.ckpt", "metrics.jsonl", "run.json", "training.lock")
    ]
