"""What may stand where in a layer of settings: a file, or a value given on a command line, before anything is made of it.

A class is given by `class_path`, a name, with its settings in `init_args`, a mapping. Parsers take whatever else stands there
for something, and say so in their own terms or not at all.
"""

from collections.abc import Mapping
from typing import Any

from fl_lightning.errors import ConfigurationError, folded, nearest
from fl_lightning.options.old_names import is_there, new_name, public_in

OF_A_CLASS = ("init_args", "dict_kwargs")
"""What may stand beside `class_path`."""

MAPPING = "give NAME: VALUE for each, or leave it out"


def check_layer(node: Any, place: str) -> None:
    """Raise `ConfigurationError` where no parser could know what is meant.

    Args:
        node: settings, or a part of them.
        place: its dotted name, for messages; empty for all settings.

    Example:
        >>> check_layer({"model": {"aggregator": {"class_path": 7}}}, "")
        Traceback (most recent call last):
        fl_lightning.errors.ConfigurationError: model.aggregator.class_path must be the name of a class, got 7
    """
    if isinstance(node, str):
        check_name(node, place)
    elif isinstance(node, list):
        for part in node:
            check_layer(part, place)
    elif isinstance(node, Mapping):
        if "class_path" in node:
            check_entry(node, place)
        for key, part in node.items():
            if key in OF_A_CLASS and not isinstance(part, Mapping):
                raise ConfigurationError(f"{inside(place, key)} must be a mapping of settings, got {shown(part)}; {MAPPING}")
            check_layer(part, inside(place, key))


def check_entry(node: Mapping[Any, Any], place: str) -> None:
    """Raise unless a class is given as it must be."""
    if not isinstance(node["class_path"], str):
        raise ConfigurationError(f"{inside(place, 'class_path')} must be the name of a class, got {shown(node['class_path'])}")
    for key in node:
        if key not in ("class_path", *OF_A_CLASS):
            raise ConfigurationError(
                f"{place}: a class is given by class_path, and its settings in init_args; {key!r} stands beside them"
            )


def check_name(path: str, place: str) -> None:
    """Raise where a class goes by a name that it had in an earlier version."""
    if (name := new_name(path)) is None:
        return
    if is_there(name):
        raise ConfigurationError(f"{place}: {path} is {name} now; write that in its place")
    module, _, wrong = name.rpartition(".")
    raise ConfigurationError(
        f"{place}: there is no {path}; that file is {module} now, and has no {wrong}: {nearest(wrong, public_in(module))}"
    )


def check_names(node: Any, place: str) -> None:
    """Raise for a setting that has no name, such as `3: 4`, and for an entry of a list that says nothing."""
    for part in node if isinstance(node, list) else ():
        if part == {}:
            raise ConfigurationError(f"{place} has an entry that is empty; leave it out, or give a class by class_path")
        check_names(part, place)
    for key, part in node.items() if isinstance(node, Mapping) else ():
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"{place or 'config'} has the key {shown(key)}; a setting has a name")
        if key not in OF_A_CLASS:  # a class of one's own may take any mapping
            check_names(part, inside(place, key))


def check_empty(layer: Any, config: Any, place: str) -> None:
    """Raise for an empty mapping where there is no setting, which parsers drop without a word.

    Args:
        layer: settings, or a part of them.
        config: what all layers together were read as, plain and with all defaults, or the same part of it.
        place: the part's dotted name, for messages.
    """
    if isinstance(layer, list) and isinstance(config, list) and len(layer) == len(config):
        for part, read in zip(layer, config, strict=True):
            check_empty(part, read, place)
    if not isinstance(layer, Mapping) or not isinstance(config, Mapping) or another_class(layer, config):
        return
    for key, part in layer.items():
        there = {**config.get("init_args", {}), **config}  # settings may be given without the word init_args
        if key in there:
            check_empty(part, there[key], inside(place, key))
        elif key not in OF_A_CLASS and "." not in key and empty(part):
            known = sorted(set(there) - {"class_path", *OF_A_CLASS})
            raise ConfigurationError(f"{place or 'the command'} has no setting {key}; {nearest(key, known)}")


def empty(node: Any) -> bool:
    """Whether there is nothing but mappings."""
    return isinstance(node, Mapping) and all(map(empty, node.values()))


def another_class(layer: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a later layer has put another class in the place of this one's."""
    given, read = (str(node.get("class_path", "")).rpartition(".")[2] for node in (layer, config))
    return bool(given) and given != read


def inside(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def shown(value: Any) -> str:
    return "null" if value is None else shortened(folded(repr(value)))


def shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."
