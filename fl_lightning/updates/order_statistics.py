"""Order statistics across clients by a network of compare-exchanges.

Sorting N rows of a million columns one column at a time wastes the machine's vector units. A sorting network applies the
same fixed sequence of `minimum`/`maximum` to whole rows instead: Batcher's odd-even merge network, cut down to what the
wanted ranks depend on (20 rows trimmed by 5 need 96 of 103 exchanges). Results are exact, whatever the order of rows.

A network of N rows has about N log2(N)^2 / 4 exchanges. On a CPU, sorting column by column overtakes it at some dozens of rows,
so longer columns are put side by side in memory and given to NumPy's vectorised sort.

K. E. Batcher, "Sorting networks and their applications", AFIPS Spring Joint Computer Conference, 1968,
https://doi.org/10.1145/1468075.1468121.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NETWORK_ROWS = 64
"""Most rows that go through a network on a CPU."""


class CompareExchange(NamedTuple):
    """One comparison of rows `low` < `high`; afterwards `low` holds the minimum and `high` the maximum."""

    low: int
    high: int
    minimum: bool  # whether anything later reads the minimum
    maximum: bool


@lru_cache(maxsize=256)
def network(n: int, first: int, last: int) -> tuple[CompareExchange, ...]:
    """The exchanges after which rows first..last-1 hold the order statistics of those ranks.

    Args:
        n: number of rows, at least 1.
        first: lowest wanted rank, 0-based.
        last: one past the highest wanted rank.
    """
    needed = set(range(first, last))
    kept = []
    for low, high in reversed(_odd_even_merge_sort(n)):
        if low in needed or high in needed:
            kept.append(CompareExchange(low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


def _odd_even_merge_sort(n: int) -> list[tuple[int, int]]:
    """Batcher's network for the next power of two, without exchanges that touch rows beyond n.

    Leaving them out is as if the missing rows held infinity: an exchange never moves it down.
    """
    pairs = []
    merged = 1
    while merged < n:
        stride = merged
        while stride >= 1:
            for base in range(stride % merged, n - stride, 2 * stride):
                lows = range(base, min(base + stride, n - stride))
                pairs += [(low, low + stride) for low in lows if low // (2 * merged) == (low + stride) // (2 * merged)]
            stride //= 2
        merged *= 2
    return pairs


def order_statistics(values: Tensor, first: int, last: int, scratch: Tensor | None = None) -> list[Tensor]:
    """The ranks first..last-1 of every column, ascending.

    Args:
        values: (N, c) float32, finite; left unchanged.
        first: lowest wanted rank, 0-based.
        last: one past the highest; 0 <= first < last <= N.
        scratch: (N + 1 or more, c or more) float32 on the CPU that is written over; memory of its own per exchange where left
            out.

    Returns:
        last - first tensors of shape (c,), some of which may be views of `values` or of `scratch`.

    Example:
        >>> order_statistics(torch.tensor([[3.0], [1.0], [2.0]]), 1, 2)
        [tensor([2.])]
    """
    assert 0 <= first < last <= len(values), f"ranks {first}..{last} of {len(values)} rows"
    exchanges = network(len(values), first, last)
    if scratch is None:
        rows = run_network(list(values), exchanges)
    else:
        arrays = _exchange_in_place(list(values.numpy()), list(scratch[:, : values.shape[1]].numpy()), exchanges)
        rows = [torch.from_numpy(row) for row in arrays]
    return rows[first:last]


def run_network(rows: list[Tensor], exchanges: tuple[CompareExchange, ...]) -> list[Tensor]:
    """Rows (c,) each after a network; those given are left as they are."""
    rows = list(rows)
    for low, high, minimum, maximum in exchanges:
        a, b = rows[low], rows[high]
        if minimum:
            rows[low] = torch.minimum(a, b)
        if maximum:
            rows[high] = torch.maximum(a, b)
    return rows


def _exchange_in_place(
    rows: list[np.ndarray], spare: list[np.ndarray], exchanges: tuple[CompareExchange, ...]
) -> list[np.ndarray]:
    """Run a network without allocating: a row moves into a spare one when it is first written, and gives it back when it moves
    on or is read no more. By NumPy, whose minima and maxima take two thirds of the time of PyTorch's."""
    ours = [False] * len(rows)  # whether a row lies in spare memory, where it may be written over
    for low, high, minimum, maximum in exchanges:
        a, b = rows[low], rows[high]
        if minimum and maximum:
            rows[low] = spare.pop()
            np.minimum(a, b, out=rows[low])
            rows[high] = b if ours[high] else spare.pop()
            np.maximum(a, b, out=rows[high])
            if ours[low]:
                spare.append(a)
            ours[low] = ours[high] = True
            continue
        at, other = (low, high) if minimum else (high, low)
        if not ours[at]:
            rows[at], ours[at] = spare.pop(), True
        (np.minimum if minimum else np.maximum)(a, b, out=rows[at])
        if ours[other]:  # nothing reads it any more
            spare.append(rows[other])
            ours[other] = False
    return rows


def trimmed_mean(values: Tensor, trim: int, scratch: Tensor | None = None) -> Tensor:
    """Mean of each column without its `trim` smallest and `trim` largest entries.

    Args:
        values: (N, c) float32, finite.
        trim: b, with N - 2b >= 1.
        scratch: memory to work in, see `order_statistics`.

    Returns:
        (c,) float32. The kept order statistics are added in ascending order (pairwise, beyond `NETWORK_ROWS` rows on a CPU), so
        neither the order of rows nor the number of columns matters to a bit.

    Example:
        >>> trimmed_mean(torch.tensor([[0.0], [1.0], [5.0], [100.0]]), 1)
        tensor([3.])
    """
    n = len(values)
    if n > NETWORK_ROWS and values.device.type == "cpu":
        return _trimmed_mean_of_sorted(values, trim)
    return mean_of_ascending(order_statistics(values, trim, n - trim, scratch))


def mean_of_ascending(rows: list[Tensor]) -> Tensor:
    """(c,) mean of rows (c,) each, added one after the other."""
    total = rows[0] + 0.0  # +0, so that a sum of zeros is +0 whatever their signs
    for row in rows[1:]:
        total += row
    total /= len(rows)
    return total


def _trimmed_mean_of_sorted(values: Tensor, trim: int) -> Tensor:
    columns = np.ascontiguousarray(values.detach().numpy().T)  # (c, N)
    columns.sort(axis=1)
    kept = columns[:, trim : len(values) - trim]
    return torch.from_numpy(kept.sum(axis=1) + np.float32(0)) / kept.shape[1]


def median(values: Tensor) -> Tensor:
    """(c,) median of each column of (N, c); the mean of the two middle entries where N is even."""
    return trimmed_mean(values, (len(values) - 1) // 2)
