"""What modules and data keep in Python beside parameters and buffers: remembered, and put back in place.

A client that counts (`self.n += 1`) would hand its count on to the next one, and on another number of ranks that is another
client; a model that counts in evaluation would become another one on each rank. So everything is put back that can be reached
from the module's attributes and from those of its classes. That nothing has changed is the rule, and seen in microseconds.
"""

from __future__ import annotations

import io
import random
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torchmetrics import Metric

from fl_lightning.kept_values import can_be_kept, is_whole, keep_whole, same
from fl_lightning.own_code import ATOMS, CLOSED, Cached, Globals, closed, is_users, names_in, slots_of

EVERY_MODULES = vars(L.LightningModule()).keys()
"""Attributes that are PyTorch's and Lightning's own."""

Generators = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
"""What random numbers are drawn from."""

GLOBAL = (np.random.mtrand._rand, random._inst, torch.default_generator)  # pyrefly: ignore[missing-attribute]
"""Those that are seeded for every client in any case."""

SEARCHED, SEARCHED_OF_DATA = 10_000, 1000
"""Entries of a container that are searched for what may change in itself, in a module and in data, which hold more of them."""

MOST = 100_000
"""Objects that are looked at."""


class KeptPython:
    """What is reached from some objects, as it is now.

    Args:
        roots: by name. A module's parameters, buffers and modes are left out: they are kept otherwise.
        values: whether what is found is to be kept, tensors and arrays included; else it is only searched.
        metrics: whether torchmetrics objects among a module's parts are kept, too; local training resets them.
        caches: whether dicts may gain entries, and lists get some in place of None, without counting as changed: what is read
            once and remembered need not be read again.
        searched: entries of a container that are searched.
        follow: whether global names are searched, too, that the user's own functions use.
        but: objects that are left out.

    Attributes:
        generators: sources of random numbers, by path.
        iterators: what goes on by itself and cannot be put back, by path.
        unkept: what else cannot be put back, by path: too large, more entries than are searched, or nobody knows what it holds.
        globals: by module, what `follow` has found; roots for another search.

    Example:
        >>> holder = types.SimpleNamespace(n=1, seen=[])
        >>> kept = KeptPython({"client": holder})
        >>> holder.n += 1; holder.seen.append(3)
        >>> kept.restore(), holder
        (['client.n', 'client.seen'], namespace(n=1, seen=[]))
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        *,
        values: bool = True,
        metrics: bool = False,
        caches: bool = False,
        searched: int = SEARCHED,
        follow: bool = False,
        but: Iterable[Any] = (),
    ) -> None:
        self.generators: dict[str, Any] = {}
        self.iterators: dict[str, Any] = {}
        self.unkept: dict[str, Any] = {}
        self.globals: dict[str, Globals] = {}
        self.values, self.metrics, self.caches, self.searched, self.follow = values, metrics, caches, searched, follow
        self._kept: list[_Kept] = []
        self._seen = set(map(id, (*GLOBAL, *but)))
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
        elif is_whole(value):
            if not can_be_kept(value):
                self.unkept[path] = value
            elif self.values:
                whole = keep_whole(value)
                self._keep(path, value, whole, whole.put)
        elif isinstance(value, dict):
            if len(value) > self.searched:
                self.unkept[path] = value
            for key, part in islice(self._keep(path, value, dict, _put_dict).items(), self.searched):
                if not isinstance(part, ATOMS):
                    self._visit(f"{path}[{key!r}]", part)
        elif isinstance(value, (list, deque)):
            self._each(path, self._keep(path, value, list, _put_list))
        elif isinstance(value, set):
            self._keep(path, value, frozenset, _put_set)
        elif isinstance(value, tuple):
            self._each(path, value)
        else:
            self._other(path, value)

    def _each(self, path: str, values: Sequence[Any]) -> None:
        if len(values) > self.searched:
            self.unkept[path] = values
        for i, part in enumerate(islice(values, self.searched)):
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
        elif isinstance(value, Globals):
            for name, part in self._keep(path, value.holder, value.now, value.put).items():
                self._of_globals(f"{path}.{name}", part)
        elif isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, property)):
            return
        elif isinstance(value, (Cached, io.IOBase)):
            self.unkept[path] = value
            self._visit(path, getattr(value, "__wrapped__", None))
        elif isinstance(value, Iterator):
            self.iterators[path] = value
        elif closed(type(value)):
            self.unkept[path] = value
        elif slots := slots_of(type(value)):
            now = partial(_of_slots, slots)
            for name, part in self._keep(path, value, now, partial(_put_slots, now)).items():
                self._visit(f"{path}.{name}", part)
            self._class(path, type(value))
        elif hasattr(value, "__dict__"):
            self._attributes(path, value, _of_object)
            self._class(path, type(value))
        else:
            self.unkept[path] = value

    def _function(self, path: str, function: Any) -> None:
        """What a function holds among its defaults and in its closure, and generators among the global names that it uses."""
        if not isinstance(function, types.FunctionType) or closed(function):
            return
        code, place = function.__code__, ".".join(filter(None, (path, function.__name__)))
        defaults, cells = function.__defaults__ or (), function.__closure__ or ()
        held = dict(zip(code.co_varnames[code.co_argcount - len(defaults) :], defaults, strict=False))
        held |= function.__kwdefaults__ or {}
        for name, cell in zip(code.co_freevars, cells, strict=True):
            if cell == types.CellType():
                continue
            held[name] = cell.cell_contents
            if isinstance(held[name], ATOMS) and id(cell) not in self._seen:  # `nonlocal` gives it another one
                self._seen.add(id(cell))
                self._alive.append(cell)
                self._keep(f"{place}.{name}", cell, _of_cell, _put_cell)
        for name, part in held.items():
            self._visit(f"{place}.{name}", part)
        names = set(names_in(code))
        for name in sorted(names & function.__globals__.keys()):
            if isinstance(found := function.__globals__[name], Generators):
                free = self.generators.get(name, found) is found
                self._visit(name if free else f"{function.__module__}.{name}", found)
        if self.follow and is_users(function.__module__):
            self._follow(function.__module__, function.__globals__, names)

    def _follow(self, module: str, holder: dict[str, Any], names: set[str]) -> None:
        """What stands under these names in a module of the user's, where a function uses them."""
        known = self.globals.setdefault(module, Globals(holder)).names
        for name in sorted(names & holder.keys() - known):
            known.add(name)
            value = holder[name]
            if isinstance(value, types.ModuleType) and is_users(value.__name__):
                self._follow(value.__name__, vars(value), names)
            self._of_globals(f"{module}.{name}", value)

    def _of_globals(self, path: str, value: Any) -> None:
        """Search a global value, but for modules that the client is a part of, as a federation."""
        if isinstance(value, type) and is_users(value.__module__):
            self._class(path, value)
        elif not (isinstance(value, nn.Module) and any(id(part) in self._seen for part in value.modules())):
            self._visit(path, value)


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
        if isinstance(before, list) and same(before, after):
            return []
        if self.may_fill and filled(before, after):
            return []
        if isinstance(before, dict) and isinstance(after, dict):
            missing = object()
            names = (name for name in {**before, **after} if not same(before.get(name, missing), after.get(name, missing)))
            return [f"{self.path}.{name}".lstrip(".") for name in names]
        return [self.path]


def filled(before: Any, after: Any) -> bool:
    """Whether all that was there is there still, but for None."""
    if isinstance(before, dict):
        return all(key in after and (value is None or after[key] is value) for key, value in before.items())
    return len(before) == len(after) and all(a is None or a is b for a, b in zip(before, after, strict=True))


def _of_module(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in EVERY_MODULES}


def _of_object(value: Any) -> dict[str, Any]:
    return dict(vars(value))


def _of_slots(slots: Sequence[str], value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})


def _put_slots(now: Callable[[Any], dict[str, Any]], holder: Any, content: dict[str, Any]) -> None:
    for name in now(holder).keys() - content.keys():
        object.__delattr__(holder, name)  # also of what is frozen
    for name, value in content.items():
        object.__setattr__(holder, name, value)


def _of_cell(cell: types.CellType) -> Any:
    return cell.cell_contents


def _put_cell(cell: types.CellType, content: Any) -> None:
    cell.cell_contents = content


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
