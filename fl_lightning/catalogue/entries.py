"""One entry of the catalogue, and how it is read out of a class: docstring, arguments, papers."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

import docstring_parser
import yaml
from docstring_parser import DocstringStyle
from jsonargparse import ArgumentParser

from fl_lightning.catalogue.kinds import Kind
from fl_lightning.catalogue.snippets import snippet
from fl_lightning.errors import folded

ARGUMENTS = re.compile(r"^Args:\n(?:[ ].*\n?|\n)*", re.MULTILINE)
"""The section of a docstring that lists arguments."""

ADDRESS = re.compile(r"https?://[^\s,;]*[^\s,;.:)]")


@dataclass(frozen=True)
class Argument:
    """An argument of a class's constructor.

    Args:
        name: its name.
        type: its type, as in Python.
        required: whether it must be given.
        default: as plain data; None also where it must be given.
        about: what the docstring says of it.
    """

    name: str
    type: str
    required: bool
    default: Any
    about: str

    def __str__(self) -> str:
        """
        >>> str(Argument("tau", "float", False, 0.2, "")), str(Argument("rule", "Aggregator", True, None, ""))
        ('tau=0.2', 'rule')
        """
        return self.name if self.required else f"{self.name}={in_short(self.default)}"


@dataclass(frozen=True)
class Entry:
    """What is shown of a class, a configuration or a sweep.

    Args:
        kind: what it is, in the singular.
        name: how a configuration or a command names it.
        about: one line.
        place: import path of a class, path of a file.
        text: all that is said about it, but for its arguments.
        arguments: of a class.
        papers: where it comes from.
        yaml: how it stands in a configuration; of a file what stands in it. Empty where nothing is to be written.
    """

    kind: str
    name: str
    about: str
    place: str
    text: str
    arguments: list[Argument] = field(default_factory=list)
    papers: list[str] = field(default_factory=list)
    yaml: str = ""

    @property
    def addresses(self) -> list[str]:
        """Where the papers can be read, in the order in which they are named."""
        return list(dict.fromkeys(ADDRESS.findall(" ".join(self.papers))))


def in_short(value: Any, whole: bool = False) -> str:
    """A value as YAML has it on one line: of a class its name and settings, of other mappings no more than braces.

    Args:
        value: plain data.
        whole: whether mappings are shown too.

    Example:
        >>> in_short(None), in_short([1, 2]), in_short({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}})
        ('null', '[1, 2]', 'SGD(lr=0.1)')
        >>> in_short({"a": 1}), in_short({"a": 1}, whole=True)
        ('{...}', '{a: 1}')
    """
    if isinstance(value, dict) and "class_path" in value:
        settings = ", ".join(f"{key}={in_short(each, whole)}" for key, each in value.get("init_args", {}).items())
        return f"{value['class_path'].rpartition('.')[2]}({settings})"
    if isinstance(value, dict) and not whole:
        return "{...}"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).removesuffix("...\n").strip()


def entries(kind: Kind) -> list[Entry]:
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


def first_sentence(text: str) -> str:
    """
    >>> first_sentence("Holds up to f < N/2. Unweighted,\\nas e.g. here.\\n\\nMore.")
    'Holds up to f < N/2.'
    """
    return re.split(r"(?<=[a-z0-9)`]\.) (?=[A-Z])", folded(text.split("\n\n")[0]))[0]


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
