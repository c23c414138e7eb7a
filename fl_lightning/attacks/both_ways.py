"""A malicious client's samples of which every batch holds each twice: as it is, and with a trigger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fl_lightning.attacks.poisoning import PoisonedByBatch
from fl_lightning.data.base import Samples, Stamp
from fl_lightning.data.joined import join


class BothWays(PoisonedByBatch):
    """Batches of 2 b samples for b positions: first the clean ones, then the same with a trigger and the attack's label.

    Each half is augmented for itself. Length, order and `targets` are those of the clean samples.

    Args:
        clean: the client's own samples.
        stamped: the same with the trigger.

    Example:
        >>> from fl_lightning.data import TensorSamples
        >>> clean = TensorSamples(torch.arange(3.0), torch.tensor([0, 1, 2]))
        >>> BothWays(clean, clean.relabel(torch.zeros(3, dtype=torch.int64))).batch(torch.tensor([2, 1]))
        (tensor([2., 1., 2., 1.]), tensor([2, 1, 0, 0]))
    """

    setting = "each sample both ways"

    def __init__(self, clean: Samples, stamped: Samples) -> None:
        self.clean, self.with_trigger = clean, stamped
        self.targets, self.outcome = clean.targets, clean.outcome
        self.both = join([clean, stamped])

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
        return self.both.batch(torch.cat([indices, indices + len(self)]), generator)

    @classmethod
    def pool(cls, parts: Sequence[Samples]) -> Samples:
        """Clients whose samples no trigger can be written into have them twice as they are."""
        parts = [of for of in parts if len(of)]
        pairs = [(of.clean, of.with_trigger) if isinstance(of, BothWays) else (of, of) for of in parts]
        return cls(join([clean for clean, _ in pairs]), join([stamped for _, stamped in pairs]))

    def raw(self, indices: Tensor) -> Tensor | None:
        return self.clean.raw(indices)

    def stamped(self, stamp: Stamp, rows: Tensor) -> BothWays:
        """With a further trigger, in both halves."""
        return self._of_each(lambda samples: samples.stamped(stamp, rows))

    def subset(self, indices: Tensor) -> Samples:
        return self._of_each(lambda samples: samples.subset(indices)) if len(indices) else self.clean.subset(indices)

    def relabel(self, targets: Tensor) -> BothWays:
        """Of the clean samples; those with the trigger keep what their attack says."""
        return BothWays(self.clean.relabel(targets), self.with_trigger)

    def to(self, device: torch.device) -> BothWays:
        return self._of_each(lambda samples: samples.to(device))

    def _of_each(self, change: Callable[[Samples], Samples]) -> BothWays:
        return BothWays(change(self.clean), change(self.with_trigger))
