"""How unevenly training samples were dealt out: clients' numbers of samples, and which classes they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_lightning.data.dealt import in_groups


@dataclass(frozen=True)
class Skew:
    """What a partition made of the training samples.

    Attributes:
        sizes: (N,) int64, samples per client.
        counts: (N, C) int32, of them in each class; None for a task without classes.

    Example:
        >>> skew = Skew.of([torch.tensor([0, 1]), torch.tensor([2, 3])], torch.tensor([0, 1, 1, 1]), 3)
        >>> skew.counts.tolist(), skew.effective_classes.tolist(), skew.lacking.tolist(), skew.missing
        ([[1, 1, 0], [0, 2, 0]], [2.0, 1.0], [1, 2], [2])
    """

    sizes: Tensor
    counts: Tensor | None

    @classmethod
    def of(cls, clients: Sequence[Tensor], targets: Tensor, num_classes: int) -> Skew:
        """Count.

        Args:
            clients: (n_i,) int64 positions of each client's samples; several may be one and the same tensor.
            targets: (n,) int64 classes; numbers, and several per sample, are no classes.
            num_classes: C; with less than two there is nothing to tell classes by.
        """
        sizes = torch.tensor([len(part) for part in clients], dtype=torch.int64)
        if num_classes < 2 or targets.ndim != 1 or targets.is_floating_point():
            return cls(sizes, None)
        place: dict[int, int] = {}  # of a tensor among those that differ
        which = torch.tensor([place.setdefault(id(part), len(place)) for part in clients], dtype=torch.int64)
        distinct = list({id(part): part for part in clients}.values())
        counted = [class_counts(group, targets.cpu(), num_classes) for group in in_groups(distinct)]
        return cls(sizes, torch.cat(counted)[which] if len(distinct) < len(clients) else torch.cat(counted))

    @property
    def effective_classes(self) -> Tensor:
        """(M,) float64, 1 / sum of q^2 over classes for the M clients with samples, where q is a class's share of a client's
        samples: 1 for one class alone, C for all alike."""
        assert self.counts is not None, "a task without classes"
        held = self.counts[self.sizes > 0].double()
        return held.sum(1).square() / held.square().sum(1)

    @property
    def lacking(self) -> Tensor:
        """(N,) int64, classes of which a client has no sample."""
        assert self.counts is not None, "a task without classes"
        return (self.counts == 0).sum(1)

    @property
    def missing(self) -> list[int]:
        """Classes of which no client has a sample."""
        assert self.counts is not None, "a task without classes"
        return torch.nonzero(self.counts.sum(0) == 0).flatten().tolist()


def class_counts(clients: Sequence[Tensor], targets: Tensor, num_classes: int) -> Tensor:
    """(M, C) int32, the samples of each of M clients in each class."""
    owner = torch.repeat_interleave(torch.tensor([len(part) for part in clients]))
    cells = owner * num_classes + targets[torch.cat(list(clients))]
    return cells.bincount(minlength=len(clients) * num_classes).view(len(clients), num_classes).int()
