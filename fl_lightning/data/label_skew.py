"""Label skew by Dirichlet distributions in the two usual senses: over clients, per class, and over classes, per client.

Over clients: M. Yurochkin, M. Agarwal, S. Ghosh, K. Greenewald, T. N. Hoang, Y. Khazaeni, "Bayesian Nonparametric Federated
Learning of Neural Networks", ICML 2019, https://arxiv.org/abs/1905.12022, and Q. Li, Y. Diao, Q. Chen, B. He, "Federated
Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, https://arxiv.org/abs/2102.02079. Over classes: T.-M. H. Hsu,
H. Qi, M. Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
https://arxiv.org/abs/1909.06335.

Equal alphas mean unequal skew: over classes alpha is shared out to the C classes, so that alpha there is about as skewed as
alpha / C over clients.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.data.label_counts import dealt_by, dirichlet_shares, fill_up
from fl_lightning.data.partition import CountedPartition, at_least, cut, enough, positive
from fl_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)


class DirichletOverClients(CountedPartition):
    """Each class is shared out to the N clients by shares ~ Dir(alpha, ..., alpha), so that sizes vary.

    Each shuffled class of n_c samples is cut at the floored cumulative shares. Every sample has one owner; a client's expected
    size is n / N. Where a client ends with fewer than `min_samples`, it gets samples of the client that has most at that time,
    of the largest class there, so that any number of clients can be filled and nothing is drawn again.

    Args:
        num_clients: number of clients N, from 1 to n / `min_samples`.
        alpha: concentration, more than 0; the smaller, the more a class is in few hands.
        min_samples: the fewest samples that a client holds, at least 1; 2 where a model has BatchNorm.

    Raises:
        ConfigurationError: if there are fewer than N * `min_samples` samples.

    Differs from the papers: they leave clients empty, or draw the whole split again until every client has some samples, which
    for many clients never comes to pass.

    Example:
        >>> targets = torch.arange(1000) % 10
        >>> parts = DirichletOverClients(num_clients=100, alpha=0.1)(targets, torch.Generator().manual_seed(0))
        >>> len(parts), sum(len(part) for part in parts), min(len(part) for part in parts)
        (100, 1000, 1)
    """

    by_class = True

    def __init__(self, *, num_clients: int = 100, alpha: float = 0.5, min_samples: int = 1) -> None:
        super().__init__(num_clients)
        self.alpha = positive("alpha", alpha, "0.5 is usual, more is more even")
        self.min_samples = at_least("min_samples", min_samples, 1)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        N = self.num_clients
        enough(len(targets), N * self.min_samples, N, self.min_samples)
        place, sizes = targets.unique(return_inverse=True, return_counts=True)[1:]
        concentration = torch.full((N,), self.alpha, dtype=torch.float64)
        everyone = torch.ones(N, dtype=torch.bool)
        columns = [cut(size, dirichlet_shares(concentration, generator), everyone) for size in sizes.tolist()]
        counts = torch.stack(columns, dim=1)
        if moved := fill_up(counts, self.min_samples):
            log.info(
                "data.partition: %d of %d samples went to clients with less than %d", moved, len(targets), self.min_samples
            )
        return dealt_by(place, counts, generator)


class DirichletOverClasses(CountedPartition):
    """Each client has its own distribution of classes q ~ Dir(alpha p) and, up to one, as many samples as any other.

    Clients draw one after the other, without replacement: a class from q, then a sample of that class that nobody has. A class
    of which none is left is dropped, and q renormalised; where q has nothing on what is left, in proportion to that. All n
    samples are dealt out, so the last clients get what the others left, and their q is not what was drawn: their number is
    greater, the smaller alpha is.

    Args:
        num_clients: number of clients N, from 1 to n. The first n mod N clients have one sample more than the others.
        alpha: concentration, at least 0; with 0 a client draws a single class.
        prior: p; "uniform" is 1/C for each of the C classes that occur, "data" is how often they occur. Their sum is 1.

    Raises:
        ConfigurationError: if there are fewer samples than clients.

    Differs from the paper, which leaves open what happens to clients whose classes are exhausted.

    Example:
        >>> targets = torch.arange(1000) % 10
        >>> parts = DirichletOverClasses(num_clients=40, alpha=0.1)(targets, torch.Generator().manual_seed(0))
        >>> {len(part) for part in parts}, len(targets[parts[0]].unique()) < 4
        ({25}, True)
    """

    by_class = True

    def __init__(self, *, num_clients: int = 100, alpha: float = 0.5, prior: Literal["uniform", "data"] = "uniform") -> None:
        super().__init__(num_clients)
        self.alpha = positive("alpha", alpha, "1 is usual, more is more even", or_zero=True)
        if prior not in ("uniform", "data"):
            raise ConfigurationError(f"data.partition.prior must be uniform or data, got {prior!r}")
        self.prior = prior

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        N, n = self.num_clients, len(targets)
        enough(n, N, N, 1)
        place, left = targets.unique(return_inverse=True, return_counts=True)[1:]
        prior = left / n if self.prior == "data" else torch.full((len(left),), 1 / len(left))
        prior = prior.double()
        left = left.clone()
        counts = torch.zeros(N, len(left), dtype=torch.int64)
        for client in range(N):
            q = self._draw(prior, generator)
            counts[client] = take_all(left, q, n // N + (client < n % N), generator)
        return dealt_by(place, counts, generator)

    def _draw(self, prior: Tensor, generator: torch.Generator) -> Tensor:
        """q, (C,) float64."""
        if self.alpha:
            return dirichlet_shares(self.alpha * prior, generator)
        return torch.zeros_like(prior).index_fill_(0, torch.multinomial(prior, 1, generator=generator), 1.0)


def take_all(left: Tensor, q: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """(C,) int64, how many samples of each class come of draws until there are `wanted`, at most as many as are left.

    Arguments are as for `take`.
    """
    counts = torch.zeros_like(left)
    while wanted:
        counts += (drawn := take(left, q, wanted, generator))
        wanted -= int(drawn.sum())
    return counts


def take(left: Tensor, q: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """(C,) int64, how many samples of each class come of `wanted` draws; those of a class of which none is left do not count.

    Draws of what is gone may as well be thrown away as made from a renormalised q: both give what is left the same chances.

    Args:
        left: (C,) int64, how many samples of each class are left; what is taken is subtracted.
        q: (C,) float64 distribution of classes.
        wanted: draws, at least 1.
        generator: on the CPU.
    """
    chances = q * (left > 0)
    if not chances.sum() > 0:
        chances = left.double()
    drawn = torch.multinomial(chances, wanted, replacement=True, generator=generator).bincount(minlength=len(left))
    drawn = drawn.minimum(left)
    left -= drawn
    return drawn
