"""A little is enough: malicious clients shift the honest mean by as much as hides in its spread.

G. Baruch, M. Baruch, Y. Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019,
https://arxiv.org/abs/1902.06156, Algorithm 1.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

from fl_lightning.attacks.crafted import Crafted, Source
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.moments import moments
from fl_lightning.updates.shard import UpdateShard


class ALIE(Crafted):
    """g' = mean - z * std of the honest updates, coordinate by coordinate, in every malicious client's name.

    The largest shift that a majority still covers: s = floor(n/2 + 1) - f honest clients must lie beyond it, so
    z = Phi^-1((n - f - s) / (n - f)), with n clients in the round and f malicious ones. There is no shift where the attackers
    are too few for a z above 0, as 2 of 10 are, or a majority without any honest client (s <= 0).

    Args:
        z: the shift in standard deviations; from n and f where left out.
        knowledge: whose updates count as honest, see `Crafted`.
        biased: whether the variance of M honest updates is divided by M, as in the authors' code, and not by M - 1. With few of
            them the shift is then shorter, by a factor of sqrt((M - 1) / M).

    Differs from the paper: attackers look at benign updates by default, where it lets them look at their own honest ones;
    `knowledge: colluders` does that.

    Example:
        >>> import torch
        >>> from fl_lightning.attacks import Knowledge
        >>> updates = torch.tensor([[1.0], [3.0], [9.0]])
        >>> shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, False, True]))
        >>> ALIE(z=2.0).corrupt(shard, Knowledge(mask=lambda s: torch.ones(1, dtype=torch.bool)))
        >>> shard.values.flatten()
        tensor([ 1.0000,  3.0000, -0.8284])
    """

    def __init__(self, *, z: float | None = None, knowledge: Source = "benign", biased: bool = False) -> None:
        super().__init__(knowledge=knowledge)
        if z is not None and not math.isfinite(z):
            raise ConfigurationError(f"ALIE.z must be a finite number of standard deviations, got {z}")
        self.z = z
        self.biased = biased

    def craft(self, honest: UpdateShard, rows: Tensor, n: int, f: int) -> Tensor:
        z = largest_hidden_shift(n, f) if self.z is None else self.z

        known = rows.nonzero().flatten().tolist()
        if self.biased:
            z *= math.sqrt((len(known) - 1) / len(known))

        def shifted(values: Tensor) -> Tensor:
            mean, variance = moments([values[i] for i in known])
            return (mean - z * variance.sqrt()).float()

        return honest.map(shifted, row_by_row=True)


def largest_hidden_shift(n: int, f: int) -> float:
    """z of n clients with f malicious ones, at least 0.

    >>> round(largest_hidden_shift(50, 12), 4)
    0.336
    """
    s = n // 2 + 1 - f
    share = (n - f - s) / (n - f) if n > f else 0.0
    return max(0.0, NormalDist().inv_cdf(share)) if 0 < share < 1 else 0.0
