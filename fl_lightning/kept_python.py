"""What modules and data keep in Python beside parameters and buffers: remembered, and put back in place.

A client that counts (`self.n += 1`) would hand its count on to the next one, and on another number of ranks that is another
client; a model that counts in evaluation would become another one on each rank. So everything is put back that can be reached
from the module's attributes and from those of its classes. That nothing has changed is the rule, and seen in microseconds.
"""

from __future__ import annotations

import io
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchmetrics import Metric

from fl_lightning.bits import same_bits

EVERY_MODULES = vars(L.LightningModule()).keys()
"""Attributes that are PyTorch's and Lightning's own."""

CLOSED = frozenset(sys.stdlib_module_names - {"argparse", "types", "collections", "functools", "__main__"}) | {
    *("torch", "lightning", "pytorch_lightning", "torchmetrics", "numpy", "fl_lightning")
}
"""Packages whose objects keep nothing of a client's, and are not searched through."""

OPEN = ("torch.utils.data", "torch.nn", "fl_lightning.data", "lightning.fabric.utilities.data")
"""Their parts that hold others' objects."""

ATOMS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, slice, range)
"""Values that never change."""

NUMBERS = (float, complex, np.inexact)
"""Those that may be NaN."""

Generators = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
"""What random numbers are drawn from."""

GLOBAL = (np.random.mtrand._rand, random._inst, torch.default_generator)  # pyrefly: ignore[missing-attribute]
"""Those that are seeded for every client in any case."""

SEARCHED = 1000
"""Entries of a container that are searched for what may change in itself."""

MOST = 100_000
"""Objects that are looked at."""

LARGEST_BYTES = 2**24
"""Of a tensor or array that is kept, as all of it is read whenever something may have changed."""


