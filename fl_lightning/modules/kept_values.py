"""Values that change in place as a whole, such as tensors: how they are kept, and put back into the same object.

Each way to keep one is called with the object and gives what was kept for as long as that is what the object holds, else None;
`put` writes it back.
"""

from __future__ import annotations

import io
import sys
from array import array
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fl_lightning.modules.bits import same_bits

LARGEST_BYTES = 2**24
"""Of what is kept by its values, as all of it is read whenever something may have changed."""

LARGEST_COUNTED_BYTES = 2**28
"""Of a tensor that is kept by PyTorch's own count of its changes, which does not know those of `tensor.data`."""

BUFFERS = (io.StringIO, io.BytesIO)
"""Files in memory, which can be written back."""

NUMBERS = (float, complex, np.inexact)
"""Those that may be NaN."""


class Whole(Protocol):
    """A way to keep such a value.

    Attributes:
        values: what was kept.
    """

    values: Any

    def __call__(self, holder: Any, /) -> Any:
        """What was kept, if that is what the object holds, else None."""

    def put(self, holder: Any, content: Any, /) -> None:
        """Have the object hold what was kept."""


def is_whole(value: Any) -> bool:
    """Whether it is of a kind that `keep_whole` knows."""
    return isinstance(value, (Tensor, np.ndarray, array, bytearray, *BUFFERS)) or is_table(value)


def is_table(value: Any) -> bool:
    """Whether it is a DataFrame or a Series; pandas is not imported for that."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series))


def can_be_kept(value: Any) -> bool:
    """Whether a copy of a value of such a kind can be made and compared, and is not too large."""
    if isinstance(value, Tensor):
        odd = is_lazy(value) or value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided
        return not odd and value.nbytes <= (LARGEST_BYTES if value.is_inference() else LARGEST_COUNTED_BYTES)
    if isinstance(value, np.ndarray):
        return value.dtype != object and value.nbytes <= LARGEST_BYTES
    if isinstance(value, BUFFERS):
        return not value.closed and len(value.getvalue()) <= LARGEST_BYTES
    if isinstance(value, (array, bytearray)):
        return len(value) * getattr(value, "itemsize", 1) <= LARGEST_BYTES
    return bool(np.sum(value.memory_usage()) <= LARGEST_BYTES)


def keep_whole(value: Any) -> Whole:
    """Keep a value that can be kept.

    >>> counts = array("i", [1, 2])
    >>> kept = keep_whole(counts)
    >>> counts.append(3)
    >>> kept.put(counts, kept.values), counts
    (None, array('i', [1, 2]))
    """
    if isinstance(value, Tensor):
        return KeptTensor(value) if value.nbytes <= LARGEST_BYTES else CountedTensor(value)
    if isinstance(value, np.ndarray):
        return KeptArray(value)
    if isinstance(value, BUFFERS):
        return KeptBuffer(value)
    return KeptBytes(value) if isinstance(value, (array, bytearray)) else KeptTable(value)


class KeptTensor:
    """A tensor's values."""

    def __init__(self, tensor: Tensor) -> None:
        self.memory = tensor.data  # where they lie: `tensor.data = other` leads elsewhere
        self.values = tensor.detach().clone()

    def __call__(self, tensor: Tensor) -> Tensor | None:
        return self.values if same_bits(tensor, self.values) else None

    def put(self, tensor: Tensor, values: Tensor) -> None:
        if tensor.data_ptr() != self.memory.data_ptr() or tensor.shape != self.memory.shape:
            tensor.data = self.memory
        with torch.no_grad():
            tensor.copy_(values)


class CountedTensor(KeptTensor):
    """A tensor's values, looked at where its count of changes is another."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.count = tensor._version

    def __call__(self, tensor: Tensor) -> Tensor | None:
        if tensor._version == self.count and tensor.data_ptr() == self.memory.data_ptr() and tensor.shape == self.memory.shape:
            return self.values
        same = super().__call__(tensor)
        if same is not None and tensor.data_ptr() == self.memory.data_ptr():
            self.count = tensor._version
        return same


class KeptArray:
    """An array's values, as bytes."""

    def __init__(self, holder: np.ndarray) -> None:
        self.values = holder.tobytes()

    def __call__(self, holder: np.ndarray) -> bytes | None:
        return self.values if holder.tobytes() == self.values else None

    def put(self, holder: np.ndarray, values: bytes) -> None:
        holder[...] = np.frombuffer(values, dtype=holder.dtype).reshape(holder.shape)


class KeptBytes:
    """The same of Python's own arrays, which may become longer or shorter."""

    def __init__(self, holder: array[Any] | bytearray) -> None:
        self.values = holder[:]

    def __call__(self, holder: Any) -> Any:
        return self.values if bytes(holder) == bytes(self.values) else None  # as NaN is not itself

    def put(self, holder: Any, values: Any) -> None:
        holder[:] = values


class KeptBuffer:
    """A file in memory: what is written in it, and where it is read or written next."""

    def __init__(self, holder: io.StringIO | io.BytesIO) -> None:
        self.values: Any = holder.getvalue(), holder.tell()

    def __call__(self, holder: Any) -> Any:
        same = not holder.closed and (holder.getvalue(), holder.tell()) == self.values
        return self.values if same else None

    def put(self, holder: Any, values: Any) -> None:
        if holder.closed:  # for good
            return
        text, place = values
        holder.seek(0)
        holder.truncate()
        holder.write(text)
        holder.seek(place)


class KeptTable:
    """A DataFrame or Series: values, index, columns and attributes."""

    def __init__(self, table: Any) -> None:
        self.values = table.copy()

    def __call__(self, table: Any) -> Any:
        return self.values if alike(table, self.values) else None

    def put(self, table: Any, values: Any) -> None:
        table.__setstate__(values.copy().__getstate__())  # pandas has no public way to replace all of a table in place


def alike(one: Any, other: Any) -> bool:
    """Whether two tables are equal, their types and names included."""
    return (
        bool(one.equals(other))
        and same(dict(one.attrs), dict(other.attrs))
        and all(a.equals(b) and a.dtype == b.dtype and a.names == b.names for a, b in zip(one.axes, other.axes, strict=True))
    )


def same(one: Any, other: Any) -> bool:
    """Whether one stands for the other: the same object, or of one type and equal, NaN to NaN."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    try:
        if isinstance(one, Tensor):
            return same_bits(one, other)
        if isinstance(one, np.ndarray):
            return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(same, one, other))
        if is_table(one):
            return alike(one, other)
        return bool(one == other) or (isinstance(one, NUMBERS) and bool(one != one and other != other))
    except Exception:
        return False
