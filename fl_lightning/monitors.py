"""Metrics that Lightning's callbacks wait for: whether anybody logs them.

What evaluation and the server log is known before training, and what clients log after the first round. Callbacks of the user's
own may log anything, so where there are some Lightning's own checks, at the end of a round, have to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol, runtime_checkable

import lightning as L

from fl_lightning.errors import ConfigurationError, by_likeness, enumerated, nearest

TrainerOfAnyKind = Any
"""A `Trainer`: most of its options are attributes that it sets where type checkers do not see it."""

OF_CLIENTS = "client/"
"""How the names of metrics begin that clients log."""

OF_THE_SERVER = ("round/excluded_updates", "round/refused", "step")
"""What every round logs."""


@runtime_checkable
class Measuring(Protocol):
    """A callback that can tell what it will log in training, once the evaluation sets are there."""

    def measured(self, federation: L.LightningModule) -> list[str]:
        """Names such as `val/acc`."""


def check_monitors(trainer: TrainerOfAnyKind, federation: L.LightningModule) -> None:
    """Raise before training where one of Lightning's callbacks waits for a metric that nobody logs."""
    if any(not known(callback) for callback in trainer.callbacks):
        return
    logged = [name for other in trainer.callbacks if isinstance(other, Measuring) for name in other.measured(federation)]
    logged = [name for name in logged if trainer.limit_val_batches or not name.startswith("val/")]
    logged.sort(key=lambda name: not name.startswith("val/"))  # these are meant most often
    for callback, monitor in monitors(trainer):
        if not monitor.startswith(OF_CLIENTS) and monitor not in (*logged, *OF_THE_SERVER):
            measured = any(name.startswith("val/") for name in logged)
            there = f"{meant(monitor, logged)}logged are" if measured else "BackdoorMetrics logs val/acc, others"
            names = enumerated([*logged, *OF_THE_SERVER])
            raise ConfigurationError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which nobody logs; {there} {names}, and "
                "client/NAME for what clients log as NAME"
            )


def check_logged(trainer: TrainerOfAnyKind, logged: Collection[str]) -> None:
    """Raise in a round where one of Lightning's callbacks waits for what clients do not log.

    Args:
        trainer: in a round.
        logged: the names of what the round has logged.
    """
    for callback, monitor in monitors(trainer):
        if monitor.startswith(OF_CLIENTS) and monitor not in logged and monitor not in trainer.callback_metrics:
            if any(not known(other) for other in trainer.callbacks) or not getattr(callback, "strict", True):
                continue
            names, name = [other for other in logged if other.startswith(OF_CLIENTS)], monitor.removeprefix(OF_CLIENTS)
            there = f"they log {enumerated(by_likeness(monitor, names))}" if names else "they log nothing"
            raise ConfigurationError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which no client has logged in round "
                f"{trainer.global_step}; {there}: monitor another metric, or have training_step call self.log({name!r}, ...)"
            )


def monitors(trainer: TrainerOfAnyKind) -> Iterator[tuple[L.Callback, str]]:
    """The callbacks that wait for a metric, each with its name."""
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            yield callback, monitor


def meant(name: str, names: list[str]) -> str:
    """What may have been meant by a name, empty if it is like none."""
    found = nearest(name, names)
    return f"{found} " if found.startswith("did") else ""


def known(callback: L.Callback) -> bool:
    """Whether it is Lightning's or this package's, of which it is known what they do."""
    return type(callback).__module__.startswith(("lightning.", "fl_lightning."))
