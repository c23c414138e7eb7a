"""What a function's result depends on beside its arguments, as plain data: two functions of one name are told apart by it.

A run in Python may be given `lambda: Net(hidden=64)`, whose name says nothing. A function that has a name of its own stands for
itself, as a class does: its code may be mended between two starts of a run, what it is set to may not be changed unseen.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import fl_lightning
from fl_lightning.modules.own_code import codes_in, names_in

PLAIN = (bool, int, float, complex, str, bytes, type(None))

LIBRARIES = tuple(
    {str(Path(fl_lightning.__file__).parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), "<frozen"}
)
"""Where the code is that users have not written, and whose functions are told by their names."""


def settings_of(function: Callable[..., Any], describe: Callable[[Any], Any]) -> dict[str, Any]:
    """The text of a lambda, and the values that a function takes from around it: defaults, closures, globals.

    Args:
        function: of the user's own; of those of libraries nothing is told.
        describe: makes plain data of such a value.

    Example:
        >>> rate = 0.5
        >>> settings_of(lambda p: p * rate, str)
        {'text': 'lambda p: p * rate', 'uses': {'rate': '0.5'}}
    """
    code = getattr(function, "__code__", None)
    if not isinstance(function, FunctionType) or code is None or code.co_filename.startswith(LIBRARIES):
        return {}
    names, constants = list(names_in(code)), constants_in(code)
    found = {}
    if function.__name__ == "<lambda>":
        found["text"] = lambda_text(code) or f"lambda of {names} and {constants}"
    uses = {name: describe(part) for name, value in taken(function, names) for part in needed(value, names, constants)}
    return found | ({"uses": uses} if uses else {})


def constants_in(code: CodeType) -> list[Any]:
    """The plain constants of a function's code, those of functions within it too."""
    return [value for of in codes_in(code) for value in of.co_consts if isinstance(value, PLAIN)]


def taken(function: FunctionType, names: list[str]) -> Iterator[tuple[str, Any]]:
    """The values that a function takes from around it, by name."""
    for name in dict.fromkeys(names):
        if name in function.__globals__:
            yield name, function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable has no value yet
            yield name, cell.cell_contents
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            yield parameter.name, parameter.default


def needed(value: Any, names: list[str], constants: list[Any]) -> list[Any]:
    """What of a value a function may look at whose code has these names and constants: at most one thing.

    Of settings that are held together, `options.hidden` or `options["hidden"]`, these are the ones that the code names; others
    may differ between two starts of a run, such as its number of rounds.
    """
    if isinstance(value, (ModuleType, type)):  # the code names them
        return []
    if isinstance(value, Mapping):
        return [{key: value[key] for key in value if key in constants} or value]
    if not hasattr(value, "__dict__") or callable(value):
        return [value]
    held = {name: vars(value)[name] for name in names if name in vars(value)}
    if not held and any(hasattr(type(value), name) for name in names):  # the code calls it, as it does a logger
        return []
    return [held or value]


def lambda_text(code: CodeType) -> str | None:
    """A lambda as it was written, laid out anew; None where its source is not to be had."""
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        return None
    places = set(code.co_positions())
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            body = node.body
            if (
                body.lineno,
                body.end_lineno,
                body.col_offset,
                body.end_col_offset,
            ) in places and node.lineno == code.co_firstlineno:
                return ast.unparse(node)
    return None
