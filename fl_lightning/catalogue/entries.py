"""One entry of the catalogue: what is shown of a class, a configuration or a sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from fl_lightning.errors import folded

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


def first_sentence(text: str) -> str:
    """
    >>> first_sentence("Holds up to f < N/2. Unweighted,\\nas e.g. here.\\n\\nMore.")
    'Holds up to f < N/2.'
    """
    return re.split(r"(?<=[a-z0-9)`]\.) (?=[A-Z])", folded(text.split("\n\n")[0]))[0]
