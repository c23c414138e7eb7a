"""The one reader of YAML: files of settings, of sweeps, and values given on a command line.

YAML itself is generous: of a key that stands twice the first is lost, a value may contain itself, and a few lines of aliases
stand for more than fits into memory. None of that is meant by whoever writes it.
"""

import math
import re
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from fl_lightning.errors import ConfigurationError, folded

MODE = "yaml_without_surprises"
"""A parser's `parser_mode` by which it reads everything as `read_yaml` does."""

MOST_VALUES = 100_000
"""Values in a text, with each alias counted as what it stands for; configurations have some hundred."""

DEEPEST = 100
"""Brackets within brackets; configurations have some ten."""

FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MERGE = "tag:yaml.org,2002:merge"


def read_yaml(text: str) -> Any:
    """What a text in YAML says; `1e-3` is a number, which it is not in YAML 1.1, and dates are text.

    Raises:
        yaml.YAMLError: it is not YAML, has a key twice in one mapping, or aliases that never end.

    Example:
        >>> read_yaml("lr: 1e-3")
        {'lr': 0.001}
    """
    depth = 0
    for event in yaml.parse(text, Loader=FAST):  # before nodes are made, which recurses
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise refusal(f"it is nested more than {DEEPEST} deep", event)
    node = yaml.compose(text, Loader=FAST)
    if node is not None and count(node, {}, frozenset()) > MOST_VALUES:
        raise refusal(f"its aliases stand for more than {MOST_VALUES:,} values; write out what is meant", node)
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
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{name} is not YAML: {folded(error)}") from error


def count(node: yaml.Node, sizes: dict[int, int], around: frozenset[int]) -> int:
    """The values that a node stands for, after seeing that no key in it stands twice.

    Args:
        node: of a tree in which aliases are further references.
        sizes: what nodes that were met before stand for.
        around: the nodes that this one lies in.
    """
    if id(node) in around:
        raise refusal("it contains itself by its alias; write out what is meant", node)
    if id(node) not in sizes:
        around |= {id(node)}
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in children:
                name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) and key.tag != MERGE else id(key)
                if name in seen:
                    raise refusal(f"the key {key.value} stands twice; the first would be lost, so leave one of them out", key)
                seen.add(name)
            children = [part for pair in children for part in pair]
        sizes[id(node)] = 1 + sum(count(child, sizes, around) for child in children)
    return sizes[id(node)]


def as_argument(config: Any) -> str:
    """Settings as a command's argument: YAML, which knows infinities, on one line."""
    return yaml.dump(config, Dumper=Dumper, default_flow_style=True, width=math.inf, sort_keys=False)


def refusal(message: str, where: Any) -> yaml.YAMLError:
    """What is raised at a node or an event."""
    return yaml.constructor.ConstructorError(None, None, message, where.start_mark)


class Dumper(yaml.SafeDumper):
    """Writes names of an enumeration, which are defaults in Lightning, as text, and puts text such as `1e3` in quotes."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789"))
Dumper.add_multi_representer(Enum, lambda dumper, name: dumper.represent_str(name.value))


def write_yaml(config: Any) -> str:
    """Settings as a text in YAML, in their order."""
    return yaml.dump(config, Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


set_loader(MODE, read_yaml, (yaml.YAMLError,))
set_dumper(MODE, write_yaml)
