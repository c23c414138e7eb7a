"""What cannot be put back, as far as it can be looked at: whether it has changed, and how to call it.

A look may miss a change, such as that of one number among millions. It is taken twice in a run, to name a cause.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.own_code import ATOMS, Cached

MOST_NUMBERS = 2**20
"""Of an array, evenly spaced."""

MOST_ENTRIES = 100_000
"""Of a container."""


def fingerprint(value: Any) -> object:
    """Something that is most likely another one where the value is.

    >>> counts = np.zeros(3)
    >>> before = fingerprint(counts)
    >>> counts += 1
    >>> fingerprint(counts) == before
    False
    """
    try:
        if isinstance(value, Cached):
            return value.cache_info()[1]  # hits come without a change
        if isinstance(value, Tensor):
            return mark(value), of_numbers(value.detach().flatten()) if value.layout == torch.strided else None
        if isinstance(value, np.ndarray):
            return None if isinstance(value, np.memmap) else of_numbers(value.reshape(-1))  # a look at which reads a disk
        if isinstance(value, io.IOBase):
            return value.tell()
        if isinstance(value, dict):
            return len(value), marks(value.values())
        if isinstance(value, (list, tuple)):
            return len(value), marks(value)
        return marks(vars(value).values())
    except Exception:  # whatever a user's object may do when it is looked at
        return None


def of_numbers(values: Any) -> object:
    """The same of (n,) numbers in a tensor or array."""
    some = values[:: max(1, len(values) // MOST_NUMBERS)]
    if isinstance(some, Tensor):
        some = some.cpu().view(torch.uint8).numpy()
    return marks(some) if some.dtype == object else zlib.crc32(some.tobytes())


def marks(values: Iterable[Any]) -> list[object]:
    """Which entries a container has, and how long these are."""
    return [mark(value) for value in islice(values, MOST_ENTRIES)]


def mark(value: Any) -> object:
    """The value where it never changes, else which object it is, how long, and how often PyTorch saw it change."""
    if isinstance(value, ATOMS):
        return repr(value)
    length = len(value) if hasattr(value, "__len__") else None
    return id(value), length, None if not isinstance(value, Tensor) or value.is_inference() else value._version


def described(path: str, value: Any) -> str:
    """What a value that cannot be put back is called in a message.

    >>> described("client.table", np.zeros(2**22))
    'client.table (ndarray of 34 MB)'
    """
    if isinstance(value, Cached):
        return f"{path} (which keeps results by functools.lru_cache)"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{path} ({type(value).__name__} of {value.nbytes / 1e6:.0f} MB)"
    if isinstance(value, (dict, list, tuple)):
        return f"{path} ({type(value).__name__} of {len(value)} entries)"
    return f"{path} ({type(value).__name__})"
