"""A few coordinates of a vector that lies on several ranks, on all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_lightning.updates.layers import Layer
from fl_lightning.updates.shard import UpdateShard


def entries(shard: UpdateShard, values: Tensor, coordinates: Tensor) -> Tensor:
    """What stands at some of all d coordinates, exactly, on every rank.

    Args:
        shard: of the coordinates.
        values: (S,) float32 of this rank's.
        coordinates: (m,) int64 from 0 to d - 1, the same on all ranks.

    Returns:
        (m,) float32, on the shard's device.

    Example:
        >>> shard = UpdateShard.from_updates(torch.zeros(1, 3))
        >>> entries(shard, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0]))
        tensor([3., 1.])
    """
    here = coordinates.to(values.device) - shard.start
    own = (here >= 0) & (here < len(values))
    bits = torch.zeros(len(here), dtype=torch.int32, device=values.device)
    bits[own] = values[here[own]].contiguous().view(torch.int32)
    return shard.count(bits).view(torch.float32)  # all ranks but one add zeros


def of_tensor(shard: UpdateShard, values: Tensor, layer: Layer) -> Tensor:
    """A whole parameter tensor of such a vector, in its shape, on every rank; for small ones."""
    return entries(shard, values, torch.arange(layer.start, layer.stop)).view(layer.shape)


def add_to_tensor(shard: UpdateShard, values: Tensor, layer: Layer, whole: Tensor) -> None:
    """Add to a parameter tensor of such a vector in place; each rank its own part of `whole`, which is of its shape."""
    columns = layer.columns(shard.start, shard.width)
    first = shard.start + columns.start - layer.start
    values[columns] += whole.flatten()[first : first + columns.stop - columns.start].to(values)
