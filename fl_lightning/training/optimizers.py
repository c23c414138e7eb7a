"""The optimizer and the scheduler, if any, in what a module's `configure_optimizers` returns, in any of Lightning's forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from fl_lightning.errors import ConfigurationError, nearest
from fl_lightning.modules.hooks import called_hooks


@dataclass(frozen=True)
class LocalScheduler:
    """A learning-rate scheduler inside one client's training; does nothing without one.

    Attributes:
        scheduler: steps after every batch or every epoch whose number, counted from 1, is a multiple of the frequency; batches
            are counted anew in every epoch, as Lightning does it.
        step: how it does, where the module has its own `lr_scheduler_step`.
    """

    scheduler: Any = None
    interval: Literal["step", "epoch"] = "epoch"
    frequency: int = 1
    step: Callable[[], None] | None = None

    def after_step(self, step: int) -> None:
        if self.scheduler is not None and self.interval == "step" and step % self.frequency == 0:
            (self.step or self.scheduler.step)()

    def after_epoch(self, epoch: int) -> None:
        if self.scheduler is not None and self.interval == "epoch" and epoch % self.frequency == 0:
            (self.step or self.scheduler.step)()

    @property
    def configs(self) -> list[LRSchedulerConfig]:
        """As a Trainer shows it to its module."""
        if self.scheduler is None:
            return []
        return [LRSchedulerConfig(self.scheduler, interval=self.interval, frequency=self.frequency)]


def configured(module: L.LightningModule) -> tuple[Optimizer, LocalScheduler]:
    """A fresh optimizer of the module's, and its scheduler, which steps as the module says."""
    optimizer, scheduler = read_optimizers(module.configure_optimizers())
    if scheduler.scheduler is None:
        return optimizer, scheduler
    if "lr_scheduler_step" in called_hooks(module):
        return optimizer, replace(scheduler, step=partial(module.lr_scheduler_step, scheduler.scheduler, None))
    if not isinstance(scheduler.scheduler, LRScheduler):
        raise ConfigurationError(
            f"the scheduler {type(scheduler.scheduler).__name__} of the client {type(module).__name__} is not one of PyTorch's "
            "kind (torch.optim.lr_scheduler.LRScheduler); say how it steps in lr_scheduler_step(self, scheduler, metric)"
        )
    return optimizer, scheduler


Configure = Callable[[L.LightningModule], tuple[Optimizer, LocalScheduler]]
"""Makes a client's optimizer and scheduler, as `configured` does."""

OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor")
SCHEDULER_KEYS = tuple(field.name for field in fields(LRSchedulerConfig))
"""What dictionaries that `configure_optimizers` returns may hold: Lightning's names."""


def read_optimizers(configured: Any, whose: str = "a client") -> tuple[Optimizer, LocalScheduler]:
    """The one optimizer, and the scheduler if any, in what a module's `configure_optimizers` returns.

    Args:
        configured: in any of Lightning's forms.
        whose: a word for messages.

    Raises:
        ConfigurationError: for no or several optimizers, several schedulers, one that waits for a metric or belongs to another
            optimizer, and names that Lightning does not know.
    """
    optimizers: Any
    schedulers: Any = []
    if isinstance(configured, Mapping):
        check_keys(configured, OPTIMIZER_KEYS, "optimizer")
        optimizers, schedulers = configured["optimizer"], configured.get("lr_scheduler", [])
    elif isinstance(configured, (tuple, list)) and len(configured) == 2 and isinstance(configured[0], (tuple, list)):
        optimizers, schedulers = configured
    elif isinstance(configured, (tuple, list)) and len(configured) == 1 and isinstance(configured[0], Mapping):
        return read_optimizers(configured[0], whose)
    else:
        optimizers = configured
    optimizers = list(optimizers) if isinstance(optimizers, (tuple, list)) else [optimizers]
    schedulers = list(schedulers) if isinstance(schedulers, (tuple, list)) else [schedulers]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        names = [type(optimizer).__name__ for optimizer in optimizers]
        raise ConfigurationError(
            f"{whose} needs exactly one optimizer, but its configure_optimizers gives {len(names)}: {names}; several "
            "optimizers need manual optimization, which is not done here"
        )
    if len(schedulers) > 1:
        raise ConfigurationError(f"{whose} may have one learning-rate scheduler, got {len(schedulers)}")
    if not schedulers:
        return optimizers[0], LocalScheduler()
    given = dict(schedulers[0]) if isinstance(schedulers[0], Mapping) else {"scheduler": schedulers[0]}
    check_keys(given, SCHEDULER_KEYS, "scheduler")
    scheduler, interval, frequency = given["scheduler"], given.get("interval", "epoch"), given.get("frequency", 1)
    if isinstance(scheduler, ReduceLROnPlateau) or given.get("reduce_on_plateau"):
        raise ConfigurationError(f"ReduceLROnPlateau waits for a metric, which {whose} does not have; use another scheduler")
    if interval not in ("step", "epoch") or not isinstance(frequency, int) or frequency < 1:
        raise ConfigurationError(
            f"a scheduler's interval must be step or epoch and its frequency at least 1, got {interval!r} and {frequency}"
        )
    if isinstance(scheduler, Optimizer) or not callable(getattr(scheduler, "step", None)):
        raise ConfigurationError(
            f"configure_optimizers gives {type(scheduler).__name__} as a learning-rate scheduler, which cannot step; return "
            "the optimizer alone, or a scheduler of torch.optim.lr_scheduler"
        )
    if getattr(scheduler, "optimizer", optimizers[0]) is not optimizers[0]:
        raise ConfigurationError(
            f"the scheduler {type(scheduler).__name__} was made for another optimizer than configure_optimizers returns; make "
            "it for that one"
        )
    return optimizers[0], LocalScheduler(scheduler, interval, frequency)


def check_keys(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """Refuse names in a dictionary of `configure_optimizers` that Lightning does not know, and one without `what`."""
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigurationError(
            f"configure_optimizers gives a dict for the {what} with the key {unknown[0]!r}, which would do nothing; "
            f"{nearest(str(unknown[0]), known)}"
        )
    if what not in given:
        raise ConfigurationError(f"configure_optimizers gives a dict with {sorted(given)}, which lacks the key {what!r}")
