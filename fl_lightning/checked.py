"""Numbers, texts and objects that were given in Python, where no parser has looked at their types, checked in one line each."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from operator import index
from os import PathLike
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from torch.optim import Optimizer

from fl_lightning.errors import ConfigurationError, folded

Kind = TypeVar("Kind")
Make = TypeVar("Make", bound=Callable[..., Any])

MOST_EPOCHS = 100_000
"""More passes over a client's data in one round would not end while anybody waits."""


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number of Python's or NumPy's, as one of Python's, which is written to files like any other.

    Args:
        name: the field, for messages.
        value: what was given; a truth value is no number.
        least: the smallest that will do.

    Raises:
        ConfigurationError: for anything else, naming field, value and what is wanted.

    Example:
        >>> whole("model.local.batch_size", 8, 1)
        8
        >>> whole("local.batch_size", 8.0, 1)
        Traceback (most recent call last):
        fl_lightning.errors.ConfigurationError: local.batch_size must be a whole number, got 8.0 of type float; give an int
    """
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ConfigurationError(f"{name} must be a whole number, got {shown(value)}; give an int")
    if least is not None and number < least:
        raise ConfigurationError(f"{name} must be at least {least}, got {number}")
    return number


def real(name: str, value: Any) -> float:
    """A number of Python's or NumPy's, as one of Python's; not checked for its size, and NaN is one.

    >>> real("data.partition.alpha", 1)
    1
    >>> real("data.partition.alpha", "1")
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: data.partition.alpha must be a number, got '1' of type str; give a float
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ConfigurationError(f"{name} must be a number, got {shown(value)}; give a float")
    return value if isinstance(value, int) else float(value)


def made_of(name: str, value: Any, kind: type[Kind], example: str) -> Kind:
    """An object of a kind, and not the class itself, which reads almost alike.

    >>> made_of("model.cohort", dict, dict, "{}")
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: model.cohort is the class dict; give an object that was made of it: dict(...)
    """
    if isinstance(value, type):
        raise ConfigurationError(
            f"{name} is the class {value.__name__}; give an object that was made of it: {value.__name__}(...)"
        )
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be of type {kind.__name__}, such as {example}, got {shown(value)}")
    return value


def maker(name: str, value: Make) -> Make:
    """A function, or a class, that makes what is wanted.

    >>> maker("model.server_optimizer", 0.1)
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: model.server_optimizer must be a function that makes one, got 0.1 of type float; ...
    """
    if not callable(value):
        raise ConfigurationError(f"{name} must be a function that makes one, got {shown(value)}; give a lambda")
    return value


def one_of(name: str, value: Kind, known: Sequence[Kind]) -> Kind:
    """One of a few words.

    >>> one_of("model.buffers", "men", ("trimmed", "mean", "keep"))
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: model.buffers must be trimmed, mean or keep, got 'men'
    """
    if value not in known:
        words = f"{', '.join(map(str, known[:-1]))} or {known[-1]}"
        raise ConfigurationError(f"{name} must be {words}, got {value!r}")
    return value


def finite_settings(optimizer: Optimizer, name: str) -> None:
    """Raise `ConfigurationError` if an optimizer has an infinite learning rate, or a setting that is NaN.

    Other settings may be infinite, which often means that there is no limit.
    """
    for group in optimizer.param_groups:
        for setting, value in group.items():
            if setting == "params":
                continue
            for part in value if isinstance(value, tuple) else (value,):
                try:
                    number = float(part)
                except (TypeError, ValueError, RuntimeError):
                    continue
                if math.isnan(number) or (setting == "lr" and math.isinf(number)):
                    raise ConfigurationError(
                        f"{name} has {setting} = {number}, with which every step ends in weights that are not finite; give a "
                        "finite one"
                    )


class Checked:
    """Classes of this package whose constructors' numbers and texts are looked at, as their annotations say what they are.

    From Python anything can be given, such as True for a number, 2.5 for a number of clients, or one text for a list of them.
    What a constructor refuses itself, it says in words of its own.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("fl_lightning."):
            with_checked_arguments(cls)


def with_checked_arguments(cls: type[Kind]) -> type[Kind]:
    """The class, whose constructor refuses what is not the kind of number or text that an argument's annotation names.

    >>> @with_checked_arguments
    ... class Rule:
    ...     def __init__(self, trim: int, share: float = 0.2, layer: str = "") -> None: ...
    >>> Rule(2, share=math.nan)
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: Rule: share must be a finite number, got nan
    >>> Rule(2, layer=7)
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: Rule: layer must be a text, got 7 of type int
    """
    if "__init__" not in vars(cls):
        return cls
    constructor: Any = cls.__init__

    @functools.wraps(constructor)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            constructor(self, *args, **kwargs)
        except ConfigurationError:
            raise
        except Exception:
            check_arguments(type(self).__name__, constructor, args, kwargs)  # of which the exception may have come
            raise
        check_arguments(type(self).__name__, constructor, args, kwargs)

    setattr(cls, "__init__", made)  # noqa: B010  type checkers go on to see the one that was written
    return cls


def check_arguments(kind: str, constructor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise `ConfigurationError` for an argument that is no number or text of the kind that its annotation names."""
    signature, kinds = kinds_of(constructor)
    try:
        given = signature.bind(None, *args, **kwargs).arguments
    except TypeError:  # Python says what is wrong
        return
    for name, wanted in kinds.items():
        if name not in given or (given[name] is None and NoneType in wanted):
            continue
        value, place, hints = given[name], f"{kind}: {name}", wanted - {NoneType}
        if hints == {bool} and not isinstance(value, bool):
            raise ConfigurationError(f"{place} must be True or False, got {shown(value)}")
        if hints == {int}:
            whole(place, value)
        if hints == {float} and not math.isfinite(real(place, value)):
            raise ConfigurationError(f"{place} must be a finite number, got {value}")
        if name.endswith(("epochs", "passes")) and hints <= {int, float} and real(place, value) > MOST_EPOCHS:
            raise ConfigurationError(f"{place} must be at most {MOST_EPOCHS:,}, got {value}")
        if hints == {str} and not isinstance(value, str | PathLike):
            raise ConfigurationError(f"{place} must be a text, got {shown(value)}")
        if hints == {int, str} and not isinstance(value, str):
            whole(place, value)
        if TEXTS in hints and not (str in hints and isinstance(value, str)) and not are_texts(value):
            alone = "a text or " if str in hints else ""
            raise ConfigurationError(f"{place} must be {alone}a list of texts, got {shown(value)}")


def are_texts(value: Any) -> bool:
    """Whether this is a list of texts, or an array of them, and not one text."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    return all(isinstance(part, str) for part in value)


TEXTS = Sequence[str]

ALONE: tuple[set[Any], ...] = ({bool}, {int}, {float}, {str}, {int, str}, {TEXTS}, {str, TEXTS})
"""What the annotations of arguments that are looked at say, None aside."""


@functools.cache
def kinds_of(constructor: Any) -> tuple[inspect.Signature, dict[str, set[Any]]]:
    """A constructor's signature; for each argument that is to be a number or text, what its annotation allows."""
    signature = inspect.signature(constructor, eval_str=True)
    found = {}
    for name, parameter in signature.parameters.items():
        hint = parameter.annotation
        hints = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        if hints - {NoneType} in ALONE:
            found[name] = hints
    return signature, found


def shown(value: Any) -> str:
    """A value and its type, on one line and not too long."""
    return f"{folded(repr(value)):.60} of type {type(value).__name__}"
