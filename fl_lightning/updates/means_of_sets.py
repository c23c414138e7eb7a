"""Means of sets of many updates: each by what it has more, and less, than the set that most have in common.

A matrix product takes N operations for every entry of every mean. But sets of nearest neighbours are alike, and buckets are
small; so a client that most sets hold is counted in all of them, in a sum that is taken once, and each set adds and subtracts
the clients by which it differs, at most half of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fl_lightning.updates.overflow import all_finite

MANY_ROWS = 256
"""From so many updates on. Fewer are added up in float64, by a matrix product that takes no longer than reading them."""

TABLE_ELEMENTS = 2**17
"""Elements (N x columns) of which sums are taken at a time: half of a MiB, so that they stay in a core's cache."""

WHOLE_COLUMNS = 64
"""Columns are taken in multiples of this many, so that no row shares a line of the cache with its neighbours."""


class Sets(NamedTuple):
    """M sets of N updates.

    Attributes:
        common: (N,) bool, the updates that more than half of the sets hold.
        members: (p,) int32, for one set after the other, the updates that it holds and `common` does not, or the reverse.
        starts: (M,) int32, where each set begins in `members`.
        signs: (p,) float32, 1 and -1, and so what is added and what is taken away.
        sizes: (M, 1) float32, of the sets.
    """

    common: Tensor
    members: Tensor
    starts: Tensor
    signs: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Sets | None:
        """The sets whose means a matrix (M, N) stands for, row by row; None if it stands for others, or for few updates."""
        sets = matrix != 0
        sizes = sets.sum(dim=1, keepdim=True)
        if matrix.shape[1] < MANY_ROWS or not sizes.all() or not torch.equal(matrix, sets / sizes.double()):
            return None
        common = 2 * sets.sum(dim=0) > len(sets)
        differing = sets ^ common
        counts = differing.sum(dim=1)
        signs = sets[differing].float().mul_(2).sub_(1)
        starts = (counts.cumsum(0) - counts).int()
        return cls(common, differing.nonzero()[:, 1].int(), starts, signs, sizes.float())

    def means(self, values: Tensor, out: Tensor) -> bool:
        """Write each set's mean, (M, c) float32, into `out`; whether all of them are finite.

        The common sum is taken in float64 and rounded; differences are added in float32, one after the other. With t terms the
        sum is off by no more than 2^-24 (t + 3) times the sum of all |g_i| that are in the set or in common.

        Args:
            values: (N, c) float32, finite.
        """
        columns = max(1, TABLE_ELEMENTS // len(values) // WHOLE_COLUMNS) * WHOLE_COLUMNS
        common = self.common.double()
        for piece, of_piece in zip(values.split(columns, dim=1), out.split(columns, dim=1), strict=True):
            table = piece.contiguous()
            sums = embedding_bag(self.members, table, self.starts, mode="sum", per_sample_weights=self.signs)
            sums += (common @ table.double()).float()
            if not all_finite(torch.div(sums, self.sizes, out=of_piece)):
                return False
        return True
