"""The server's own clean samples, for rules that trust them.

X. Cao, M. Fang, J. Liu, N. Z. Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021,
https://arxiv.org/abs/2012.13995, Section VI-A: root datasets drawn uniformly (case I) or biased towards one class (case II).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_lightning.checked import real, whole, with_checked_arguments
from fl_lightning.errors import ConfigurationError


@with_checked_arguments
@dataclass(frozen=True)
class RootSet:
    """How many training samples the server keeps to itself; clients and attackers never see them.

    Attributes:
        samples: how many, at least 1.
        biased_class: the class that the root set is biased towards; none where left out.
        bias: the share of root samples that is drawn from that class, in [0, 1]; the others are drawn from the other classes.

    Example:
        >>> targets = torch.tensor([0, 1, 1, 2, 2, 2])
        >>> drawn = RootSet(samples=2, biased_class=1, bias=1.0).draw(targets, torch.Generator().manual_seed(0))
        >>> targets[drawn]
        tensor([1, 1])
    """

    samples: int = 100
    biased_class: int | None = None
    bias: float = 0.5

    def __post_init__(self) -> None:
        given = {"samples": whole("data.root.samples", self.samples), "bias": real("data.root.bias", self.bias)}
        if self.biased_class is not None:
            given["biased_class"] = whole("data.root.biased_class", self.biased_class)
        vars(self).update(given)  # frozen from here on
        if self.samples < 1:
            raise ConfigurationError(
                f"data.root.samples must be at least 1, got {self.samples}; without a root set leave it out"
            )
        if not 0 <= self.bias <= 1:
            raise ConfigurationError(f"data.root.bias must lie in [0, 1], got {self.bias}")

    def draw(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """(samples,) int64, ascending: which of the training samples with these classes ((n,) int64, CPU) are the root set."""
        if self.samples >= len(targets):
            raise ConfigurationError(
                f"data.root.samples is {self.samples}, but there are {len(targets)} training samples for server and clients "
                "together; use fewer"
            )
        order = torch.randperm(len(targets), generator=generator)
        if self.biased_class is None:
            return order[: self.samples].sort().values
        of_class = targets[order] == self.biased_class
        count = round(self.bias * self.samples)
        parts = order[of_class][:count], order[~of_class][: self.samples - count]
        if len(parts[0]) < count or len(parts[1]) < self.samples - count:
            raise ConfigurationError(
                f"data.root wants {count} samples of class {self.biased_class} and {self.samples - count} of others, but the "
                f"training set has {int(of_class.sum())} and {int((~of_class).sum())}; use fewer samples or another bias"
            )
        return torch.cat(parts).sort().values
