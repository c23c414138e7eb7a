"""The largest of numbers that lie on several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fl_lightning.updates.shard import UpdateShard


def largest(shard: UpdateShard, values: Tensor, count: int) -> Tensor:
    """Where the `count` largest of all d values lie; of equal ones, those of lower coordinates.

    The bits of a non-negative float order like integers, so the smallest value that belongs to them is found byte by byte,
    from histograms that are added over ranks.

    Args:
        shard: of the coordinates.
        values: (S,) float32 of this rank's coordinates, at least 0 and no NaN.
        count: from 0 to d.

    Returns:
        (S,) bool.
    """
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    bits = (values + 0.0).view(torch.int32)  # + 0.0: a negative zero has other bits
    threshold = 0
    left = count  # how many are wanted among the values that share the threshold's bytes so far
    for shift in (24, 16, 8, 0):
        same = bits if shift == 24 else bits[(bits >> (shift + 8)) == (threshold >> (shift + 8))]
        histogram = shard.count(torch.bincount((same >> shift) & 0xFF, minlength=256))
        at_least = histogram.flip(0).cumsum(0).flip(0)  # (256,) values whose byte is this or higher
        byte = int((at_least >= left).nonzero().max())
        left -= int(at_least[byte + 1]) if byte < 255 else 0
        threshold |= byte << shift
    chosen = bits > threshold
    ties = (bits == threshold).nonzero().flatten()
    before = on_lower_ranks(shard, len(ties))
    chosen[ties[: max(0, left - before)]] = True
    return chosen


def on_lower_ranks(shard: UpdateShard, number: int) -> int:
    """The sum of an integer of every rank before this one."""
    if not shard.distributed:
        return 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=shard.weights.device)
    counts[dist.get_rank()] = number
    return int(shard.count(counts)[: dist.get_rank()].sum())
