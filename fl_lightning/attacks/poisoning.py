"""Which of a malicious client's samples carry the attack: the same share of its data set in every round, or of every batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fl_lightning.attacks.base import Attacker, draw_share
from fl_lightning.data.base import Samples, Stamp
from fl_lightning.data.joined import join
from fl_lightning.errors import ConfigurationError

ROUNDING = 1e-9
"""What keeps .29 * 100 from being 28 samples."""


def poison_share(
    dataset: Samples,
    applies: Tensor,
    fraction: float,
    attacker: Attacker,
    purpose: str,
    write: Callable[[Tensor], Samples],
    *,
    per_batch: bool = False,
) -> Samples:
    """A malicious client's training data, of which a share is poisoned.

    Args:
        dataset: its data.
        applies: (m,) int64, the samples to which the attack applies.
        fraction: r, in (0, 1]. Of the data set: max(1, round(r * m)) samples are drawn by (seed, purpose, client), the same in
            every round. Of a batch: see `PoisonedBatches`.
        attacker: whose data they are.
        purpose: of the draw, in words.
        write: gives all of the data with some rows ((k,) int64) poisoned.
        per_batch: whether the share is one of every batch.
    """
    if not len(applies):
        return dataset
    if not per_batch:
        return write(applies[draw_share(len(applies), fraction, attacker.generator(purpose)).to(applies.device)])
    poisoned, able = write(applies), torch.zeros(len(dataset), dtype=torch.bool, device=dataset.targets.device)
    able[applies.to(able.device)] = True
    if isinstance(dataset, PoisonedBatches) and isinstance(poisoned, PoisonedBatches):
        return PoisonedBatches(dataset.clean, [*dataset.layers, (poisoned.clean, able, fraction)])
    return PoisonedBatches(dataset, [(poisoned, able, fraction)])


Layer = tuple[Samples, Tensor, float]
"""All of the samples as one attack has them; which of them it can poison, (n,) bool; its share of a batch."""


class PoisonedByBatch(Samples):
    """Samples of which only a whole batch shows what is poisoned, so that none of them is read alone.

    Attributes:
        setting: what made them so, in words.
    """

    setting = "poisoning batch by batch"

    @classmethod
    @abstractmethod
    def pool(cls, parts: Sequence[Samples]) -> Samples:
        """All samples of several clients, some of this kind, as one data set whose batches are poisoned as each client's."""

    def __getitem__(self, index: int) -> Any:
        raise ConfigurationError(
            f"samples that are poisoned batch by batch ({self.setting}) are read in batches alone, and not mixed with others "
            f"one by one; put attacks that bring samples of their own before the one with {self.setting}, or leave that out"
        )


class PoisonedBatches(PoisonedByBatch):
    """Clean samples of which the first ones of every batch are poisoned.

    A batch is a stretch of a fresh shuffle, which is drawn by (seed, round, client), so its head is a random choice: a sample
    comes poisoned in one pass and clean in another, and nothing is drawn beside the shuffle. Of the k samples of a batch that
    an attack can poison the first int(r * k) are; of several such attacks each takes its own from those that are left. Its
    length, order and `targets` are those of the clean samples.

    Args:
        clean: the client's own samples.
        layers: what each attack makes of them, in order.

    Example:
        >>> from fl_lightning.data import TensorSamples
        >>> clean = TensorSamples(torch.zeros(4, 1), torch.tensor([1, 2, 3, 4]))
        >>> zeros = clean.relabel(torch.zeros(4, dtype=torch.int64))
        >>> both = PoisonedBatches(clean, [(zeros, torch.ones(4, dtype=torch.bool), 0.5)])
        >>> both.batch(torch.tensor([3, 1, 0, 2]))[1]
        tensor([0, 0, 1, 3])
    """

    setting = "per_batch"

    def __init__(self, clean: Samples, layers: Sequence[Layer]) -> None:
        self.clean, self.layers = clean, list(layers)
        self.targets, self.outcome = clean.targets, clean.outcome
        self.both = join([clean, *(poisoned for poisoned, _, _ in layers)])

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
        place, free = indices, torch.ones_like(indices, dtype=torch.bool)
        for number, (_, able, fraction) in enumerate(self.layers, start=1):
            able = able[indices.to(able.device)].to(free.device) & free
            count = able.cumsum(0)  # a GPU need not be waited for
            taken = able & (count <= (fraction * count[-1].double() + ROUNDING).floor())
            place, free = place + number * len(self) * taken, free & ~taken
        return self.both.batch(place, generator)

    @classmethod
    def pool(cls, parts: Sequence[Samples]) -> Samples:
        """Clients without a sample that an attack can poison have plain data; the others' shares are the same: one attack's."""
        layered = next(of for of in parts if isinstance(of, PoisonedBatches))
        parts = [of for of in parts if len(of)]
        layers = []
        for i, (_, _, fraction) in enumerate(layered.layers):
            own = [of.layers[i][:2] if isinstance(of, PoisonedBatches) else (of, torch.zeros(len(of)).bool()) for of in parts]
            able = torch.cat([mask.to(layered.layers[i][1].device) for _, mask in own])
            layers.append((join([samples for samples, _ in own]), able, fraction))
        return PoisonedBatches(join([of.clean if isinstance(of, PoisonedBatches) else of for of in parts]), layers)

    def raw(self, indices: Tensor) -> Tensor | None:
        return self.clean.raw(indices)

    def stamped(self, stamp: Stamp, rows: Tensor) -> PoisonedBatches:
        """With a further trigger, whether they come clean or poisoned."""
        return self._of_each(lambda samples: samples.stamped(stamp, rows))

    def subset(self, indices: Tensor) -> Samples:
        if not len(indices):
            return self.clean.subset(indices)
        layers = [(of.subset(indices), able[indices.to(able.device)], fraction) for of, able, fraction in self.layers]
        return PoisonedBatches(self.clean.subset(indices), layers)

    def relabel(self, targets: Tensor) -> PoisonedBatches:
        """Of the clean samples; poisoned ones keep what their attack says."""
        return PoisonedBatches(self.clean.relabel(targets), self.layers)

    def to(self, device: torch.device) -> PoisonedBatches:
        return self._of_each(lambda samples: samples.to(device))

    def _of_each(self, change: Callable[[Samples], Samples]) -> PoisonedBatches:
        return PoisonedBatches(change(self.clean), [(change(of), able, fraction) for of, able, fraction in self.layers])


def pooled(datasets: Sequence[Samples]) -> Samples:
    """All samples of several clients as one data set, of which batches are poisoned as those of each client were."""
    kind = next((type(of) for of in datasets if isinstance(of, PoisonedByBatch)), None)
    return join(datasets) if kind is None else kind.pool(datasets)
