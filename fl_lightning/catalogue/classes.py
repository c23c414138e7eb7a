"""How an entry of the catalogue is read out of a class: docstring, arguments, papers."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from pkgutil import resolve_name
from typing import Any

import docstring_parser
import yaml
from docstring_parser import DocstringStyle
from jsonargparse import ArgumentParser

from fl_lightning.catalogue.entries import ADDRESS, Argument, Entry, first_sentence
from fl_lightning.catalogue.kinds import Kind
from fl_lightning.catalogue.snippets import snippet
from fl_lightning.errors import folded

ARGUMENTS = re.compile(r"^Args:\n(?:[ ].*\n?|\n)*", re.MULTILINE)
"""The section of a docstring that lists arguments."""


def described(kind: Kind) -> list[Entry]:
    """All entries of a kind, by name."""
    classes = kind.classes()
    in_module = Counter(cls.__module__ for cls in classes)
    return [entry(kind, cls, alone=in_module[cls.__module__] == 1) for cls in classes]


def entry(kind: Kind, cls: type, alone: bool = False) -> Entry:
    """The entry of a class.

    Args:
        kind: its kind.
        cls: the class.
        alone: whether it is the one of its kind in its file, whose first line then is about it.
    """
    text = inspect.getdoc(cls) or ""
    of_file = inspect.getdoc(inspect.getmodule(cls)) or ""
    listed = arguments(cls)
    return Entry(
        kind=kind.one,
        name=cls.__name__,
        about=upper_first(first_sentence(of_file if alone else text).removeprefix(f"{cls.__name__}: ")),
        place=f"{cls.__module__}.{cls.__qualname__}",
        text=re.sub(r"\n{3,}", "\n\n", ARGUMENTS.sub("", text)).strip(),
        arguments=listed,
        papers=[folded(part) for part in of_file.split("\n\n")[1:] if ADDRESS.search(part)],
        yaml=snippet(kind, cls, {each.name: each.default for each in listed if not each.required}),
    )


def upper_first(text: str) -> str:
    """
    >>> upper_first("the mean of CNNs")
    'The mean of CNNs'
    """
    return text[:1].upper() + text[1:]


def arguments(cls: type) -> list[Argument]:
    """The arguments of a class's constructor, as a configuration can give them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    defaults = yaml.safe_load(parser.dump(parser.get_defaults(), skip_validation=True)) or {}
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):  # a class says of what it inherits only what differs
        parsed = docstring_parser.parse(base.__doc__ or "", DocstringStyle.GOOGLE)
        said |= {each.arg_name: folded(each.description) for each in parsed.params}
    return [
        Argument(
            name=name,
            type=type_name(parameter.annotation),
            required=parameter.default is parameter.empty,
            default=without_defaults(defaults.get(name)),
            about=said.get(name, ""),
        )
        for name, parameter in inspect.signature(cls, eval_str=True).parameters.items()
    ]


def without_defaults(value: Any) -> Any:
    """A class in a configuration without the settings that it has anyway, as the parser spells out all of them.

    >>> without_defaults({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9, "dampening": 0.0}})
    {'class_path': 'torch.optim.SGD', 'init_args': {'lr': 0.1, 'momentum': 0.9}}
    """
    if not isinstance(value, dict) or "class_path" not in value:
        return value
    own = inspect.signature(resolve_name(value["class_path"])).parameters
    changed = {name: each for name, each in value.get("init_args", {}).items() if each != as_read(own[name].default)}
    return {"class_path": value["class_path"], **({"init_args": changed} if changed else {})}


def as_read(value: Any) -> Any:
    """A value as a file of settings has it."""
    return list(value) if isinstance(value, tuple) else value


def type_name(annotation: Any) -> str:
    """
    >>> type_name(int | None), type_name(dict[str, Any])
    ('int | None', 'dict[str, Any]')
    """
    return re.sub(r"\b[A-Za-z_]\w*\.(?=\w)", "", inspect.formatannotation(annotation))
