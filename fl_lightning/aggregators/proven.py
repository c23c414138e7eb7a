"""Who is nearest, and whose Krum score is lowest, among many clients: decided in float32 where that is proven to be enough.

A decision is a comparison of numbers that are made of the float64 Gram matrix. From inner products in float32 each of them is
known to lie between two bounds. Where the bounds of two numbers do not overlap, their order is settled. For those that overlap
where it matters inner products are taken in float64; and if that does not tell them apart either, as in ties, nothing is
decided here, but from the whole matrix in float64. So the decisions are always those of the matrix, at half its price.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl_lightning.updates.rough_products import FLOAT64, RoughGram, exact_products, rough_gram
from fl_lightning.updates.shard import UpdateShard

MANY_CLIENTS = 256
"""From this number on it is worth it: below, the rest of a rule takes longer than its matrix."""

SOME_PAIRS, SOME_ROWS = 1 / 32, 1 / 8
"""Shares of the N^2 products up to which it is faster to look them up than to take the whole matrix in float64."""


class Bounds(NamedTuple):
    """Numbers that are known to lie in [low, high], each a float64 tensor."""

    low: Tensor
    high: Tensor


class Settled(NamedTuple):
    """What bounds tell of who is among the smallest of a row.

    Attributes:
        inside: (R, n) bool, certainly among them.
        unclear: (R, n) bool, perhaps.
    """

    inside: Tensor
    unclear: Tensor


def worthwhile(shard: UpdateShard) -> bool:
    """Whether decisions are to be tried in float32 first."""
    return shard.num_clients >= MANY_CLIENTS and shard.weights.device.type == "cpu"


def nearest(shard: UpdateShard, count: int) -> Tensor | None:
    """(N, N) bool: row i is true for the `count` updates of the smallest squared distance to g_i, itself first.

    None if float32, and float64 for some of the pairs, do not settle it.
    """

    def settle(rough: RoughGram) -> Settled:
        low, high = distance_bounds(rough)
        return smallest(Bounds(low.fill_diagonal_(-1), high.fill_diagonal_(-1)), count)

    rough = rough_gram(shard, fine=True)
    settled = settle(rough)
    pairs = (settled.unclear | settled.unclear.T).triu(1)
    if pairs.any():
        if not _looked_up(shard, rough, pairs, SOME_PAIRS):
            return None
        settled = settle(rough)
    return None if settled.unclear.any() else settled.inside


def lowest_scores(shard: UpdateShard, neighbours: int, count: int) -> Tensor | None:
    """(count,) int64, ascending: who has the lowest sums of the `neighbours` smallest squared distances to others.

    None if float32, and float64 for some of the updates, do not settle it.
    """

    def settle(rough: RoughGram) -> Settled:
        return smallest(score_bounds(distance_bounds(rough), neighbours), count)

    rough = rough_gram(shard, fine=False)
    settled = settle(rough)
    pairs = settled.unclear.T.expand(-1, shard.num_clients)  # all of a row: a score is made of it
    if pairs.any():
        if not _looked_up(shard, rough, pairs, SOME_ROWS):
            return None
        settled = settle(rough)
    return None if settled.unclear.any() else settled.inside[0].nonzero().flatten()


def _looked_up(shard: UpdateShard, rough: RoughGram, pairs: Tensor, most: float) -> bool:
    """Put what float64 knows of these pairs into `rough`, unless they are more than that share of all."""
    few = bool(pairs.sum() <= most * pairs.numel())
    if few:
        rough.correct(pairs, *exact_products(shard, pairs))
    return few


def distance_bounds(rough: RoughGram) -> Bounds:
    """Of `squared_distances(shard.gram())`, (N, N) each.

    Be r what float64 rounds in a product, relative to ||g_i|| ||g_j|| <= (||g_i||^2 + ||g_j||^2) / 2. Twice a product is taken
    there and, perhaps, here, and each square as well: r (1 + 1 + 1 + 1) (||g_i||^2 + ||g_j||^2). As much again is allowed for
    the few operations between them.
    """
    squares = rough.squares[:, None] + rough.squares
    middle, slack = squares - 2 * rough.products, 2 * rough.errors + 8 * rough.rounding * squares
    slack += rough.squares_errors[:, None] + rough.squares_errors
    return Bounds((middle - slack).clamp(min=0).fill_diagonal_(0), (middle + slack).clamp(min=0).fill_diagonal_(0))


def score_bounds(distances: Bounds, neighbours: int) -> Bounds:
    """Of `sum_of_nearest(distances, neighbours)`, (1, N) each."""
    sums = []
    for bound in distances:
        others = bound.clone().fill_diagonal_(torch.inf).numpy()
        sums.append(torch.from_numpy(np.partition(others, neighbours - 1, axis=1)[:, :neighbours]).sum(1)[None])
    slack = 4 * FLOAT64 * neighbours  # sums of numbers of at least 0, in whatever order, there and here
    return Bounds(sums[0] * (1 - slack), sums[1] * (1 + slack))


def smallest(bounds: Bounds, count: int) -> Settled:
    """Who is among the `count` smallest of each row, for bounds of (R, n).

    At least `count` numbers are at most the count-th smallest upper bound, so what lies above it is not among them. At least
    n - count numbers are at least the lower bound that follows the `count` smallest ones, so what lies below it is.

    Example:
        >>> low, high = torch.tensor([[0.0, 1.0, 2.0, 5.0]]), torch.tensor([[0.5, 2.5, 3.0, 6.0]])
        >>> smallest(Bounds(low, high), 2)
        Settled(inside=tensor([[ True, False, False, False]]), unclear=tensor([[False,  True,  True, False]]))
    """
    low, high = bounds
    if count >= low.shape[1]:
        return Settled(torch.ones_like(low, dtype=torch.bool), torch.zeros_like(low, dtype=torch.bool))
    most = torch.from_numpy(np.partition(high.numpy(), count - 1, axis=1)[:, count - 1, None])
    least = torch.from_numpy(np.partition(low.numpy(), count, axis=1)[:, count, None])
    inside = high < least
    return Settled(inside, ~inside & (low <= most))
