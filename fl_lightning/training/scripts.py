"""What runs before this one have recorded of steps, where somebody keeps it for them.

To trace a step takes a third of a second, which is as long as a short run trains. What is traced ends as a text that
TorchScript reads, and is the same in all runs of the same client. A run that is given one tries two steps by it and by plain
PyTorch, and uses it if they are the same to the bit; so what a run is given changes no result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from fl_lightning.modules.traced_graphs import MOST_COMPILED, Script, compiled

MOST_CHARACTERS = 2**16
"""Of a text that is handed on."""


class Kept(NamedTuple):
    """A recording of steps.

    Attributes:
        script: what TorchScript repeats.
        draws: whether it draws random numbers.
    """

    script: Script
    draws: bool


class Scripts:
    """The process's memory, which is handed on by whoever starts runs.

    Attributes:
        kept: by kind of step, no more than a process keeps compiled; steps of further kinds are traced.
        tell: is told of every recording, as `note` takes it.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.tell: Callable[[dict[str, Any]], object] | None = None

    def made(self, kind: str, script: Script | None, draws: bool) -> None:
        """A recording has been made here, with a script or without one."""
        if self.tell is not None and script is not None and len(script.code) <= MOST_CHARACTERS:
            self.tell({"kind": kind, "script": script._asdict(), "draws": draws})

    def note(self, kind: str, script: dict[str, Any], draws: bool) -> None:
        """Keep what a run has told, and compile it for the runs to come."""
        if kind not in self.kept and len(self.kept) < MOST_COMPILED:
            self.kept[kind] = Kept(Script(**script), draws)
            with suppress(RuntimeError):  # which the run meets again, and traces the step
                compiled(script["code"])


SCRIPTS = Scripts()


def step_kind(*about: Any) -> str:
    """A digest of what steps depend on, given as anything whose `repr` says it all."""
    return hashlib.sha256(repr(about).encode()).hexdigest()