class KeptPython:
    """What is reached from some objects, as it is now.

    Args:
        roots: by name. A module's parameters, buffers and modes are left out: they are kept otherwise.
        values: whether what is found is to be kept, tensors and arrays included; else it is only searched.
        metrics: whether torchmetrics objects among a module's parts are kept, too; local training resets them.
        caches: whether dicts may gain entries, and lists get some in place of None, without counting as changed: what is read
            once and remembered need not be read again.

    Attributes:
        generators: sources of random numbers, by path.
        iterators: what goes on by itself and cannot be put back, by path.

    Example:
        >>> holder = types.SimpleNamespace(n=1, seen=[])
        >>> kept = KeptPython({"client": holder})
        >>> holder.n += 1; holder.seen.append(3)
        >>> kept.restore(), holder
        (['client.n', 'client.seen'], namespace(n=1, seen=[]))
    """

    def __init__(self, roots: Mapping[str, Any], *, values: bool = True, metrics: bool = False, caches: bool = False) -> None:
        self.generators: dict[str, Any] = {}
        self.iterators: dict[str, Any] = {}
        self.values, self.metrics, self.caches = values, metrics, caches
        self._kept: list[_Kept] = []
        self._seen = set(map(id, GLOBAL))
        self._alive: list[Any] = []  # what has been seen, so that no other object gets its identity
        for name, root in roots.items():
            for part in root.modules() if isinstance(root, nn.Module) else ():
                self._seen.update(map(id, (*part._parameters.values(), *part._buffers.values())))
            self._visit(name, root)

    def changes(self) -> Iterator[str]:
        """The paths of what is not as it was."""
        return (path for kept in self._kept for path in kept.changes())

    def restore(self) -> list[str]:
        """Put back what is not as it was. Returns its paths."""
        found: dict[str, None] = {}
        while changed := [(kept, paths) for kept in self._kept if (paths := kept.changes())]:
            for kept, _ in changed:
                kept.put(kept.holder, kept.content)
            new = [path for _, paths in changed for path in paths if path not in found]
            if not new:  # it cannot be put back
                break
            found |= dict.fromkeys(new)  # and look again: a list that grew may have been replaced by one that equals it
        return list(found)

    def _keep(self, path: str, holder: Any, now: Callable[[Any], Any], put: Callable[[Any, Any], None]) -> Any:
        kept = _Kept(path, holder, now, put, may_fill=self.caches and isinstance(holder, (dict, list)))
        if self.values:
            self._kept.append(kept)
        return kept.content

    def _visit(self, path: str, value: Any) -> None:
        if isinstance(value, ATOMS) or id(value) in self._seen or len(self._seen) > MOST:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        if isinstance(value, Generators):
            self.generators[path] = value
        elif isinstance(value, nn.Module):
            self._module(path, value)
        elif isinstance(value, Tensor):
            if self.values and can_be_kept(value):
                tensor = _Tensor(value)
                self._keep(path, value, tensor, tensor.put)
        elif isinstance(value, np.ndarray):
            if self.values and value.dtype != object and value.nbytes <= LARGEST_BYTES:
                self._keep(path, value, _Array(value), _put_array)
        elif isinstance(value, dict):
            for key, part in islice(self._keep(path, value, dict, _put_dict).items(), SEARCHED):
                self._visit(f"{path}[{key!r}]", part)
        elif isinstance(value, (list, deque)):
            self._each(path, self._keep(path, value, list, _put_list))
        elif isinstance(value, set):
            self._keep(path, value, frozenset, _put_set)
        elif isinstance(value, tuple):
            self._each(path, value)
        else:
            self._other(path, value)

    def _each(self, path: str, values: Iterable[Any]) -> None:
        for i, part in enumerate(islice(values, SEARCHED)):
            if not isinstance(part, ATOMS):  # which most are
                self._visit(f"{path}[{i}]", part)

    def _module(self, path: str, module: nn.Module) -> None:
        """A module with its parts; its tensors, too, where it is no part of a root (as one that hides in a list)."""
        for name, part in module.named_modules():
            place = f"{path}.{name}".strip(".")
            self._seen.add(id(part))
            if isinstance(part, Metric) and not self.metrics:
                continue
            self._attributes(place, part, _of_module)
            self._class(place, type(part))
            for tensor_name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if id(tensor) not in self._seen:
                    self._visit(f"{place}.{tensor_name}", tensor)

    def _attributes(self, path: str, holder: Any, now: Callable[[Any], dict[str, Any]]) -> None:
        for name, part in self._keep(path, holder, now, partial(_put_attributes, now)).items():
            if not isinstance(part, ATOMS):
                self._visit(f"{path}.{name}" if path else name, part)

    def _class(self, path: str, kind: type) -> None:
        """What classes of the user's own hold: a list there is one for all clients."""
        for of in kind.__mro__:
            if of.__module__.partition(".")[0] not in CLOSED and of is not object and id(of) not in self._seen:
                self._seen.add(id(of))
                self._attributes(of.__name__, of, _of_class)
                for function in vars(of).values():
                    self._function(path, getattr(function, "__func__", function))

    def _other(self, path: str, value: Any) -> None:
        if isinstance(value, partial):
            self._each(path, (value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.MethodType):
            self._visit(path, value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, property, io.IOBase)):
            return
        elif isinstance(value, Iterator):
            self.iterators[path] = value
        elif not closed(type(value)) and hasattr(value, "__dict__"):
            self._attributes(path, value, _of_object)
            self._class(path, type(value))

    def _function(self, path: str, function: Any) -> None:
        """What a function holds among its defaults and in its closure, and generators among the global names that it uses."""
        if not isinstance(function, types.FunctionType) or closed(function):
            return
        code, place = function.__code__, ".".join(filter(None, (path, function.__name__)))
        defaults, cells = function.__defaults__ or (), function.__closure__ or ()
        held = dict(zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False))
        held |= function.__kwdefaults__ or {}
        held |= {name: of.cell_contents for name, of in zip(code.co_freevars, cells, strict=True) if of != types.CellType()}
        for name, part in held.items():
            self._visit(f"{place}.{name}", part)
        for name in names_in(function.__code__):
            if isinstance(found := function.__globals__.get(name), Generators):
                self._visit(name, found)


