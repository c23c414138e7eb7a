"""Classes that a configuration names, once it is read: whether they can be made, and what their constructors refuse."""

import importlib
import inspect
import math
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from fl_lightning.errors import ConfigurationError, by_likeness, configuration_error, folded
from fl_lightning.options.layers import inside
from fl_lightning.options.parser import PARTS, enumerated, offered

WITHOUT_WORK: tuple[type, ...] = (*PARTS, LRScheduler, nn.Module)
"""Classes that say what others have in common, and do nothing by themselves."""

LIBRARIES = ("lightning.", "torch.", "torchmetrics.")
"""Whose constructors say what is wrong with an argument by an exception; an exception of a user's class is a fault in it."""


def check_read(config: Any) -> None:
    """Raise `ConfigurationError` for a class of which nothing can be made, and for a number that nothing can be done with.

    Args:
        config: a command's settings as they were read, plain.
    """
    for place, cls, node in entries(config, ""):
        if cls in WITHOUT_WORK or abstract(cls):
            known = dict.fromkeys(other.__name__ for other in sorted(filter(offered, concrete(cls)), key=own_first))
            raise ConfigurationError(
                f"{place}: {cls.__name__} says what classes of its kind have in common, and none can be made of it; "
                f"known: {enumerated(known)}"
            )
        further = node.get("dict_kwargs") or {}
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters(cls))
        if further and not takes_any:
            wrong, known = next(iter(further)), [parameter.name for parameter in parameters(cls)]
            listed = enumerated(by_likeness(wrong, known))
            raise ConfigurationError(f"{place}.dict_kwargs: {cls.__name__} has no setting {wrong}; it has: {listed}")
        if cls.__module__.startswith("torch.optim"):
            check_numbers(node.get("init_args"), place, math.isfinite)
    check_numbers(config, "", lambda number: not math.isnan(number))


def check_numbers(node: Any, place: str, good: Any) -> None:
    """Raise for a number in settings that is not good."""
    if isinstance(node, Mapping):
        for key, part in node.items():
            check_numbers(part, place if key == "init_args" else inside(place, key), good)
    elif isinstance(node, (list, tuple)):
        for part in node:
            check_numbers(part, place, good)
    elif isinstance(node, float) and not good(node):
        raise ConfigurationError(f"{place} must be a finite number, got {node}")


def entries(node: Any, place: str) -> Iterator[tuple[str, type, Mapping[str, Any]]]:
    """All classes in settings, the outer ones first, as (place, class, what is said of it)."""
    if isinstance(node, list):
        for part in node:
            yield from entries(part, place)
    elif isinstance(node, Mapping):
        cls = named(node.get("class_path"))
        if cls is not None:
            yield place, cls, node
        for key, part in node.items():
            yield from entries(part, place if key == "init_args" else inside(place, key))


def named(path: Any) -> type | None:
    """The class that a path names, None if it is a function's, or nothing's."""
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ImportError:  # of a class within a class
        return None
    return found if isinstance(found, type) else None


def abstract(cls: type) -> bool:
    """Whether methods are missing; not all such classes are of the kind that Python itself refuses to make."""
    return any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls))


def concrete(base: type) -> set[type]:
    """The public classes that are loaded and of which one can be made."""
    below = {cls for child in base.__subclasses__() for cls in {child} | concrete(child)}
    return {cls for cls in below if not cls.__name__.startswith("_") and not abstract(cls)}


def own_first(cls: type) -> tuple[bool, str]:
    """For sorting: by name, this package's before all others."""
    return not cls.__module__.startswith("fl_lightning."), cls.__name__


def parameters(cls: type) -> list[inspect.Parameter]:
    """What a class is made with."""
    return list(inspect.signature(cls).parameters.values())


def refused_by_its_class(error: BaseException) -> ConfigurationError | None:
    """What a library's class says of its arguments, wherever in an exception that a parser made of it; None if none does."""
    while error.__cause__ is not None:
        error = error.__cause__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        cls = type(frame.f_locals.get("self"))
        if frame.f_code.co_name == "__init__" and cls.__module__.startswith(LIBRARIES) and made_by_parsers(cls):
            return ConfigurationError(f"{cls.__name__}: {folded(error)}")
    return None


def refused_of_several(error: BaseException | None) -> ConfigurationError | None:
    """What a class of the package says of its arguments where a setting takes one of several kinds; None if none does.

    The parser tries each kind, and of what they say keeps the first alone, which may be that a class is of another one.
    """
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == "raise_union_unexpected_value":
                for tried in frame.f_locals.get("exceptions", []):
                    if refused := configuration_error(tried):
                        return refused
        error = error.__cause__
    return None


def made_by_parsers(cls: type) -> bool:
    """Whether it is a class that settings name, and no part of the parser or the Trainer."""
    return not cls.__module__.startswith(("lightning.pytorch.cli", "lightning.pytorch.trainer"))
