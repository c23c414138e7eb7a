"""Order statistics across clients by a network of compare-exchanges.

Sorting N rows of a million columns one column at a time wastes the machine's vector units. A sorting network applies the
same fixed sequence of `minimum`/`maximum` to whole rows instead: Batcher's odd-even merge network, cut down to what the
wanted ranks depend on (20 rows trimmed by 5 need 91 of 97 exchanges). Results are exact, whatever the order of rows.

A network of N rows has about N log2(N)^2 / 4 exchanges. On a CPU, sorting column by column overtakes it at some dozens of rows,
so longer columns are put side by side in memory and given to NumPy's vectorised sort.

K. E. Batcher, "Sorting networks and their applications", AFIPS Spring Joint Computer Conference, 1968,
https://doi.org/10.1145/1468075.1468121.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl_lightning.updates.division import divide_
from fl_lightning.updates.overflow import mend

NETWORK_ROWS = 64
"""Most rows that go through a network on a CPU."""

GUARD = 1e-9
"""Keeps products such as .2 * 20 from landing on the wrong side of the integer that they stand for."""


class CompareExchange(NamedTuple):
    """One comparison of two rows; afterwards `low` holds the minimum and `high` the maximum."""

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
    pairs: list[tuple[int, int]] = []
    rank = {row: rank for rank, row in enumerate(_sort(list(range(n)), pairs))}
    needed = set(range(first, last))
    kept = []
    for low, high in reversed([(rank[a], rank[b]) for a, b in pairs]):  # any row may be called by its final rank
        if low in needed or high in needed:
            kept.append(CompareExchange(low, high, low in needed, high in needed))
            needed |= {low, high}
    return tuple(reversed(kept))


def _sort(rows: list[int], pairs: list[tuple[int, int]]) -> list[int]:
    """The rows in the order in which they are ascending, after the exchanges that are added to `pairs`."""
    half = len(rows) // 2
    return _merge(_sort(rows[:half], pairs), _sort(rows[half:], pairs), pairs) if half else rows


def _merge(a: list[int], b: list[int], pairs: list[tuple[int, int]]) -> list[int]:
    """Two ascending runs as one: Batcher's odd-even merge, for runs of any two lengths."""
    if not a or not b:
        return a + b
    if len(a) == len(b) == 1:
        pairs.append((a[0], b[0]))
        return a + b
    even, odd = _merge(a[::2], b[::2], pairs), _merge(a[1::2], b[1::2], pairs)
    inner = list(zip(odd, even[1:], strict=False))  # of neighbours either may be the lower one
    pairs += inner
    return [even[0], *chain.from_iterable(inner), *odd[len(inner) :], *even[1 + len(inner) :]]


def order_statistics(values: Tensor, first: int, last: int, scratch: Tensor | None = None) -> list[Tensor]:
    """The ranks first..last-1 of every column, ascending.

    Args:
        values: (N, c) float32, finite; left unchanged.
        first: lowest wanted rank, 0-based.
        last: one past the highest; 0 <= first < last <= N.
        scratch: (N + 1 or more, c or more) float32 on the CPU that a network writes over; memory of its own per exchange where
            left out.

    Returns:
        last - first tensors of shape (c,), some of which may be views of `values` or of `scratch`.

    Example:
        >>> order_statistics(torch.tensor([[3.0], [1.0], [2.0]]), 1, 2)
        [tensor([2.])]
    """
    assert 0 <= first < last <= len(values), f"ranks {first}..{last} of {len(values)} rows"
    if by_sorting(values):
        return list(torch.from_numpy(np.ascontiguousarray(sorted_columns(values)[:, first:last].T)))
    if scratch is None:
        return run_network(list(values), network(len(values), first, last))[first:last]
    found, places = operations(len(values), first, last)
    arrays = [*values.numpy(), *scratch[: len(values) + 1, : values.shape[1]].numpy()]
    for function, a, b, out in found:
        function(arrays[a], arrays[b], out=arrays[out])
    return [torch.from_numpy(arrays[place]) for place in places]


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


