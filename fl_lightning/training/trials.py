"""What runs before this one have measured of how clients are trained, where somebody keeps it for them.

A run that knows nothing trains for a second before it tries recorded steps, as short runs are over before that would pay. One
of many runs of the same client is told that they paid, and tries them with its first client. Both ways give the same bits, and
are compared to the bit in every run, so what a run is told changes no result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # whoever hands the memory on needs none of it
    import lightning as L

    from fl_lightning.training.local_training import LocalTraining


class Best(NamedTuple):
    """The fewest seconds that a client has taken in each way."""

    recorded: float
    sequential: float


class Trials:
    """The process's memory, which is handed on by whoever starts runs.

    Attributes:
        best: by kind of client.
        tell: is told of every trial: the kind, and seconds of recorded and of sequential steps.
    """

    def __init__(self) -> None:
        self.best: dict[str, Best] = {}
        self.tell: Callable[[str, float, float], object] | None = None

    def pays(self, kind: str) -> bool:
        """Whether recorded steps were faster in runs before this one."""
        found = self.best.get(kind)
        return found is not None and found.recorded < found.sequential

    def note(self, kind: str, recorded: float, sequential: float) -> None:
        """Keep what a trial took, where that was fewer seconds than others."""
        found = self.best.get(kind, Best(recorded, sequential))
        self.best[kind] = Best(min(found.recorded, recorded), min(found.sequential, sequential))


TRIALS = Trials()


def kind_of(module: L.LightningModule, local: LocalTraining) -> str:
    """A digest of what a client's seconds depend on most: class, parts, device, how it trains."""
    device = next((parameter.device.type for parameter in module.parameters()), "")
    return hashlib.sha256(f"{type(module).__module__}.{module} on {device} by {local}".encode()).hexdigest()
