"""Sums over all coordinates of a shard: what rules need that look at distances.

Bits do not depend on the number of ranks: sums are taken inside fixed blocks of coordinates, which are never split between
ranks, and the blocks' partial results are added in pairs, pairs of pairs and so on, by the blocks' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from fl_lightning.updates.arriving import ArrivingBuckets, RowsOf
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.pairwise_sums import PairwiseSums, gather_sums


class Summable:
    """A shard whose updates are added up over the coordinates of all ranks; attributes are those of `UpdateShard`."""

    buckets: list[Tensor] | ArrivingBuckets | RowsOf
    weights: Tensor
    num_coordinates: int
    start: int
    distributed: bool

    def settle(self) -> None:
        """Have all buckets here. Collectives begin with it, so that ranks never disagree on what comes first."""
        if not isinstance(self.buckets, list):
            self.buckets = list(self.buckets)

    def reduce(
        self,
        function: Callable[..., Tensor],
        *along: Tensor,
        dtype: torch.dtype = torch.float64,
        height: int = 0,
        first: int = 0,
    ) -> Tensor:
        """Add up a function of the updates over all d coordinates, the same bits on any number of ranks.

        Args:
            function: (N, c) float64, contiguous and its own to change, and the same c coordinates of every tensor in `along`,
                (c,) each -> partial sum over those columns, of one fixed shape.
            along: (S,) tensors to be cut up with the updates.
            dtype: float64, or float32: the function then gets a view of the updates, which it must leave as it is.
            height: 2 to its power blocks may be given at a time, which may be others on another number of ranks; then, or with
                a view, which may lie otherwise there, it is the function that sees to it that bits are the same.
            first: coordinates before this one, of d, are left out; tensors in `along` begin with it where it is on this rank,
                and are empty on ranks before.

        Returns:
            The sum over all blocks of all ranks, on every rank.
        """
        self.settle()
        size = block_size(self.num_coordinates)
        # What a partial sum looks like must be known also where this rank holds no coordinate.
        nobody = torch.zeros(len(self.weights), 1, dtype=dtype, device=self.weights.device)
        empty = function(nobody, *(t.new_zeros(1) for t in along))
        sums, skipped = PairwiseSums(self.start // size), max(0, first - self.start)
        for columns, block in self._blocks(dtype, height):
            wide = height if block.shape[1] > size else 0
            if columns.stop <= skipped:  # a block of the sum all the same, so that it is added up in the same order
                sums.add(empty, wide)
                continue
            if columns.start < skipped:
                block = block[:, skipped - columns.start :].clone(memory_format=torch.contiguous_format)
            there = slice(max(0, columns.start - skipped), columns.stop - skipped)
            sums.add(function(block, *(tensor[there] for tensor in along)), wide)
        if self.distributed:
            sums = gather_sums(sums, empty, -(-self.num_coordinates // size))
        return torch.zeros_like(empty) if not sums.nodes else sums.total()

    def _blocks(self, dtype: torch.dtype = torch.float64, height: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """The shard a block (N, c) at a time, as float64 of its own or as it is, with its place among the S columns.

        2**height blocks come together where they are whole, side by side, and make a subtree of the sum over all.
        """
        size, at = block_size(self.num_coordinates), 0
        for bucket in self.buckets:
            first = 0
            while first < bucket.shape[1]:
                wide = size << height
                width = wide if (self.start + at) % wide == 0 and first + wide <= bucket.shape[1] else size
                block = bucket[:, first : first + width]
                if dtype == torch.float64:
                    # A block's rows are put side by side in memory: a sum over rows that lie apart would round differently.
                    block = block.to(dtype, memory_format=torch.contiguous_format, copy=True)
                yield slice(at, at + block.shape[1]), block
                first, at = first + block.shape[1], at + block.shape[1]

    def norms(self) -> Tensor:
        """(N,) float64 on CPU, Euclidean norms over all d coordinates; finite for any float32 updates."""
        return self.reduce(lambda values: values.square_().sum(1)).sqrt().cpu()

    def gram(self) -> Tensor:
        """(N, N) float64, inner products of the updates over all d coordinates; symmetric to the bit."""
        total = self.reduce(inner_products)
        return (total + total.T) / 2  # matrix products round the two halves differently

    def count(self, integers: Tensor) -> Tensor:
        """Add an integer tensor of every rank; exact, so in any order."""
        assert not integers.is_floating_point(), "floats must be added in a fixed order: use reduce()"
        self.settle()
        if self.distributed:
            integers = integers.clone()
            dist.all_reduce(integers)
        return integers


def inner_products(values: Tensor) -> Tensor:
    """(N, N) of the rows of (N, c)."""
    if values.is_cuda:
        return values @ values.T
    array = values.numpy()  # NumPy sees that both sides are one matrix and computes half of the product
    return torch.from_numpy(array @ array.T)
