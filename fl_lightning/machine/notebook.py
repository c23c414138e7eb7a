"""Ranks of a notebook: forks of its process, as it has no script that could be started once more for each rank."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import lightning.fabric.utilities.imports as environment
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerFn
from torch.multiprocessing.spawn import ProcessRaisedException

from fl_lightning.errors import ConfigurationError


def interactive() -> bool:
    """Whether Python runs in a notebook or a console, as Lightning sees it."""
    return environment._IS_INTERACTIVE


class NotebookLauncher(_MultiProcessingLauncher):
    """Forks the ranks, which end with the call; weights and metrics come back.

    Each rank on a CPU keeps to one thread, as under torchrun, so that bits are the same; and OpenMP, whose threads a fork
    does not have, would wait for them without end.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__(strategy, start_method="fork")

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        writes = trainer is not None and any(isinstance(callback, BasePredictionWriter) for callback in trainer.callbacks)
        if trainer is not None and trainer.state.fn == TrainerFn.PREDICTING and not writes:
            raise ConfigurationError(
                "predictions of several devices are lost in a notebook, as the processes end that have them; predict with "
                "Trainer(devices=1), or add a BasePredictionWriter to its callbacks"
            )
        if dist.is_initialized():  # left by a run on one device: ranks would take it for theirs, each alone
            dist.destroy_process_group()
        try:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        except ProcessRaisedException as error:
            found = re.findall(rf"{ConfigurationError.__module__}\.{ConfigurationError.__name__}: (.*)", str(error))
            if not found:
                raise
            raise ConfigurationError(found[-1]) from None

    def _wrapping_function(self, process_idx: int, *args: Any, **kwargs: Any) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this fork alone; Lightning would set more
        torch.set_num_threads(1)
        super()._wrapping_function(process_idx, *args, **kwargs)
