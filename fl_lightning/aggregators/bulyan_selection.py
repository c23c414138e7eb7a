"""Bulyan's selection: Krum's lowest score again and again, among those that are left."""

import numpy as np
import torch
from torch import Tensor

ROUNDING = 2.0**-53
"""Half a unit in the last place of 1 in float64."""


def select_one_by_one(distances: Tensor, num_malicious: int, count: int) -> Tensor:
    """Of those left, R in number, the one of the lowest sum of its R-f-2 (at least 1) smallest distances; `count` times.

    Of clients that tie the first is taken. A score is the sum of its distances in ascending order, one by one. When somebody is
    taken every other score loses one distance, its own to whom was taken or its largest; so all are kept up to date by one
    subtraction each, and their errors are bounded. Only those that may be lowest are added up anew: O(N^2) in all, if few tie.

    Args:
        distances: (N, N) float64, at least 0.
        num_malicious: f, at least 0.
        count: in [1, N].

    Returns:
        (count,) int64, ascending.

    Example:
        >>> points = torch.tensor([7.0, 0.0, 99.0, 1.0, 2.0, 4.0, 12.0])
        >>> select_one_by_one((points[:, None] - points).double().square(), 1, 5)
        tensor([0, 1, 3, 4, 5])
    """
    scores = _Scores(distances.numpy(), num_malicious)
    for _ in range(count):
        scores.take(scores.lowest())
    return torch.from_numpy((~scores.left).nonzero()[0])


class _Scores:
    """The scores of those left.

    Row i of `nearest` are client i's distances to the others in ascending order, to those that `whose` names; `place[i, j]` is
    where j stands there. A row's entries of clients that are left are linked: the places `before` and `after` each, where -1
    and N-1 stand for none, and are one and the same column.

    Attributes:
        left: (N,) bool.
    """

    def __init__(self, distances: np.ndarray, num_malicious: int) -> None:
        n = len(distances)
        self.f, self.num_left, self.left = num_malicious, n, np.ones(n, dtype=bool)
        others = distances.copy()
        np.fill_diagonal(others, -1.0)  # before all others, to be cut off
        order = others.argsort(axis=1)
        self.whose, self.nearest = order[:, 1:], np.take_along_axis(others, order, axis=1)[:, 1:]
        self.rows = np.arange(n)
        self.place = np.full((n, n), n - 1)
        self.place[self.rows[:, None], self.whose] = np.arange(n - 1)
        self.before = np.tile(np.arange(-1, n - 1), (n, 1))
        self.after = np.tile(np.arange(1, n + 1), (n, 1))
        self.last = np.full(n, self.counted() - 1)  # place of the largest distance that counts
        self.sums = self.nearest[:, : self.counted()].cumsum(axis=1)[:, -1] if n > 1 else np.zeros(n)
        self.largest = self.sums.copy()

    def counted(self) -> int:
        """How many distances a score is made of."""
        return max(1, self.num_left - self.f - 2)

    def lowest(self) -> int:
        # A sum has been rounded once for each distance, and once for each that was taken away.
        slack = 4 * len(self.sums) * ROUNDING * self.largest
        low, high = np.where(self.left, self.sums - slack, np.inf), np.where(self.left, self.sums + slack, np.inf)
        near = (low <= high.min()).nonzero()[0]
        if len(near) > 1 and self.num_left > 1:
            among = self.nearest[near][self.left[self.whose[near]]].reshape(len(near), self.num_left - 1)
            self.sums[near] = np.add.accumulate(among[:, : self.counted()], axis=1)[:, -1]
            self.largest[near] = self.sums[near]
        return int(near[self.sums[near].argmin()])

    def take(self, client: int) -> None:
        self.left[client] = False
        fewer = self.counted() > 1
        self.num_left -= 1
        if self.num_left < 2:
            self.sums[:] = 0.0
            return
        rows = self.rows[self.left]
        place, last = self.place[rows, client], self.last[rows]
        before, after = self.before[rows, place], self.after[rows, place]
        self.after[rows, before], self.before[rows, after] = after, before
        if fewer:  # whoever is not counted takes the largest with him
            self.sums[rows] -= self.nearest[rows, np.minimum(place, last)]
            self.last[rows] = np.where(place < last, last, np.where(place == last, before, self.before[rows, last]))
        else:
            self.last[rows] = np.where(place == last, after, last)
            self.sums[rows] = self.nearest[rows, self.last[rows]]
            self.largest[rows] = self.sums[rows]
