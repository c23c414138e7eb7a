"""Buckets of a shard that are still on their way when the shard is handed out.

The transfer of a bucket goes on while a rule works on the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from torch import Tensor

Finish = Callable[[], Tensor]
"""Waits for a transfer and gives the bucket."""


class ArrivingBuckets(Sequence[Tensor]):
    """A shard's buckets, each received when it is first asked for, with the next one's transfer begun at that moment.

    Transfers are begun in order, and all ranks must have begun the same ones when they come to any other collective; whoever
    calls one has all buckets arrive first (`UpdateShard.settle`), so rules need not think of it.

    Args:
        begin: begins the next transfer. Called once per bucket.
        number: of buckets.
        width: S, their columns together.
    """

    def __init__(self, begin: Callable[[], Finish], number: int, width: int) -> None:
        self.width = width
        self._begin, self._number = begin, number
        self._arrived: list[Tensor] = []
        self._on_its_way = begin() if number else None

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, i: int) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor]: ...
    def __getitem__(self, i: int | slice) -> Tensor | list[Tensor]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(self._number))]
        i = range(self._number)[i]  # raises IndexError
        while len(self._arrived) <= i:
            assert self._on_its_way is not None
            self._arrived.append(self._on_its_way())
            self._on_its_way = None  # and with it what was sent, before room is made for the next
            if len(self._arrived) < self._number:
                self._on_its_way = self._begin()
        return self._arrived[i]


class RowsOf(Sequence[Tensor]):
    """Some rows of buckets that may still be on their way: views of them."""

    def __init__(self, buckets: ArrivingBuckets | RowsOf, rows: slice) -> None:
        self._buckets, self._rows = buckets, rows
        self.width = buckets.width

    def __len__(self) -> int:
        return len(self._buckets)

    @overload
    def __getitem__(self, i: int) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> list[Tensor]: ...
    def __getitem__(self, i: int | slice) -> Tensor | list[Tensor]:
        return [bucket[self._rows] for bucket in self._buckets[i]] if isinstance(i, slice) else self._buckets[i][self._rows]
