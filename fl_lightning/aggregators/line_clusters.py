"""k-means of numbers on a line, which is exact: clusters are intervals, so the best cuts are found by dynamic programming.

H. Wang, M. Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming", The R Journal 3(2), 2011,
https://doi.org/10.32614/RJ-2011-015.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators.clustering import by_gap_statistic


def least_dispersions(numbers: Tensor, most: int) -> Tensor:
    """The smallest sums of squared distances from numbers to the means of their clusters, with 1, 2, ... clusters.

    Args:
        numbers: (n,) float64, n at least 1.
        most: the largest number of clusters.

    Returns:
        (min(most, n),) float64.

    Example:
        >>> least_dispersions(torch.tensor([0.0, 10.0, 1.0, 9.0], dtype=torch.float64), 3).tolist()
        [82.0, 1.0, 0.5]
    """
    within = dispersions_of_runs(numbers.sort().values)
    found = [within[0]]  # of the first 1, 2, ... n numbers, with as many clusters as the list is long
    for k in range(2, min(most, len(numbers)) + 1):
        before = torch.cat([torch.full((1,), torch.inf, dtype=torch.float64), found[-1][:-1]])  # the last one begins at i
        found.append((before[:, None] + within).amin(0))
        found[-1][: k - 1] = 0  # fewer numbers than clusters
    return torch.stack([of_all[-1] for of_all in found])


def dispersions_of_runs(ordered: Tensor) -> Tensor:
    """(n, n) float64, of the cluster of numbers i .. j of (n,) in ascending order; infinite where j < i."""
    numbers = ordered - ordered.mean()
    zero = torch.zeros(1, dtype=torch.float64)
    sums, squares = torch.cat([zero, numbers.cumsum(0)]), torch.cat([zero, numbers.square().cumsum(0)])
    places = torch.arange(len(numbers))
    sizes = (places - places[:, None] + 1).clamp(min=1)
    within = squares[1:] - squares[:-1, None] - (sums[1:] - sums[:-1, None]).square() / sizes
    within = within.clamp(min=0).masked_fill_(places == places[:, None], 0)  # differences of sums leave a rest
    return within.masked_fill_(places < places[:, None], torch.inf)


def upper_of_two(numbers: Tensor) -> Tensor:
    """(n,) bool, who is in the cluster of the larger mean where (n,) float64 numbers, not all equal, are cut into two.

    Example:
        >>> upper_of_two(torch.tensor([0.1, 0.9, 0.1, 0.95, 0.2], dtype=torch.float64)).tolist()
        [False, True, False, True, False]
    """
    ordered = numbers.sort().values
    within = dispersions_of_runs(ordered)
    cuts = within[0, :-1] + within[1:, -1]  # after each number but the last
    cuts[ordered[:-1] == ordered[1:]] = torch.inf  # equal numbers stay together
    return numbers > ordered[cuts.argmin()]


def number_on_a_line(numbers: Tensor, most: int, references: int, generator: torch.Generator) -> int:
    """How many clusters numbers in [0, 1] form, by the gap statistic with the logarithm of the references' mean.

    Args:
        numbers: (n,) float64, of which 0 and 1 are the extremes.
        most: the largest number that is tried, at least 1.
        references: sets of n uniform numbers in [0, 1] to compare with, at least 1.
        generator: of the draws.
    """
    draws = torch.rand(references, len(numbers), generator=generator, dtype=torch.float64)
    found = torch.stack([least_dispersions(row, most) for row in (numbers, *draws)])
    return by_gap_statistic(found.T, log_of_mean=True)
