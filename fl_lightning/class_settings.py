"""Settings of a class wherever a configuration names it: `--with CIFAR10.path=data/cifar10`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from fl_lightning.errors import ConfigurationError, nearest
from fl_lightning.yaml_files import Refused, read_yaml

FLAG = "--with"


def class_setting(text: str) -> tuple[str, Any]:
    """
    >>> class_setting("Dirichlet.alpha=0.5")
    ('Dirichlet.alpha', 0.5)
    """
    name, separator, value = text.partition("=")
    if not separator or "." not in name.strip("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form CLASS.SETTING=VALUE")
    try:
        return name, read_yaml(value)
    except Refused as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from error
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"the value in {text!r} is not YAML") from error


def taken_out(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The other arguments of a command, and its settings of classes.

    >>> taken_out(["fit", "--with", "IID.num_clients=3", "--model.client", "MLP"])
    (['fit', '--model.client', 'MLP'], {'IID.num_clients': 3})
    """
    others, found, words = [], {}, iter(args)
    for word in words:
        name, equals, text = word.partition("=")
        if name != FLAG:
            others.append(word)
            continue
        text = text if equals else next(words, "")
        try:
            setting, value = class_setting(text)
        except argparse.ArgumentTypeError as error:
            raise ConfigurationError(f"{FLAG}: {error}") from error
        found[setting] = value
    return others, found


def check_classes(given: Mapping[str, Any], there: set[str]) -> None:
    """Raise unless every class that has settings is named by a configuration."""
    for name in given:
        cls = name.partition(".")[0]
        if cls not in there:
            raise ConfigurationError(f"{FLAG} {name}: there is no {cls} in the configuration; {nearest(cls, there)}")


def with_settings(node: Any, given: Mapping[str, Any]) -> Any:
    """A configuration with `given["<Class>.<setting>"]` as the setting of that class, at any depth."""
    if isinstance(node, list):
        return [with_settings(part, given) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: with_settings(part, given) for key, part in node.items()}
    for cls in named_classes({"class_path": node.get("class_path")}):
        for name, value in given.items():
            named, _, place = name.partition(".")
            if named == cls:
                node["init_args"] = with_value(node.get("init_args") or {}, place, value)
    return node


def with_value(settings: Mapping[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """
    >>> with_value({"a": {"b": 1, "c": 2}}, "a.b", 3)
    {'a': {'b': 3, 'c': 2}}
    """
    key, _, rest = dotted.partition(".")
    return {**settings, key: with_value(settings.get(key) or {}, rest, value) if rest else value}


def named_classes(node: Any) -> Iterator[str]:
    """The names, without modules, of all classes in a configuration."""
    if isinstance(node, list):
        for part in node:
            yield from named_classes(part)
    elif isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"].rpartition(".")[2]
        for part in node.values():
            yield from named_classes(part)
