"""Names of metrics that two would log, of which one would hide the other: such as a callback's own `val/acc`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NamedTuple

import lightning as L
import torch

from fl_lightning.errors import ConfigurationError

PASSED = ("lightning.", "pytorch_lightning.", "torch.", __name__)
"""Modules through which a call of `log` comes."""


class Source(NamedTuple):
    """Who logs a metric.

    Attributes:
        ours: whether that is this package.
        name: for messages.
    """

    ours: bool
    name: str


class WatchedNames(L.LightningModule):
    """A module whose `log` refuses a name under which somebody else logs, where one of the two is this package."""

    def log(self, name: str, *args: Any, **kwargs: Any) -> None:
        """As a LightningModule's.

        Raises:
            ConfigurationError: the name is taken.
        """
        names = vars(self).setdefault("_sources", {})
        if names.get("of") != id(self._trainer):  # another Trainer has other callbacks
            names.clear()
            names.update({"of": id(self._trainer), **reserved(self._trainer)})
        frame = caller(sys._getframe(1))
        ours = frame.f_globals.get("__name__", "").startswith("fl_lightning.")
        known = names.get(name)
        if known is None:
            names[name] = Source(ours, name_of(frame))
        elif known.ours != ours:
            users, own = (known.name, name_of(frame)) if ours else (name_of(frame), known.name)
            raise ConfigurationError(
                f"{users} logs {name}, which is taken: {own} has it too, and one would hide the other; log it under another "
                "name"
            )
        super().log(name, *args, **kwargs)

    def log_numbers(self, values: Mapping[str, float]) -> None:
        """`log_dict` of `training_step`, for plain numbers, most of them logged in the round before.

        Each time that a name is logged, Lightning copies all that it knows of it, which takes a third of a millisecond. A name
        that it knows is given its new value alone, but for the first, at which Lightning forgets the round before.
        """
        results: Any = self.trainer._results
        for i, (name, value) in enumerate(values.items()):
            if i and (known := f"training_step.{name}") in results:
                results.update_metrics(known, torch.tensor(value, dtype=torch.get_default_dtype(), device=self.device), 1)
            else:
                self.log(name, value, batch_size=1)


def reserved(trainer: Any) -> dict[str, Source]:
    """Names that a Trainer's callbacks of this package keep for themselves, logged or not."""
    owners = [callback for callback in getattr(trainer, "callbacks", ()) if hasattr(callback, "reserved")]
    return {name: Source(ours=True, name=type(owner).__name__) for owner in owners for name in owner.reserved}


def caller(frame: FrameType) -> FrameType:
    """Where a call comes from, past Lightning's own functions."""
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(PASSED):
        frame = frame.f_back
    return frame


def name_of(frame: FrameType) -> str:
    """The class of whose method this is, else the function."""
    owner = frame.f_locals.get("self")
    if owner is None:
        return f"{frame.f_code.co_name} ({frame.f_code.co_filename}, line {frame.f_lineno})"
    kind = type(owner).__name__
    return f"the callback {kind}" if isinstance(owner, L.Callback) else kind
