"""k-means of a few points, and how many clusters there are by the gap statistic.

D. Arthur, S. Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007 (first centres).

R. Tibshirani, G. Walther, T. Hastie, "Estimating the Number of Clusters in a Data Set via the Gap Statistic", Journal of the
Royal Statistical Society B 63(2), 2001, https://doi.org/10.1111/1467-9868.00293.

Points lie on the CPU and are few, so several sets of them are clustered at once. All draws come from a given generator, and
sums are taken in a fixed order: the same points give the same clusters on every rank.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

RESTARTS = 10
"""First centres that are tried; the clusters of the smallest dispersion are taken."""

MOST_STEPS = 100
"""Of Lloyd's iteration; a few dozen are enough for hundreds of points."""

NO_DISPERSION = 1e-12
"""A dispersion of at most this share of that of one cluster is none: what is left is rounding."""


class Clusters(NamedTuple):
    """What k-means finds in each of B sets of n points.

    Attributes:
        labels: (B, n) int64, 0 .. k - 1.
        dispersion: (B,) float64, the sum of squared distances from the points to the means of their clusters.
    """

    labels: Tensor
    dispersion: Tensor


def k_means(points: Tensor, k: int, generator: torch.Generator) -> Clusters:
    """Lloyd's algorithm from `RESTARTS` first centres by k-means++, the best of them; of equal ones the first.

    Args:
        points: (B, n, q) float64, B sets of n points.
        k: clusters, from 1 to n. Fewer are found where fewer points differ.
        generator: of the draws.

    Example:
        >>> line = torch.tensor([[[0.0], [1.0], [9.0], [10.0]]], dtype=torch.float64)
        >>> found = k_means(line, 2, torch.Generator().manual_seed(0))
        >>> bool(found.labels[0, 0] == found.labels[0, 1]), float(found.dispersion)
        (True, 1.0)
    """
    centres = first_centres(points, k, generator)
    labels = nearest(points, centres)
    for _ in range(MOST_STEPS):
        chosen = torch.nn.functional.one_hot(labels, k).double()  # (B, R, n, k)
        sizes = chosen.sum(2)[..., None]
        means = chosen.mT @ points[:, None] / sizes.clamp(min=1)
        centres = torch.where(sizes > 0, means, centres)
        before, labels = labels, nearest(points, centres)
        if torch.equal(labels, before):
            break
    of_points = centres.gather(2, labels[..., None].expand(*labels.shape, points.shape[-1]))
    dispersion = (points[:, None] - of_points).square().sum((2, 3))
    least, best = dispersion.min(1)
    return Clusters(labels[torch.arange(len(points)), best], least)


def first_centres(points: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """(B, R, k, q): one point at random, then others with probability in proportion to the squared distance to the nearest."""
    draws = torch.rand(RESTARTS, k, generator=generator, dtype=torch.float64)
    sets, n, _ = points.shape
    every = torch.arange(sets)[:, None]
    chance = torch.ones(sets, RESTARTS, n, dtype=torch.float64)
    centres = []
    for draw in draws.T:
        total = chance.cumsum(-1)
        at = torch.searchsorted(total, (draw * total[..., -1])[..., None], right=True).squeeze(-1).clamp(max=n - 1)
        centres.append(points[every, at])
        distance = (points[:, None] - centres[-1][:, :, None]).square().sum(-1)
        chance = distance if len(centres) == 1 else torch.minimum(chance, distance)
    return torch.stack(centres, dim=2)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """(B, R, n) int64, which of the (B, R, k, q) centres is nearest to each of the (B, n, q) points."""
    return (points[:, None, :, None] - centres[:, :, None]).square().sum(-1).argmin(-1)


def number_of_clusters(points: Tensor, most: int, references: int, generator: torch.Generator) -> int:
    """How many clusters k-means is to find, by the gap statistic; see `by_gap_statistic`.

    Reference sets are uniform on the box around the points. Clusters that fill the box evenly, as three of one size in a
    triangle, may be taken for one.

    Args:
        points: (n, q) float64.
        most: k is at most this, at least 1.
        references: B, at least 1.
        generator: of the draws.

    Returns:
        k; 1 where all points are equal, and at most the number of clusters that leave no dispersion.
    """
    low, high = points.amin(0), points.amax(0)
    draws = torch.rand(references, *points.shape, generator=generator, dtype=torch.float64)
    sets = torch.cat([points[None], low + draws * (high - low)])
    return by_gap_statistic(k_means(sets, k, generator).dispersion for k in range(1, min(most, len(points)) + 1))


def by_gap_statistic(dispersions: Iterable[Tensor], *, log_of_mean: bool = False) -> int:
    """The smallest k with Gap(k) >= Gap(k + 1) - s(k + 1); the largest that is tried if there is none.

    Gap(k) is the mean over the B reference sets of log W_ref(k), less log W(k), W the dispersion with k clusters. s(k) is
    sqrt(1 + 1/B) times the B logarithms' standard deviation.

    Args:
        dispersions: (1 + B,) float64 for k = 1, 2, ...: of the points, then of the reference sets. Read as far as needed.
        log_of_mean: take the logarithm of the mean of W_ref(k) in place of the mean of logarithms.

    Returns:
        k; 1 where one cluster leaves no dispersion, and at most the number of clusters that leave none.
    """
    k, whole, before = 0, torch.empty(0), None
    for k, dispersion in enumerate(dispersions, 1):
        whole = dispersion if k == 1 else whole
        if whole[0] == 0:
            return 1
        least = torch.maximum(dispersion, NO_DISPERSION * whole).clamp(min=torch.finfo(torch.float64).tiny)
        logs = least.log()
        expected = least[1:].mean().log() if log_of_mean else logs[1:].mean()
        gap = float(expected - logs[0])
        error = math.sqrt(1 + 1 / len(logs[1:])) * float(logs[1:].std(correction=0))
        if before is not None and before >= gap - error:
            return k - 1
        if dispersion[0] <= NO_DISPERSION * whole[0]:
            return k
        before = gap
    return k
