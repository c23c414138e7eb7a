"""What a module keeps in plain Python attributes: numbers, containers of them, tensors, generators.

Of such data a copy can be kept and put back. Anything else, such as functions, files and other modules, is left alone.
"""

from __future__ import annotations

import io
import pickle
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LARGE = 2**24
"""Bytes from which on a tensor or an array is left alone: modules may keep whole data sets."""

IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, torch.Size)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def is_data(value: Any) -> bool:
    """Whether it is something of which a copy can be kept.

    >>> is_data({"seen": [1, 2], "mean": torch.zeros(3)}), is_data(len), is_data([torch.nn.Linear(1, 1)])
    (True, False, False)
    """
    if isinstance(value, (*IMMUTABLE, *GENERATORS)):
        return True
    if isinstance(value, nn.Parameter):
        return False
    if isinstance(value, Tensor):
        return value.layout == torch.strided and value.untyped_storage().nbytes() < LARGE
    if isinstance(value, np.ndarray):
        return value.dtype != object and value.nbytes < LARGE
    if isinstance(value, Mapping):
        return type(value).__module__ in ("builtins", "collections") and all(map(is_data, (*value.keys(), *value.values())))
    return isinstance(value, (tuple, list, set, frozenset, deque)) and all(map(is_data, value))


def is_immutable(value: Any) -> bool:
    """Whether nothing can change in it, so that it is the same as long as it is the same object."""
    return isinstance(value, IMMUTABLE) or (isinstance(value, (tuple, frozenset)) and all(map(is_immutable, value)))


class ByValue(pickle.Pickler):
    """Tensors and generators by their values: PyTorch writes down where in memory they lie."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Generator):
            return generator_of, (obj.get_state().numpy().tobytes(), obj.device)
        if isinstance(obj, Tensor):
            raw = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            return tensor_of, (raw.numpy().tobytes(), obj.dtype, obj.shape, obj.device)
        return NotImplemented


def tensor_of(raw: bytes, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> Tensor:
    return (torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)).view(shape).to(device)


def generator_of(state: bytes, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(tensor_of(state, torch.uint8, torch.Size([len(state)]), torch.device("cpu")))
    return generator


def contents(value: Any) -> bytes:
    """A copy of data, equal to another one if nothing was changed in between."""
    written = io.BytesIO()
    ByValue(written).dump(value)
    return written.getvalue()


def refilled(value: Any, kept: bytes) -> Any:
    """Data as they were: the same object where what is in it can be put back, else a new one."""
    old = pickle.loads(kept)
    if isinstance(value, (list, deque)):
        value.clear()
        value.extend(old)
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(old)
    elif isinstance(value, Tensor) and value.shape == old.shape and value.dtype == old.dtype:
        with torch.no_grad():
            value.copy_(old)
    elif isinstance(value, np.ndarray) and value.shape == old.shape and value.dtype == old.dtype:
        value[...] = old
    elif isinstance(value, torch.Generator):
        value.set_state(old.get_state())
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = old.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        value.set_state(old.get_state())
    elif isinstance(value, random.Random):
        value.setstate(old.getstate())
    else:
        return old
    return value
