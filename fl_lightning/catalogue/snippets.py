"""How a class stands in a configuration: YAML with its defaults, and with what must be given as an example has it."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from fl_lightning.catalogue.kinds import Kind, Node
from fl_lightning.files.yaml_files import load_yaml
from fl_lightning.shipped import CONFIGS

SET_ELSEWHERE = ("seed",)
"""Arguments that follow from `seed_everything`."""


def snippet(kind: Kind, cls: type, defaults: Mapping[str, Any]) -> str:
    """YAML that names the class; empty where no configuration can.

    Args:
        kind: the class's kind.
        cls: the class.
        defaults: of the arguments that have one, as plain data; those that are null are left out.
    """
    required = [name for name in inspect.signature(cls).parameters if name not in defaults]
    given = {name: value for name, value in example(cls, required).items() if name in required}
    settings = given | {name: value for name, value in defaults.items() if value is not None and name not in SET_ELSEWHERE}
    placed = kind.place({"class_path": cls.__name__, **({"init_args": settings} if settings else {})})
    return "" if placed is None else yaml.safe_dump(placed, sort_keys=False, allow_unicode=True, width=100)


def example(cls: type, names: list[str]) -> dict[str, Any]:
    """Settings of a class that has all of `names` among them: of a shipped configuration, else of the docstring's example."""
    found = [*shipped_settings().get(cls.__name__, []), *calls(cls)]
    return next((settings for settings in found if set(names) <= set(settings)), {})


@cache
def shipped_settings() -> dict[str, list[dict[str, Any]]]:
    """From the names of classes to the settings that configurations of the package give them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        for node in nodes(load_yaml(file, file.name)):
            found.setdefault(node["class_path"].rpartition(".")[2], []).append(node.get("init_args") or {})
    return found


def nodes(part: Any) -> Iterator[Node]:
    """All classes in a configuration, at any depth."""
    if isinstance(part, list):
        for each in part:
            yield from nodes(each)
    elif isinstance(part, dict):
        if isinstance(part.get("class_path"), str):
            yield part
        for each in part.values():
            yield from nodes(each)


def calls(cls: type) -> Iterator[dict[str, Any]]:
    """The arguments with which the examples in a class's docstring make it, as a configuration has them."""
    for shown in doctest.DocTestParser().get_examples(inspect.getdoc(cls) or ""):
        for call in ast.walk(ast.parse(shown.source)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == cls.__name__:
                yield settings_of(call, cls)


def settings_of(call: ast.Call, cls: type) -> dict[str, Any]:
    """The arguments of a call by name; other calls among them become classes with settings."""
    given = dict(zip(inspect.signature(cls).parameters, call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    return {name: plain(value) for name, value in given.items()}


def plain(value: ast.expr) -> Any:
    """An expression as plain data; a class may be called by its import path, where it is not this package's."""
    if isinstance(value, ast.Call) and isinstance(value.func, (ast.Name, ast.Attribute)):
        settings = {keyword.arg: plain(keyword.value) for keyword in value.keywords if keyword.arg is not None}
        return {"class_path": ast.unparse(value.func), **({"init_args": settings} if settings else {})}
    return ast.literal_eval(value)
