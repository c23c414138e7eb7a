"""Objects as plain data, for the record of a run that was put together in Python: class and arguments, as in YAML."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_lightning.bits import as_bytes
from fl_lightning.function_settings import settings_of

DEPTH = 8
"""How far objects are followed into what they hold, which may lead back to themselves."""

MOST = 100
"""Entries of a list or mapping that are written down one by one."""

FROM_AROUND = 2
"""The same for what functions take from around them."""

SAYS_ITSELF = (os.PathLike, torch.dtype, torch.device, complex, bytes, Decimal, Fraction, date, time, timedelta, re.Pattern)
"""Values that are told by their text."""

OF_EVERY_MODULE = {"training", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"}

UNKNOWN = object()


def describe(value: Any, depth: int = DEPTH) -> Any:
    """A value as JSON and YAML can hold it.

    Of an object: its class, and those arguments of the constructor that it keeps, in itself or in one of its parts. Where some
    are not to be found, `holds` tells what it holds in their place. Tensors are told by a digest, data sets by their length
    and their classes, functions by their names and what they take from around them; see `settings_of`.

    Example:
        >>> from fl_lightning.aggregators import Invariant
        >>> describe(Invariant(tau=0.5))["init_args"]["tau"]
        0.5
    """
    if isinstance(value, Enum):
        return f"{path(type(value))}.{value.name}"
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, SAYS_ITSELF):
        return str(value)
    if isinstance(value, (Tensor, np.ndarray)):
        return digest(torch.as_tensor(value))
    if depth == 0:
        return {"class_path": path(type(value))}
    if isinstance(value, (Mapping, list, tuple, set, frozenset)) and len(value) > MOST:
        return {"class_path": path(type(value)), "items": len(value)} | of_plain(value)
    if isinstance(value, Mapping):
        return {str(key): describe(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, (set, frozenset)):  # in an order that is the same in every process
        return sorted((describe(entry, depth - 1) for entry in value), key=repr)
    if type(value) in (list, tuple, range):
        return [describe(entry, depth - 1) for entry in value]
    if isinstance(value, functools.partial):
        made = {"class_path": path(value.func)} if isinstance(value.func, type) else describe(value.func, depth - 1)
        given = {"init_args": describe(value.keywords, depth - 1)}
        return made | given | ({"args": describe(value.args, depth - 1)} if value.args else {})
    if isinstance(value, type):
        return {"class_path": path(value)}
    if inspect.isroutine(value):
        owner = {"of": describe(value.__self__, depth - 1)} if inspect.ismethod(value) else {}
        return {"function": path(value)} | owner | settings_of(value, lambda used: describe(used, min(depth - 1, FROM_AROUND)))
    if isinstance(value, Optimizer):
        return {"class_path": path(type(value)), "init_args": describe(value.defaults, depth - 1)}
    if dataclasses.is_dataclass(value):
        return {field.name: describe(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value)}
    return of_object(value, depth)


def of_object(value: Any, depth: int) -> dict[str, Any]:
    """Class and arguments of an object; of a data set its length and a digest of its classes too."""
    found = {name: kept(value, name) for name in parameters(type(value))}
    init_args = {name: describe(argument, depth - 1) for name, argument in found.items() if argument is not UNKNOWN}
    described: dict[str, Any] = {"class_path": path(type(value)), "init_args": init_args}
    is_data = hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, nn.Module)
    if (len(init_args) < len(found) or takes_any(type(value))) and not is_data:
        others = attributes(value).keys() - found.keys() - OF_EVERY_MODULE
        shallow = min(depth - 1, 2)
        described["holds"] = {name: describe(attributes(value)[name], shallow) for name in sorted(others) if name[0] != "_"}
    if is_data:
        described["samples"] = len(value)
        if isinstance(getattr(value, "targets", None), Tensor):
            described["targets"] = digest(value.targets)["sha256"]
    return described


def of_plain(value: Any) -> dict[str, str]:
    """A digest of many numbers or texts; nothing of other things."""
    entries = list(value) if isinstance(value, (list, tuple)) else []
    plain = all(isinstance(entry, (bool, int, float, str)) for entry in entries)
    return {"sha256": hashlib.sha256(repr(entries).encode()).hexdigest()} if entries and plain else {}


def parameters(cls: type) -> list[str]:
    """The names of a constructor's arguments."""
    try:
        found = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # made in C
        return []
    return [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def takes_any(cls: type) -> bool:
    """Whether a constructor takes arguments that its signature does not name."""
    try:
        return any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in inspect.signature(cls).parameters.values())
    except (TypeError, ValueError):
        return True


def kept(value: Any, name: str) -> Any:
    """What an object keeps under a name: as a hyperparameter, in itself, or in one of its parts."""
    hyperparameters = getattr(value, "_hparams", None)
    if isinstance(hyperparameters, Mapping) and name in hyperparameters:
        return hyperparameters[name]
    places = [value, *(part for part in attributes(value).values() if hasattr(part, "__dict__"))]
    wanted = [(attributes(place) | buffers(place), called) for place in places for called in (name, f"_{name}")]
    return next((place[called] for place, called in wanted if called in place), UNKNOWN)


def attributes(value: Any) -> dict[str, Any]:
    """An object's own attributes, a module's parts among them."""
    found = dict(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else {}
    return {**found, **found.get("_modules", {})}


def buffers(value: Any) -> dict[str, Any]:
    """A module's own buffers, as which a loss keeps its weights."""
    return dict(value._buffers) if isinstance(value, nn.Module) else {}


def path(thing: Callable[..., Any]) -> str:
    """Where a class or function is imported from."""
    named: Any = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def digest(tensor: Tensor) -> dict[str, Any]:
    """Type, shape and SHA-256 of a tensor's values."""
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "sha256": hashlib.sha256(as_bytes(tensor)).hexdigest()}


def optimizer_of(make: Callable[..., Any]) -> Any:
    """Class and settings of the optimizer that a function makes of parameters; the function's name if it makes none of one."""
    try:
        return describe(make([nn.Parameter(torch.zeros(1))]))
    except Exception:  # it wants parameters of the model's own
        return describe(make)
