"""How much a client counts under a coordinate-wise rule: on which share of the coordinates its entry survives."""

import torch
from torch import Tensor

from fl_lightning.updates.order_statistics import order_statistics
from fl_lightning.updates.shard import CACHE_ELEMENTS, UpdateShard
from fl_lightning.updates.trimming import GPU_ELEMENTS


def judge_by_coordinates(shard: UpdateShard, trim: int, kept: Tensor | None = None) -> None:
    """Set `UpdateShard.verdict` to the share of all d coordinates on which a client survives trimming and mask.

    An entry survives trimming if it lies between the least and the largest entry that is kept, so that clients who tie with one
    of these all survive. Coordinates are counted, which is exact in any order. Takes about as long as trimming does.

    Args:
        shard: N finite updates.
        trim: b, entries trimmed from each tail of a column, with N - 2b >= 1.
        kept: (S,) bool, the coordinates that a mask lets move; all where left out.

    Example:
        >>> shard = UpdateShard.from_updates(torch.tensor([[0.0, 1.0], [1.0, 1.0], [5.0, 2.0], [9.0, 9.0]]))
        >>> judge_by_coordinates(shard, 1)
        >>> shard.verdict
        tensor([0.5000, 1.0000, 1.0000, 0.0000])
    """
    n = shard.num_clients
    counts = torch.zeros(n, dtype=torch.int64, device=shard.weights.device)
    step = max(256, (GPU_ELEMENTS if counts.is_cuda else CACHE_ELEMENTS) // n)
    for columns, bucket in shard.columns():
        masks = bucket.new_ones(bucket.shape[1], dtype=torch.bool) if kept is None else kept[columns]
        for values, mask in zip(bucket.split(step, 1), masks.split(step), strict=True):
            counts += (survivors(values, trim) & mask).sum(1)
    shard.judge(shard.count(counts) / shard.num_coordinates, most=1.0)


def survivors(values: Tensor, trim: int) -> Tensor:
    """(N, c) float32 -> (N, c) bool, which entries lie within what is kept of their column."""
    if not trim:
        return torch.ones_like(values, dtype=torch.bool)
    ordered = order_statistics(values, trim, len(values) - trim)
    return (values >= ordered[0]) & (values <= ordered[-1])
