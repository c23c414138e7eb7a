"""Bulyan: Krum again and again, then a mean around the median.

E. M. El Mhamdi, R. Guerraoui, S. Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
https://arxiv.org/abs/1802.07927, Section 4.
"""

import logging

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.bulyan_selection import select_one_by_one
from fl_lightning.aggregators.distances import check_num_malicious, squared_distances
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.division import divide_
from fl_lightning.updates.order_statistics import by_sorting, median, order_statistics, sorted_columns
from fl_lightning.updates.overflow import mend
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class Bulyan(Aggregator):
    """A_k = mean of the beta entries of column k nearest to their median, over theta clients; theta = N-2f, beta = theta-2f.

    The theta clients are selected one by one: of those not yet selected, R in number, the one of Krum's lowest score, the sum
    of the R-f-2 (at least 1) smallest squared distances to the others in R. Clients that tie are taken in their order; of two
    entries as far from the median the smaller is kept. Unweighted. Buffers are combined by the coordinate-wise median.

    Bounds: N >= 4f + 3, or the run is refused. Then the median lies between benign entries, and a malicious entry is kept only
    if it is no farther from the median than a benign one that is dropped. Where exclusions leave fewer clients in a round,
    theta is at least 1 and beta at least what the median is made of, 1 or 2; a warning says so.

    Verdict: 1 for the selected, 0 for the others, whatever the median drops afterwards.

    Args:
        num_malicious: f, at least 0; what the cohort's setting says where left out.

    Example:
        >>> Bulyan(num_malicious=1)(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [90.0]]))
        tensor([2.])
    """

    def __init__(self, *, num_malicious: int | None = None) -> None:
        super().__init__()
        check_num_malicious(type(self).__name__, num_malicious)
        self.num_malicious = num_malicious

    def check(self, num_clients: int) -> None:
        f = self.assumed_malicious()
        if num_clients < 4 * f + 3:
            raise ConfigurationError(
                f"Bulyan: f = {f} malicious of N = {num_clients} clients in a round, but N >= 4f + 3 = {4 * f + 3} is needed; "
                "raise model.cohort.clients_per_round, or lower num_malicious (model.cohort.malicious_fraction where it is "
                f"not given) to {max(0, (num_clients - 3) // 4)} or less"
            )

    def selected(self, shard: UpdateShard) -> Tensor:
        """(theta,) int64, the clients that are selected, in ascending order."""
        n, f = shard.num_clients, self.assumed_malicious()
        theta = max(1, n - 2 * f)
        return select_one_by_one(squared_distances(shard.gram().cpu()), f, theta)

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        n, f = shard.num_clients, self.assumed_malicious()
        if n < 4 * f + 3:
            log.warning("Bulyan: %d clients are left with f = %d, fewer than 4f + 3 = %d; it may not hold", n, f, 4 * f + 3)
        selected = self.selected(shard)
        shard.judge(torch.zeros(n).index_fill_(0, selected, 1.0))
        chosen = selected.to(shard.weights.device)
        theta = len(chosen)
        beta = max(theta - 2 * f, 2 - theta % 2)
        return shard.map(lambda values: mean_around_median(values.index_select(0, chosen), beta))

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def mean_around_median(values: Tensor, count: int) -> Tensor:
    """Mean of the `count` entries of each column that are nearest to the column's median.

    In a sorted column they are neighbours, so a window of that many order statistics is moved up as long as the entry that it
    loses is farther from the median than the one that it wins. Entries are added in ascending order: the order of rows does
    not matter to a bit.

    Args:
        values: (N, c) float32, finite.
        count: entries kept, in [1, N].

    Returns:
        (c,) float32. Where that does not hold the sum, it is taken in float64.

    Example:
        >>> mean_around_median(torch.tensor([[0.0], [5.0], [6.0], [8.0], [9.0]]), 3)
        tensor([6.3333])
    """
    means = _mean_around_median(values, count)
    return mend(means, [(slice(None), values)], lambda columns: _mean_around_median(columns, count))


def _mean_around_median(values: Tensor, count: int) -> Tensor:
    if by_sorting(values):
        return _mean_around_median_of_many(values, count)
    n = len(values)
    ordered = order_statistics(values, 0, n)
    low, high = ordered[(n - 1) // 2].double(), ordered[n // 2].double()  # the median lies half-way: it need not be rounded
    up = [low - ordered[i] > ordered[i + count] - high for i in range(n - count)]  # true up to some i, then never again
    total = torch.zeros_like(values[0])
    for i, row in enumerate(ordered):
        if i < n - count:
            row = torch.where(up[i], 0.0, row)
        if i >= count:
            row = torch.where(up[i - count], row, 0.0)
        total += row
    return divide_(total, count)


def _mean_around_median_of_many(values: Tensor, count: int) -> Tensor:
    """The same bits: the window's place is searched for by halves, and its entries alone are added, one after the other."""
    n, columns = len(values), np.arange(values.shape[1])
    ordered = sorted_columns(values)
    low, high = ordered[:, (n - 1) // 2].astype(np.float64), ordered[:, n // 2].astype(np.float64)
    first, last = np.zeros_like(columns), np.full_like(columns, n - count)  # the window begins in [first, last]
    while (first < last).any():
        middle = np.minimum((first + last) // 2, n - count - 1)
        up = (low - ordered[columns, middle] > ordered[columns, middle + count] - high) & (first < last)
        first, last = np.where(up, middle + 1, first), np.where(up, last, np.minimum(middle, last))
    window = sliding_window_view(ordered, count, axis=1)[columns, first]
    total = np.zeros_like(ordered[:, 0])
    with np.errstate(over="ignore", invalid="ignore"):
        for row in np.ascontiguousarray(window.T):
            total += row
    return divide_(torch.from_numpy(total), count)