class Operation(NamedTuple):
    """A minimum or maximum of two places, written into a third."""

    function: Callable[..., np.ndarray]
    a: int
    b: int
    out: int


@lru_cache(maxsize=256)
def operations(n: int, first: int, last: int) -> tuple[tuple[Operation, ...], list[int]]:
    """A network without allocation, and the places of the wanted ranks afterwards.

    Places 0..n-1 are rows that are only read. Beyond are n + 1 spare ones: a row moves into one when it is first written, and
    gives it back when it moves on or is read no more. NumPy's minima and maxima take two thirds of the time of PyTorch's.
    """
    place, spare = list(range(n)), list(range(n, 2 * n + 1))
    found = []
    for low, high, minimum, maximum in network(n, first, last):
        a, b = place[low], place[high]
        if minimum:
            place[low] = a if a >= n and not maximum else spare.pop()
            found.append(Operation(np.minimum, a, b, place[low]))
        if maximum:
            place[high] = b if b >= n else spare.pop()
            found.append(Operation(np.maximum, a, b, place[high]))
        held = {place[row] for row, read in ((low, minimum), (high, maximum)) if read}
        spare += [at for at in (a, b) if at >= n and at not in held]
    return tuple(found), place[first:last]


def trimmed_mean(values: Tensor, trim: int, scratch: Tensor | None = None) -> Tensor:
    """Mean of each column without its `trim` smallest and `trim` largest entries.

    Args:
        values: (N, c) float32, finite.
        trim: b, with N - 2b >= 1.
        scratch: memory to work in, see `order_statistics`.

    Returns:
        (c,) float32. The kept order statistics are added in ascending order (pairwise, beyond `NETWORK_ROWS` rows on a CPU), so
        neither the order of rows nor the number of columns matters to a bit. Where float32 does not hold the sum, it is taken
        in float64.

    Example:
        >>> trimmed_mean(torch.tensor([[0.0], [1.0], [5.0], [100.0]]), 1)
        tensor([3.])
    """
    means = trimmed_mean_within_range(values, trim, scratch)
    return mend(means, [(slice(None), values)], lambda columns: trimmed_mean_within_range(columns, trim))


def trimmed_mean_within_range(values: Tensor, trim: int, scratch: Tensor | None = None) -> Tensor:
    """The same, but an infinity or NaN where the type of `values`, float32 or float64, does not hold the sum."""
    n = len(values)
    if by_sorting(values):
        kept = sorted_columns(values)[:, trim : n - trim]
        with np.errstate(over="ignore", invalid="ignore"):
            return torch.from_numpy(kept.sum(axis=1) + np.float32(0)) / kept.shape[1]
    return mean_of_ascending(order_statistics(values, trim, n - trim, scratch))


def mean_of_ascending(rows: list[Tensor]) -> Tensor:
    """(c,) mean of rows (c,) each, added one after the other."""
    total = rows[0] + 0.0  # +0, so that a sum of zeros is +0 whatever their signs
    for row in rows[1:]:
        total += row
    return divide_(total, len(rows))


def trim_count(num_clients: int, alpha: float) -> int:
    """b = ceil(alpha * N), entries trimmed from each tail."""
    return math.ceil(alpha * num_clients - GUARD)


def by_sorting(values: Tensor) -> bool:
    """Whether a network of so many rows would take longer."""
    return len(values) > NETWORK_ROWS and values.device.type == "cpu"


def sorted_columns(values: Tensor) -> np.ndarray:
    """(c, N), the columns of (N, c) side by side, each in ascending order."""
    columns = np.ascontiguousarray(values.detach().numpy().T)
    columns.sort(axis=1)
    return columns


def median(values: Tensor) -> Tensor:
    """(c,) median of each column of (N, c); the mean of the two middle entries where N is even."""
    return trimmed_mean(values, (len(values) - 1) // 2)
