"""What a Trainer of federations has without being asked, from the command line and in Python alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from fl_lightning.callbacks import BackdoorMetrics, LastCheckpoint, RoundProgressBar, RunRecord
from fl_lightning.errors import ConfigurationError

UNSET = (RunRecord, RoundProgressBar, LastCheckpoint)
"""Callbacks that are there by themselves, and that no configuration names: they have no settings, or a key of their own."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "strategy": "federated",
    "max_epochs": 300,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
"""Arguments of the Trainer in which federations differ from Lightning's defaults."""


def standard_callbacks(
    config: dict[str, Any], options: Mapping[str, Any], given: Sequence[L.Callback] = ()
) -> list[L.Callback]:
    """Acc and ASR, the record of the run, and a bar that counts rounds; checkpoints apart.

    Args:
        config: the run's settings, for its record.
        options: the Trainer's arguments, by which there may be no bar.
        given: callbacks that there are already; one of a standard one's class, or a progress bar, stands in for it.
    """
    found: list[L.Callback] = [BackdoorMetrics(), RunRecord(config)]
    shown = options.get("enable_progress_bar") is not False and not options.get("barebones")
    if shown and not any(isinstance(callback, ProgressBar) for callback in given):
        found.append(RoundProgressBar())
    return [callback for callback in found if type(callback) not in map(type, given)]


def standard_loggers(folder: str | Path) -> list[Logger]:
    """TensorBoard and CSV, in the run's folder.

    Raises:
        ConfigurationError: something else than a folder is in the place of theirs.
    """
    for name in ("tensorboard", "csv"):
        place = Path(folder) / name
        if os.path.lexists(place) and not place.is_dir():
            raise ConfigurationError(
                f"{place} is no folder, and a run's logger has one of that name: move away what is in its place, or give "
                "another trainer.default_root_dir"
            )
    return [TensorBoardLogger(folder, name="tensorboard", default_hp_metric=False), CSVLogger(folder, name="csv")]
