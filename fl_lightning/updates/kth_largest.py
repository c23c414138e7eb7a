"""The k-th largest magnitude of each update, whose coordinates lie on several ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_lightning.updates.shard import UpdateShard


def kth_largest(shard: UpdateShard, count: int, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `count`-th largest |g_ik| over all coordinates k of every update i, exactly, the same on any number of ranks.

    The bits of a non-negative float order like integers, so it is found byte by byte, from histograms that are added over
    ranks: four passes over the updates.

    Args:
        shard: N updates without NaN; left as they are.
        count: from 0 to the number of coordinates; 0 gives infinities.
        among: (S,) bool, the coordinates of this rank that are looked at; all of them where left out.

    Returns:
        (N,) float32 the magnitudes, and (N,) int64 how many entries of just that magnitude are among the `count` largest.

    Example:
        >>> kth_largest(UpdateShard.from_updates(torch.tensor([[1.0, -3.0, 2.0], [5.0, 5.0, -5.0]])), 2)
        (tensor([2., 5.]), tensor([1, 2]))
    """
    n, device = shard.num_clients, shard.weights.device
    if count == 0:
        return torch.full((n,), torch.inf, device=device), torch.zeros(n, dtype=torch.int64, device=device)
    shard.settle()
    found = torch.zeros(n, dtype=torch.int32, device=device)  # bytes that are not known yet are 0
    left = torch.full((n,), count, dtype=torch.int64, device=device)  # wanted of those that share the known bytes
    for shift in (24, 16, 8, 0):
        histograms = torch.zeros(n, 256, dtype=torch.int64, device=device)
        for columns, bucket in shard.columns():
            for i, row in enumerate(bucket):
                bits = (row if among is None else row[among[columns]]).abs().view(torch.int32)
                same = bits if shift == 24 else bits[(bits >> (shift + 8)) == (found[i] >> (shift + 8))]
                histograms[i] += torch.bincount((same >> shift) & 0xFF, minlength=256)
        at_least = shard.count(histograms).flip(1).cumsum(1).flip(1)  # (N, 256) entries whose byte is this or higher
        byte = (at_least >= left[:, None]).sum(1, keepdim=True) - 1
        above = torch.nn.functional.pad(at_least, (0, 1)).gather(1, byte + 1)
        left -= above.squeeze(1)
        found |= (byte.squeeze(1) << shift).int()
    return found.view(torch.float32), left
