"""The largest of numbers that lie on several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fl_lightning.updates.kth_largest import kth_largest
from fl_lightning.updates.shard import UpdateShard


def largest(shard: UpdateShard, values: Tensor, count: int) -> Tensor:
    """Where the `count` largest of all d values lie; of equal ones, those of lower coordinates.

    Args:
        shard: of the coordinates.
        values: (S,) float32 of this rank's coordinates, at least 0 and no NaN.
        count: from 0 to d.

    Returns:
        (S,) bool.
    """
    threshold, wanted = kth_largest(shard.with_rows(values[None]), count)
    chosen = values > threshold
    ties = (values == threshold).nonzero().flatten()
    before = on_lower_ranks(shard, len(ties))
    chosen[ties[: max(0, int(wanted) - before)]] = True
    return chosen


def on_lower_ranks(shard: UpdateShard, number: int) -> int:
    """The sum of an integer of every rank before this one."""
    if not shard.distributed:
        return 0
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=shard.weights.device)
    counts[dist.get_rank()] = number
    return int(shard.count(counts)[: dist.get_rank()].sum())
