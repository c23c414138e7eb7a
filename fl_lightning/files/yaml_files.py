"""The one reader of YAML: files of settings, of sweeps, and values given on a command line.

YAML itself is generous: of a key that stands twice the first is lost, a value may contain itself, and a few lines of aliases
stand for more than fits into memory. None of that is meant by whoever writes it, and neither is what two versions of YAML read
differently.
"""

import math
import re
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from fl_lightning.errors import ConfigurationError, folded
from fl_lightning.files.yaml_versions import NUMBER, check_versions

MODE = "yaml_without_surprises"
"""A parser's `parser_mode` by which it reads everything as `read_yaml` does."""

MOST_VALUES = 100_000
"""Values in a text, with each alias counted as what it stands for; configurations have some hundred."""

DEEPEST = 100
"""Brackets within brackets; configurations have some ten."""

FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MERGE = "tag:yaml.org,2002:merge"

NUMBERS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool"))
"""Tags of keys that Python takes for equal where their values are."""


class Refused(yaml.YAMLError):
    """YAML that nobody can mean.

    >>> Refused("the key a stands twice", yaml.compose("a: 1"))
    Refused('line 1: the key a stands twice')
    """

    def __init__(self, message: str, where: yaml.Node | yaml.Event) -> None:
        super().__init__(f"line {where.start_mark.line + 1}: {message}")  # pyrefly: ignore[missing-attribute]


def read_yaml(text: str) -> Any:
    """What a text in YAML says; `1e-3` is a number, which it is not in YAML 1.1, and dates are text.

    Raises:
        yaml.YAMLError: it is not YAML; `Refused` if it is, but has a key twice in one mapping, aliases that never end, or a
            value that YAML 1.1 and 1.2 read differently.

    Example:
        >>> read_yaml("lr: 1e-3")
        {'lr': 0.001}
    """
    depth = 0
    for event in yaml.parse(text, Loader=FAST):  # before nodes are made, which recurses
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise Refused(f"it is nested more than {DEEPEST} deep", event)
    node = yaml.compose(text, Loader=FAST)
    if node is not None and count(node, {}, frozenset(), "") > MOST_VALUES:
        raise Refused(f"its aliases stand for more than {MOST_VALUES:,} values; write out what is meant", node)
    return get_loader("yaml")(text)


def load_yaml(source: Path | str, name: str) -> Any:
    """What a file says, or a text.

    Args:
        source: the file, or the text itself.
        name: what messages call it.

    Raises:
        ConfigurationError: the file cannot be read, or is not YAML.
    """
    try:
        return read_yaml(source if isinstance(source, str) else source.read_text())
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{name} is not text in UTF-8") from error
    except Refused as error:
        raise ConfigurationError(f"{name}, {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name} is not YAML: {folded(error)}") from error


def count(node: yaml.Node, sizes: dict[int, int], around: frozenset[int], place: str) -> int:
    """The values that a node stands for, after seeing that each of them can be meant.

    Args:
        node: of a tree in which aliases are further references.
        sizes: what nodes that were met before stand for.
        around: the nodes that this one lies in.
        place: the node's dotted name, for messages.
    """
    if id(node) in around:
        raise Refused("it contains itself by its alias; write out what is meant", node)
    if id(node) in sizes:
        return sizes[id(node)]
    around |= {id(node)}
    size = 1
    if isinstance(node, yaml.ScalarNode):
        wrong = check_versions(node)
        if wrong is not None:
            raise Refused(f"{place}: {wrong}" if place else wrong, node)
    elif isinstance(node, yaml.MappingNode):
        check_keys(node, place)
        for key, value in node.value:
            below = f"{place}.{key.value}" if place else key.value
            size += count(key, sizes, around, place) + count(value, sizes, around, below)
    else:
        size += sum(count(child, sizes, around, place) for child in node.value)
    sizes[id(node)] = size
    return size


def check_keys(node: yaml.MappingNode, place: str) -> None:
    """Raise for a key that stands twice, and for one that is no name."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise Refused(f"{place or 'it'} has a list or a mapping for a key; a key is a name", key)
        name = id(key) if key.tag == MERGE else as_number(key) if key.tag in NUMBERS else (key.tag, key.value)
        if name in seen:
            raise Refused(f"the key {key.value} stands twice; the first would be lost, so leave one of them out", key)
        seen.add(name)


def as_number(key: yaml.ScalarNode) -> Any:
    """What a number is to a mapping, in which 1, 1.0 and true are one key."""
    return get_loader("yaml")(key.value)


def as_argument(config: Any) -> str:
    """Settings as a command's argument: YAML, which knows infinities, on one line."""
    return yaml.dump(config, Dumper=Dumper, default_flow_style=True, width=math.inf, sort_keys=False)


class Dumper(yaml.SafeDumper):
    """Writes names of an enumeration, which are defaults in Lightning, as text; quotes text that anybody reads as a number.

    >>> print(yaml.dump({"a": "1e3", "b": "0o17", "c": "no"}, Dumper=Dumper, default_flow_style=True).strip())
    {a: '1e3', b: '0o17', c: 'no'}
    """


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"({NUMBER}|0o[0-7]+)$"), list("-+.0123456789"))
Dumper.add_multi_representer(Enum, lambda dumper, name: dumper.represent_str(name.value))


def write_yaml(config: Any) -> str:
    """Settings as a text in YAML, in their order."""
    return yaml.dump(config, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


set_loader(MODE, read_yaml, (yaml.YAMLError,))
set_dumper(MODE, write_yaml)
