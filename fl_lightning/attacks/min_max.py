"""Min-Max and Min-Sum: as far from the honest mean as honest updates are from each other.

V. Shejwalkar, A. Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", NDSS 2021, https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine/, Section IV-C.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from fl_lightning.attacks.crafted import Crafted, Source
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.moments import moments
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.sums import inner_products

Direction = Literal["unit", "sign", "std"]


class AwayFromMean(Crafted):
    """g' = m - lambda u, with m the honest mean and the largest lambda >= 0 that keeps g' within a bound on its distances.

    Squared distances to honest updates are parabolas in lambda, a_i - 2 lambda c_i + lambda^2 q with a_i = ||m - g_i||^2,
    c_i = <u, m - g_i> and q = ||u||^2, so lambda is found exactly, from sums over all coordinates.

    Args:
        direction: u, the way to go: `unit`, m / ||m||; `sign`, the signs of m; `std`, the honest standard deviations.
        knowledge: whose updates count as honest, see `Crafted`.

    Differs from the paper: lambda is the root itself, not what halving steps from 10 on come to.
    """

    def __init__(self, *, direction: Direction = "unit", knowledge: Source = "benign") -> None:
        super().__init__(knowledge=knowledge)
        if direction not in get_args(Direction):
            raise ConfigurationError(f"{type(self).__name__}.direction must be unit, sign or std, got {direction!r}")
        self.direction = direction

    def craft(self, honest: UpdateShard, rows: Tensor, n: int, f: int) -> Tensor:
        def sums(values: Tensor) -> Tensor:
            """<m - g_i, m - g_j>, c_i and q in a row, before `unit` is scaled to length 1."""
            mean, way = self.mean_and_way(values[rows])
            away = mean - values[rows]
            return torch.cat([inner_products(away).flatten(), (away * way).sum(1), way.square().sum()[None]])

        total = honest.reduce(sums).cpu()
        m = int(rows.sum())
        products, c, q = total[: m * m].view(m, m), total[m * m : -1], float(total[-1])
        a = products.diagonal()
        distances = (a[:, None] + a - products - products.T).clamp(min=0)
        factor = self.largest(a, c, q, distances) if q else 0.0

        known = rows.nonzero().flatten().tolist()

        def shifted(values: Tensor) -> Tensor:
            mean, way = self.mean_and_way([values[i] for i in known])
            return (mean - factor * way).float()

        return honest.map(shifted, row_by_row=True)

    def mean_and_way(self, values: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """m and u of columns (M, c), (c,) float64 each; u is of whatever length."""
        mean, variance = moments(values)
        return mean, {"unit": mean, "sign": mean.sign(), "std": variance.sqrt()}[self.direction]

    @abstractmethod
    def largest(self, a: Tensor, c: Tensor, q: float, distances: Tensor) -> float:
        """The largest lambda, in multiples of u as it is.

        Args:
            a: (M,) float64, squared distances from m to honest updates.
            c: (M,) float64, the products of u with m - g_i.
            q: squared length of u, more than 0.
            distances: (M, M) float64, squared distances between honest updates.
        """
        raise NotImplementedError


class MinMax(AwayFromMean):
    """The largest lambda for which no honest update is farther from g' than any two honest ones are from each other.

    max_i ||g' - g_i||^2 <= max_{i,j} ||g_i - g_j||^2. See `AwayFromMean` for the arguments.

    Example:
        >>> from fl_lightning.attacks import Knowledge
        >>> updates = torch.tensor([[1.0], [3.0], [9.0]])
        >>> shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, False, True]))
        >>> MinMax().corrupt(shard, Knowledge(mask=lambda s: torch.ones(1, dtype=torch.bool)))
        >>> shard.values.flatten()
        tensor([1., 3., 1.])
    """

    def largest(self, a: Tensor, c: Tensor, q: float, distances: Tensor) -> float:
        bound = float(distances.max())
        return min(larger_root(float(a_i) - bound, float(c_i), q) for a_i, c_i in zip(a, c, strict=True))


class MinSum(AwayFromMean):
    """The largest lambda for which the sum of squared distances from g' to honest updates is within that of honest ones.

    sum_i ||g' - g_i||^2 <= B, where B is the `bound` over i of sum_j ||g_i - g_j||^2. See `AwayFromMean` for the others.

    Args:
        bound: `smallest`, as in the authors' code, or `largest`.

    Example:
        >>> from fl_lightning.attacks import Knowledge
        >>> updates = torch.tensor([[1.0], [3.0], [9.0]])
        >>> shard = UpdateShard.from_updates(updates, malicious=torch.tensor([False, False, True]))
        >>> MinSum().corrupt(shard, Knowledge(mask=lambda s: torch.ones(1, dtype=torch.bool)))
        >>> shard.values.flatten()
        tensor([1., 3., 1.])
    """

    def __init__(
        self,
        *,
        direction: Direction = "unit",
        bound: Literal["smallest", "largest"] = "smallest",
        knowledge: Source = "benign",
    ) -> None:
        super().__init__(direction=direction, knowledge=knowledge)
        if bound not in ("smallest", "largest"):
            raise ConfigurationError(f"MinSum.bound must be smallest or largest, got {bound!r}")
        self.bound = bound

    def largest(self, a: Tensor, c: Tensor, q: float, distances: Tensor) -> float:
        sums = distances.sum(1)
        bound = float(sums.min() if self.bound == "smallest" else sums.max())
        return larger_root(float(a.sum()) - bound, float(c.sum()), len(a) * q)


def larger_root(excess: float, c: float, q: float) -> float:
    """The larger root of excess - 2 lambda c + lambda^2 q for excess <= 0 up to rounding, at least 0."""
    return max(0.0, (c + math.sqrt(max(0.0, c * c - q * excess))) / q)
