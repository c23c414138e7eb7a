"""What a user's subclass of one of this package's classes owes its base: a constructor that calls the base's, and methods that
take what they are given."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from fl_lightning.checked import Checked
from fl_lightning.errors import ConfigurationError


class UnmadeError(ConfigurationError, AttributeError):
    """An object lacks what its base's constructor sets; an AttributeError, so that `hasattr` works as ever."""


class Made(Checked):
    """For classes of which users derive their own: says so where one's constructor does not call its base's."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            computed = getattr(type(self), name, None)
            if isinstance(computed, property) and computed.fget is not None:
                return computed.fget(self)  # which has failed for want of another attribute, and says so
            inherited = getattr(super(), "__getattr__", None)  # of nn.Module, which keeps its parts elsewhere
            try:
                if inherited is not None:
                    return inherited(name)
            except AttributeError as error:
                said = missing(self, name)
                raise said if isinstance(said, UnmadeError) else error from None
            raise missing(self, name)


def missing(thing: Any, name: str) -> AttributeError:
    """The error for an attribute that an object has not: it tells of a constructor that did not call its base's.

    Args:
        thing: whose `__getattr__` was called.
        name: the attribute.
    """
    kind = type(thing).__name__
    for base in type(thing).__mro__[1:] if name[:2] != "__" else ():
        if base is nn.Module:
            lacks = "_modules" not in vars(thing)
        else:
            constructor = inspect.unwrap(vars(base).get("__init__", missing))
            lacks = constructor is not missing and name in getattr(constructor, "__code__", missing.__code__).co_names
        if lacks:
            return UnmadeError(
                f"the constructor of {kind} does not call super().__init__(), by which {base.__name__} sets {name}; call it "
                "first, with the settings that it takes"
            )
    return AttributeError(f"{kind!r} object has no attribute {name!r}")


def check_methods(thing: Any, base: type) -> None:
    """Raise `ConfigurationError` for a public method of `base` that the class of `thing` has made to take something else.

    >>> class Rule:
    ...     def check(self, num_clients): ...
    >>> class Mine(Rule):
    ...     def check(self): ...
    >>> check_methods(Mine(), Rule)
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: Mine.check must take (num_clients), as that of Rule does: too many positional ...
    """
    kind = type(thing)
    for name, method in vars(base).items():
        if (name[0] == "_" and name != "__call__") or not inspect.isfunction(method) or getattr(kind, name) is method:
            continue
        given = [each for each in list(inspect.signature(method).parameters.values())[1:] if each.default is each.empty]
        given = [each for each in given if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        try:
            inspect.signature(getattr(thing, name)).bind(*given)
        except TypeError as error:
            listed = ", ".join(each.name for each in given)
            raise ConfigurationError(
                f"{kind.__name__}.{name} must take ({listed}), as that of {base.__name__} does: {error}"
            ) from error
        except ValueError:  # what does not say what it takes
            continue
