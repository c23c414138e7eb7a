"""Whose code it is: the user's own, or a package's, whose objects keep nothing of a client's; and which names code uses."""

from __future__ import annotations

import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import torch

CLOSED = frozenset(sys.stdlib_module_names - {"argparse", "types", "collections", "functools", "__main__"}) | {
    *("torch", "lightning", "pytorch_lightning", "torchmetrics", "numpy", "fl_lightning")
}
"""Packages whose objects keep nothing of a client's, and are not searched through."""

OPEN = ("torch.utils.data", "torch.nn", "fl_lightning.data", "lightning.fabric.utilities.data")
"""Their parts that hold others' objects."""

INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
"""Where packages lie that are installed."""

ATOMS = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, slice, range)
"""Values that never change."""

Cached = type(lru_cache(int))
"""What `functools.cache` and `lru_cache` make of a function."""


def closed(of: Any) -> bool:
    """Whether a class or function belongs to a package that is not searched."""
    module = getattr(of, "__module__", None) or "builtins"
    return module.partition(".")[0] in CLOSED and not module.startswith(OPEN)


def is_users(module: str | None) -> bool:
    """Whether a module is of the user's own: no part of an installed package, a notebook's included."""
    name = module or "builtins"
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.partition(".")[0] not in CLOSED and not file.startswith(INSTALLED)


@cache
def slots_of(kind: type) -> tuple[str, ...]:
    """The attributes that a class has room for by `__slots__`."""
    slotted = [vars(of).items() for of in kind.__mro__ if "__slots__" in vars(of)]
    return tuple(name for of in slotted for name, at in of if isinstance(at, types.MemberDescriptorType) and name[:2] != "__")


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names that a function uses, and functions inside it."""
    return (name for of in codes_in(code) for name in of.co_names)


class Globals:
    """Global names of a module that some functions use, and what stands under them.

    Args:
        holder: the module's `__dict__`.
    """

    def __init__(self, holder: dict[str, Any]) -> None:
        self.holder = holder
        self.names: set[str] = set()

    def now(self, holder: dict[str, Any]) -> dict[str, Any]:
        return {name: holder[name] for name in sorted(self.names) if name in holder}

    def put(self, holder: dict[str, Any], content: dict[str, Any]) -> None:
        for name in self.names - content.keys():
            holder.pop(name, None)
        holder.update(content)
