"""The invariant aggregator's inner loop as one kernel for GPUs: a thread holds all N entries of its columns in registers.

The source is written out for a number of clients and compiled by Triton: a network of compare-exchanges has no loop, and
registers no index. The updates are read once, wherever their rows begin.

P. Tillet, H. T. Kung, D. Cox, "Triton: an intermediate language and compiler for tiled neural network computations", MAPL
2019, https://doi.org/10.1145/3315508.3329973.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fl_lightning.updates.order_statistics import network

WARPS = 4
THREADS = 32 * WARPS


def columns_per_thread(n: int) -> int:
    """So many that about forty loads are under way at once; more take registers that other threads would have.

    >>> [columns_per_thread(n) for n in (8, 20, 64)]
    [4, 2, 1]
    """
    return 4 if n <= 12 else 2 if n <= 32 else 1


def source(n: int, b: int, votes: bool) -> str:
    """A kernel `trim` in Triton's language.

    Args:
        n: rows N.
        b: entries trimmed from each tail, with N - 2b >= 1.
        votes: whether signs are counted.
    """
    lines = ["column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)", "inside = column < width"]
    for i in range(n):
        lines += ["row = values + column" if i == 0 else "row += stride", f"r{i} = tl.load(row, inside, 0.0)"]
    if votes:
        lines += [f"votes = {'votes + ' * (i > 0)}(r{i} > 0).to(tl.int32) - (r{i} < 0).to(tl.int32)" for i in range(n)]
    for low, high, minimum, maximum in network(n, b, n - b):
        lines += [f"smaller = tl.minimum(r{low}, r{high})"] * minimum
        lines += [f"r{high} = tl.maximum(r{low}, r{high})"] * maximum
        lines += [f"r{low} = smaller"] * minimum
    lines.append(f"total = r{b}")
    lines += [f"total = total + r{i}" for i in range(b + 1, n - b)]
    lines.append("total = tl.where(total == 0, 0.0, total)")  # a sum of zeros is +0 whatever their signs
    lines.append(f"mean = tl.div_rn(total, tl.full([BLOCK], {n - 2 * b}, tl.float32))")
    if votes:
        lines += ["kept = (votes >= least) | (votes <= -least)", "mean = tl.where(kept, mean, 0.0)"]
        lines.append("tl.store(of_kept + column, kept.to(tl.uint8), inside)")
    lines.append("tl.store(of_mean + column, mean, inside)")
    head = """import triton
import triton.language as tl


@triton.jit(do_not_specialize=["stride", "width", "least"])
def trim(values, stride, of_mean, of_kept, width, least, BLOCK: tl.constexpr):
"""
    return head + "".join(f"    {line}\n" for line in lines)


def trim_kernel(n: int, b: int, least_votes: int | None) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A kernel for finite updates on a GPU, (N, s) float32 with columns side by side: the two parts of `trimming.Trimmed`.

    Raises:
        ImportError: without Triton.
    """
    name, code = (
        f"<trimmed mean of {n} rows without {b}, {'un' * (least_votes is None)}masked>",
        source(n, b, least_votes is not None),
    )
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name  # where Triton looks for it
    defined: dict[str, Any] = {"__name__": __name__}
    exec(compile(code, name, "exec"), defined)
    kernel, block = defined["trim"], THREADS * columns_per_thread(n)

    def run(bucket: Tensor) -> tuple[Tensor, Tensor]:
        width = bucket.shape[1]
        mean, kept = bucket.new_empty(width), torch.ones(width, dtype=torch.uint8, device=bucket.device)
        grid = (-(-width // block),)
        kernel[grid](bucket, bucket.stride(0), mean, kept, width, least_votes or 0, BLOCK=block, num_warps=WARPS)
        return mean, kept.view(torch.bool)

    return run