class _Kept:
    """One thing that may change in place: what it held when it was found, and how to put that back."""

    __slots__ = ("attributes", "content", "holder", "may_fill", "now", "path", "put", "size")

    def __init__(
        self, path: str, holder: Any, now: Callable[[Any], Any], put: Callable[[Any, Any], None], *, may_fill: bool
    ) -> None:
        self.path, self.holder, self.now, self.put, self.may_fill = path, holder, now, put, may_fill
        self.content = now(holder)
        self.attributes = vars(holder) if now in (_of_module, _of_object, _of_class) else None
        self.size = 0 if self.attributes is None else len(self.attributes)

    def changes(self) -> list[str]:
        """The paths of what it did not hold before or holds no more."""
        before, there = self.content, self.attributes
        if there is not None and len(there) == self.size:  # most are the same objects, which is soon seen
            for name, value in before.items():
                if name not in there or there[name] is not value:
                    break
            else:
                return []
        after = self.now(self.holder)
        if before is after:
            return []
        try:
            if before == after:  # what is the same object counts as equal without being asked
                return []
        except Exception:  # tensors and arrays do not like to be compared
            pass
        if isinstance(before, list) and _same(before, after):
            return []
        if self.may_fill and filled(before, after):
            return []
        if isinstance(before, dict) and isinstance(after, dict):
            missing = object()
            names = (name for name in {**before, **after} if not _same(before.get(name, missing), after.get(name, missing)))
            return [f"{self.path}.{name}".lstrip(".") for name in names]
        return [self.path]


def _same(one: Any, other: Any) -> bool:
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
            return len(one) == len(other) and all(map(_same, one, other))
        return bool(one == other) or (isinstance(one, NUMBERS) and bool(one != one and other != other))
    except Exception:
        return False


def filled(before: Any, after: Any) -> bool:
    """Whether all that was there is there still, but for None."""
    if isinstance(before, dict):
        return all(key in after and (value is None or after[key] is value) for key, value in before.items())
    return len(before) == len(after) and all(a is None or a is b for a, b in zip(before, after, strict=True))


def can_be_kept(tensor: Tensor) -> bool:
    """Whether a copy of it can be made and compared at little cost."""
    odd = is_lazy(tensor) or tensor.is_nested or tensor.is_quantized or tensor.is_meta
    return not odd and tensor.layout == torch.strided and tensor.nbytes <= LARGEST_BYTES


def closed(of: Any) -> bool:
    """Whether a class or function belongs to a package that is not searched."""
    module = getattr(of, "__module__", None) or "builtins"
    return module.partition(".")[0] in CLOSED and not module.startswith(OPEN)


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names that a function uses, and functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def _of_module(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in EVERY_MODULES}


def _of_object(value: Any) -> dict[str, Any]:
    return dict(vars(value))


def _of_class(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if name[:2] != "__" and not callable(value)}


def _put_attributes(now: Callable[[Any], dict[str, Any]], holder: Any, content: dict[str, Any]) -> None:
    there = now(holder)
    changed = {name: value for name, value in content.items() if name not in there or there[name] is not value}
    if isinstance(holder, type):
        for name in there.keys() - content.keys():
            delattr(holder, name)
        for name, value in changed.items():
            setattr(holder, name, value)
    else:
        for name in there.keys() - content.keys():
            del vars(holder)[name]
        vars(holder).update(changed)


def _put_dict(holder: dict[Any, Any], content: dict[Any, Any]) -> None:
    holder.clear()
    holder.update(content)


def _put_list(holder: Any, content: list[Any]) -> None:
    holder.clear()
    holder.extend(content)


def _put_set(holder: set[Any], content: frozenset[Any]) -> None:
    holder.clear()
    holder.update(content)


class _Tensor:
    """A tensor's values, the same copy for as long as they do not change, else None."""

    def __init__(self, tensor: Tensor) -> None:
        self.memory = tensor.data  # where they lie: `tensor.data = other` leads elsewhere
        self.values = tensor.detach().clone()

    def __call__(self, tensor: Tensor) -> Tensor | None:  # its count of changes does not know those of `tensor.data`
        return self.values if same_bits(tensor, self.values) else None

    def put(self, holder: Tensor, content: Tensor) -> None:
        if holder.data_ptr() != self.memory.data_ptr() or holder.shape != self.memory.shape:
            holder.data = self.memory
        with torch.no_grad():
            holder.copy_(content)


class _Array:
    """The same of an array, whose values are kept as bytes."""

    def __init__(self, array: np.ndarray) -> None:
        self.values = array.tobytes()

    def __call__(self, array: np.ndarray) -> bytes | None:
        return self.values if array.tobytes() == self.values else None


def _put_array(holder: np.ndarray, content: bytes) -> None:
    holder[...] = np.frombuffer(content, dtype=holder.dtype).reshape(holder.shape)
