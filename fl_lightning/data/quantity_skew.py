"""Clients of very different sizes whose samples are otherwise alike: sizes by a Dirichlet, a log-normal or a power law.

Dirichlet: Q. Li, Y. Diao, Q. Chen, B. He, "Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022,
https://arxiv.org/abs/2102.02079, quantity skew. Log-normal: T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith,
"Federated Optimization in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127, synthetic data.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from fl_lightning.data.label_counts import dirichlet_shares
from fl_lightning.data.partition import CountedPartition, at_least, enough, positive


class _Sizes(CountedPartition):
    """A random split into parts of given sizes."""

    def __init__(self, num_clients: int, min_samples: int) -> None:
        super().__init__(num_clients)
        self.min_samples = at_least("min_samples", min_samples, 1)

    @abstractmethod
    def shares(self, generator: torch.Generator) -> Tensor:
        """(N,) float64 that sum to 1."""

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        n, N = len(targets), self.num_clients
        enough(n, N * self.min_samples, N, self.min_samples)
        sizes = whole_sizes(n, self.shares(generator), self.min_samples)
        return list(torch.randperm(n, generator=generator).split(sizes.tolist()))


class DirichletSizes(_Sizes):
    """Sizes n q with q ~ Dir(beta, ..., beta) over clients; samples are dealt out at random, and every one has one owner.

    Args:
        num_clients: number of clients N, from 1 to n / `min_samples`.
        beta: concentration, more than 0; the smaller, the more few clients have; 0.5 in the paper.
        min_samples: the fewest samples that a client holds, at least 1; what that takes, the others give in proportion.

    Example:
        >>> parts = DirichletSizes(num_clients=50)(torch.zeros(1000, dtype=torch.int64), torch.Generator().manual_seed(0))
        >>> sum(len(part) for part in parts), min(len(part) for part in parts) >= 1
        (1000, True)
    """

    def __init__(self, *, num_clients: int = 100, beta: float = 0.5, min_samples: int = 1) -> None:
        super().__init__(num_clients, min_samples)
        self.beta = positive("beta", beta, "0.5 is usual")

    def shares(self, generator: torch.Generator) -> Tensor:
        return dirichlet_shares(torch.full((self.num_clients,), self.beta, dtype=torch.float64), generator)


class LogNormalSizes(_Sizes):
    """Sizes in proportion to exp(sigma z) with z ~ N(0, 1); samples are dealt out at random, and every one has one owner.

    The mean of the logarithm has no say, as sizes are scaled to sum up to n.

    Args:
        num_clients: number of clients N, from 1 to n / `min_samples`.
        sigma: standard deviation of the logarithm of sizes, at least 0; 0 is an even split, 2 that of the paper.
        min_samples: the fewest samples that a client holds, at least 1; what that takes, the others give in proportion.

    Example:
        >>> parts = LogNormalSizes(num_clients=4, sigma=0.0)(torch.zeros(9, dtype=torch.int64), torch.Generator())
        >>> [len(part) for part in parts]
        [3, 2, 2, 2]
    """

    def __init__(self, *, num_clients: int = 100, sigma: float = 2.0, min_samples: int = 1) -> None:
        super().__init__(num_clients, min_samples)
        self.sigma = positive("sigma", sigma, "2 is usual", or_zero=True)

    def shares(self, generator: torch.Generator) -> Tensor:
        return (self.sigma * torch.randn(self.num_clients, generator=generator, dtype=torch.float64)).softmax(0)


class PowerLawSizes(_Sizes):
    """Sizes in proportion to r^-a for the ranks r = 1, ..., N; which client has which rank is drawn.

    Samples are dealt out at random, and every one has one owner. With a = 1 and five clients, shares are 43.8%, 21.9%, 14.6%,
    10.9% and 8.8%.

    Args:
        num_clients: number of clients N, from 1 to n / `min_samples`.
        exponent: a, at least 0; 0 is an even split, 1 Zipf's law.
        min_samples: the fewest samples that a client holds, at least 1; what that takes, the others give in proportion.

    Example:
        >>> parts = PowerLawSizes(num_clients=5)(torch.zeros(1000, dtype=torch.int64), torch.Generator().manual_seed(0))
        >>> sorted(len(part) for part in parts)
        [88, 109, 146, 219, 438]
    """

    def __init__(self, *, num_clients: int = 100, exponent: float = 1.0, min_samples: int = 1) -> None:
        super().__init__(num_clients, min_samples)
        self.exponent = positive("exponent", exponent, "1 is usual", or_zero=True)

    def shares(self, generator: torch.Generator) -> Tensor:
        ranks = torch.randperm(self.num_clients, generator=generator).double() + 1
        return (-self.exponent * ranks.log()).softmax(0)


def whole_sizes(n: int, shares: Tensor, least: int) -> Tensor:
    """Whole numbers that sum to n, none below `least`, as near to n * shares as can be.

    Shares that would fall below are set to `least`, and the others scaled down to what is left, until none falls below; then
    the largest fractions are rounded up.

    Args:
        n: at least N * least.
        shares: (N,) float64, not negative, that sum to 1.
        least: at least 0.

    Returns:
        (N,) int64.

    Example:
        >>> whole_sizes(10, torch.tensor([0.9, 0.1, 0.0], dtype=torch.float64), 1)
        tensor([8, 1, 1])
    """
    low = torch.zeros(len(shares), dtype=torch.bool)
    while True:
        left, mass = n - least * int(low.sum()), float(shares[~low].sum())
        exact = shares * (left / mass) if mass > 0 else torch.full_like(shares, left / max(1, int((~low).sum())))
        falls = ~low & (exact < least)
        if not falls.any():
            break
        low |= falls
    sizes = torch.where(low, least, exact.floor().long())
    over = n - int(sizes.sum())
    fractions = torch.where(low, -1.0, exact - exact.floor())
    sizes[fractions.argsort(descending=True, stable=True)[:over]] += 1
    return sizes
