"""Whether a user's own classes are still those that a run began with: a module may be edited, or a notebook's cell run again.

What a function does is told by its compiled code, which comments and line breaks leave alone. What Python compiles to differs
from version to version, so that digests of another one say nothing.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Iterable
from typing import Any

from fl_lightning.modules.own_code import is_users

VERSION = "{}.{}".format(*sys.version_info)
"""Of Python, for which digests can be compared."""

WITHIN = ("__func__", "fget", "__wrapped__")
"""Where class methods, properties and decorated functions hold the function that was written."""


def code_digests(things: Iterable[Any]) -> dict[str, str]:
    """A digest of the methods of each class of the user's own that these objects are of, by the class's name.

    >>> code_digests([3])
    {}
    """
    kinds = {of for thing in things for of in type(thing).__mro__ if is_users(of.__module__)}
    return {f"{of.__module__}.{of.__qualname__}": digest(of) for of in sorted(kinds, key=lambda of: of.__qualname__)}


def digest(kind: type) -> str:
    """SHA-256 over a class's own functions, and its attributes that are plain values."""
    parts = []
    for name, value in sorted(vars(kind).items()):
        within = [value, *(getattr(value, attribute, None) for attribute in WITHIN)]
        functions = [each for each in within if isinstance(each, types.FunctionType)]
        parts += [f"{name} {described(each.__code__)} {plain(each.__defaults__)}" for each in functions]
        if name[:2] != "__":
            parts.append(f"{name} {plain(value)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def described(code: types.CodeType) -> str:
    """What a function does, and functions inside it, as text."""
    inner = " ".join(described(each) if isinstance(each, types.CodeType) else plain(each) for each in code.co_consts)
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {inner}"


def plain(value: Any) -> str:
    """A value that never changes, the same in every process; empty for any other."""
    if isinstance(value, frozenset):
        return f"{{{', '.join(sorted(map(plain, value)))}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(plain, value))})"
    return repr(value) if isinstance(value, (int, float, complex, str, bytes, type(None), type(...))) else ""


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """The classes of one name that do something else than before."""
    return [name for name in now if before.get(name, now[name]) != now[name]]
