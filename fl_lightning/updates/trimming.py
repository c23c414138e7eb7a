"""The trimmed mean of all updates, and the mask of their signs, in one pass over them.

This is the invariant aggregator's inner loop (X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending
against Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834, Algorithm 1). A piece of the updates
goes through the network of `order_statistics` while it is in the cache. Compiled, all of it is one loop over the columns: by
`torch.compile` on a CPU, where that takes two to three times as long for twenty clients as reading their updates once, by
`triton_trimming` on a GPU. All ways give the same bits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fl_lightning.errors import first_line
from fl_lightning.updates.cache import working_set_bytes
from fl_lightning.updates.order_statistics import (
    NETWORK_ROWS,
    mean_of_ascending,
    network,
    order_statistics,
    run_network,
    trimmed_mean_within_range,
)
from fl_lightning.updates.overflow import mend
from fl_lightning.updates.shard import CACHE_ELEMENTS, UpdateShard
from fl_lightning.updates.triton_trimming import trim_kernel

log = logging.getLogger(__name__)

COMPILED_ROWS = 64
"""Most rows that are worth compiling, which takes about half a second for each."""

COMPILED_COLUMNS = 2**21
"""Least columns that a compiled kernel is given at a time on a CPU, where there are so many. Where freed memory is not kept,
what it returns for more lies in memory that the system has to hand out, and takes back, every time."""

GPU_ELEMENTS = 2**26
"""Elements (N x columns) that are worked on at a time on a GPU: as many again are taken for results in between."""


class Trimmed(NamedTuple):
    """What becomes of a round's updates.

    Attributes:
        mean: (S,) float32, the trimmed mean; 0 at coordinates that are not kept.
        kept: (S,) bool, where enough signs agree; everywhere, if that was not asked for.
    """

    mean: Tensor
    kept: Tensor


def trimmed(shard: UpdateShard, b: int, least_votes: int | None = None) -> Trimmed:
    """Mean of the order statistics b+1 .. N-b of every coordinate, where |sum_i sign(g_ik)| is large enough.

    Args:
        shard: N finite updates.
        b: entries trimmed from each tail, with N - 2b >= 1.
        least_votes: the least |sum of signs| that is kept, in [0, N]; without it everything is.

    Example:
        >>> shard = UpdateShard.from_updates(torch.tensor([[1.0, 0.3], [2.0, -0.2], [3.0, 0.1], [-90.0, -1.2]]))
        >>> trimmed(shard, 1, least_votes=2).mean
        tensor([1.5000, 0.0000])
    """
    n = shard.num_clients
    kernel = compiled(n, b, least_votes, shard.weights.device) if shard.compiled and n <= COMPILED_ROWS else None
    parts = []
    for bucket in shard.buckets:
        narrow = bucket.shape[1] < 2  # a width that compilers make a special case of
        parts.append(_trim_eagerly(bucket, b, least_votes) if kernel is None or narrow else kernel(bucket))
    means, masks = zip(*parts, strict=True)
    mean = means[0] if len(means) == 1 else torch.cat(means)
    mend(mean, shard.columns(), lambda columns: trimmed_mean_within_range(columns, b))
    return Trimmed(mean, masks[0] if len(masks) == 1 else torch.cat(masks))


def _trim_eagerly(bucket: Tensor, b: int, least_votes: int | None) -> tuple[Tensor, Tensor]:
    """(N, s) -> (s,) mean and mask, a piece at a time."""
    n, s = bucket.shape
    mean, kept = bucket.new_empty(s), torch.ones(s, dtype=torch.bool, device=bucket.device)
    on_cpu, by_network = bucket.device.type == "cpu", n <= NETWORK_ROWS
    elements = GPU_ELEMENTS if not on_cpu else working_set_bytes() // 4 if by_network else CACHE_ELEMENTS
    columns = max(256, elements // n)
    scratch = torch.empty(n + 1, min(columns, s)) if on_cpu and by_network else None
    for piece, of_mean, of_kept in zip(bucket.split(columns, 1), mean.split(columns), kept.split(columns), strict=True):
        if least_votes is None:
            of_mean.copy_(trimmed_mean_within_range(piece, b, scratch))
        else:
            for out, found in zip((of_mean, of_kept), masked_trimmed_mean(piece, b, least_votes, scratch), strict=True):
                out.copy_(found)
    return mean, kept


def masked_trimmed_mean(values: Tensor, b: int, least_votes: int, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Trimmed mean and mask of a piece: (N, c) float32 -> (c,) float32, 0 where masked, and (c,) bool.

    The mean is not finite where float32 does not hold the sum.

    In ascending order a column is Q negative entries, zeros, and P positive ones. Be e = ceil((N + least) / 2). If the e-th
    entry from the end is positive, then P >= e and P - Q >= 2e - N >= least. If it is negative, then P < e, Q > N - e and
    P - Q < least. Only where it is zero the votes must be counted. Likewise for Q - P with the e-th entry from the start.

    Args:
        values: (N, c), finite.
        b: entries trimmed from each tail.
        least_votes: the least |P - Q| that is kept.
        scratch: memory for a network, see `order_statistics`; the votes are always counted where there is none.
    """
    n = len(values)
    if scratch is None:
        mean, kept = trimmed_mean_within_range(values, b), _count_votes(values) >= least_votes
    else:
        enough = -(-(n + least_votes) // 2)
        first, last = min(b, n - enough), max(n - b, enough)
        rows = order_statistics(values, first, last, scratch)
        mean = mean_of_ascending(rows[b - first : n - b - first])
        # NumPy compares several times faster than PyTorch.
        from_end, from_start = rows[n - enough - first].numpy(), rows[enough - 1 - first].numpy()
        if from_end.all() and from_start.all():
            kept = torch.from_numpy((from_end > 0) | (from_start < 0))
        else:
            kept = _count_votes(values) >= least_votes
    # Zero where masked: all bits of the others are kept. Ten times faster than `torch.where`.
    mean.view(torch.int32).bitwise_and_(kept.to(torch.int32).neg_())
    return mean, kept


def _count_votes(values: Tensor) -> Tensor:
    """(N, c) -> (c,) |sum of signs|; sums of integers up to N are exact in any order."""
    return values.sign().sum(0).abs()


# ---- compiled --------------------------------------------------------------------------------------------------------


Trim = Callable[[Tensor], tuple[Tensor, Tensor]]
"""(N, s) float32 -> (s,) mean and mask, as `_trim_eagerly`."""


@lru_cache(maxsize=32)
def compiled(n: int, b: int, least_votes: int | None, device: torch.device) -> Trim | None:
    """The whole of `_trim_eagerly` in one kernel for any number of columns above 1, bit for bit the same.

    Takes seconds for a new (n, b, least_votes) and tells so; None, and a warning, where there is no compiler.
    """
    began = time.perf_counter()
    # On a CPU at odd addresses, so that none is taken for granted. Triton has a kernel of its own for those, which are rare.
    first = 5 if device.type == "cpu" else 0
    try:
        run = (_compiled_on_cpu if device.type == "cpu" else trim_kernel)(n, b, least_votes)
        run(torch.zeros(n, 1032, device=device)[:, first : first + 1026])
    except Exception as error:  # those of compilers, linkers and drivers have no base of their own
        log.warning("the rule's inner loop cannot be compiled, and runs as it is, several times slower: %s", first_line(error))
        return None
    log.info("compiled the rule's inner loop for %d clients in %.1f s", n, time.perf_counter() - began)
    return run


def _compiled_on_cpu(n: int, b: int, least_votes: int | None) -> Trim:
    exchanges = network(n, b, n - b)

    def kernel(rows: list[Tensor], of_mean: Tensor, of_kept: Tensor) -> None:
        votes = rows[0].sign() if least_votes is not None else rows[0]
        for row in rows[1:] if least_votes is not None else []:
            votes = votes + row.sign()
        rows = run_network(rows, exchanges)
        total = rows[b]
        for row in rows[b + 1 : n - b]:
            total = total + row
        total = torch.where(total == 0, 0.0, total)  # compilers drop the + 0.0 that gives zeros their sign
        mean = total / (n - 2 * b)
        kept = votes.abs() >= least_votes if least_votes is not None else None
        of_mean.copy_(mean if kept is None else torch.where(kept, mean, 0.0))
        if kept is not None:
            of_kept.copy_(torch.where(kept, 1.0, 0.0).to(torch.uint8))  # kernels that store truth values are slow

    # By default as few as 64 operations are put into one loop, and what they pass on is written to memory.
    function = torch.compile(kernel, dynamic=True, fullgraph=True, options={"max_fusion_size": 2**16})

    def alone(matrix: Tensor) -> list[Tensor]:
        """Its rows as tensors of their own: views would tie the kernel to the shape of what they are views of."""
        return [torch.from_numpy(row) for row in matrix.numpy()]

    @torch.no_grad()  # whether gradients are on would be a case of its own
    def run(bucket: Tensor) -> tuple[Tensor, Tensor]:
        s = bucket.shape[1]
        mean, kept = bucket.new_empty(1, s), torch.ones(1, s, dtype=torch.uint8)
        pieces = max(1, s // COMPILED_COLUMNS)
        for piece, of_mean, of_kept in zip(*(tensor.tensor_split(pieces, -1) for tensor in (bucket, mean, kept)), strict=True):
            with torch._dynamo.config.patch(recompile_limit=1000):
                function(alone(piece), *alone(of_mean), *alone(of_kept))
        return mean[0], kept[0].view(torch.bool)

    return run
