"""What tests of shards share."""

import torch
from torch import Tensor

from fl_lightning.updates.shard import UpdateShard


def drawn(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cut(updates: Tensor, *widths: int, **settings) -> UpdateShard:
    """The shard with updates in buckets of these widths."""
    n, d = updates.shape
    return UpdateShard(
        updates.split(list(widths), dim=1), torch.ones(n), torch.zeros(n, dtype=torch.bool), num_coordinates=d, **settings
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
