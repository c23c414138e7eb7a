"""A parser of configurations that says what is wrong in one line, and what may have been meant.

jsonargparse makes one parser of this class for the command, and one for every class that a configuration names; a mistake in
the settings of a class is met by that class's parser, which alone knows what they are called, and is handed up from there.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, get_args, get_origin

import lightning as L
from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from fl_lightning.aggregators import Aggregator
from fl_lightning.attacks import Attack
from fl_lightning.data import EdgePool, FederatedDataModule, Noise, Partition
from fl_lightning.errors import ConfigurationError, by_likeness, enumerated, folded, likeness, nearest
from fl_lightning.models import Classifier

set_parsing_settings(subclasses_enabled=[Noise])  # beside a dataclass in a union, class_path of another class would be dropped

PARTS = (
    Aggregator,
    Attack,
    FederatedDataModule,
    Partition,
    EdgePool,
    Classifier,
    L.LightningModule,
    L.Callback,
    Optimizer,
    Logger,
)
"""Base classes whose subclasses a configuration may name; their names are offered when one is misspelt."""

FOUND = "\x00"
"""Stands around what an inner parser has found, so that the outer ones take that and none of what they would add."""

NULL = "must not be null; leave it out for its default"

SEVERAL = "must be a mapping of settings"

RAW = {
    r"Not a valid subclass of (\w+)\. Got value: (.*?)( Subclass types expect one of: .*)?$": (
        r"must be a class of the kind \1, given by class_path, got \2"
    ),
    r"Type typing\.Callable\[.*?, (?:\w+\.)*(\w+)\] expects a function .* Got value: Namespace\(class_path='([^']*)'": (
        r"there is no class \2 of the kind \1; give the class_path of one that is"
    ),
    r"Type typing\.Callable\[.*?, (?:\w+\.)*(\w+)\] expects a function .* Got value: (.*)$": (
        r"must be a class of the kind \1, given by class_path, got \2"
    ),
    r"import path string: ([-+]?(?:nan|inf))\b": r"must be a finite number, got \1",
    r"Key must be a string, got: (.*)\.$": r"a setting has a name, got \1",
    r"Empty nested key": r"a setting has a name, got ''",
    r"Unable to load config '(.*?)'": rf"{SEVERAL}, or a file with one, got \1",
}
"""What the libraries' messages say, and how it is said here; `\\1` is what their first brackets found."""

PLAIN = r"<class '(?:float|int|bool)'>"
"""In a message's list of types, one that is no class of the user's."""

CLASS_KEYS = ("class_path", "init_args")

ALMOST = 0.85
"""How alike a name must be to one of these, from 0 to 1, to be one of them misspelt."""

MOST_LETTERS = 800
"""Length of a list of names in a message; ten lines of a terminal."""


class Parser(LightningArgumentParser):
    """Reports a mistake in a few lines, with the nearest known names; takes no abbreviations, and no null for a value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.described: str | None = None  # the class or function whose arguments are parsed; None for a command's parser

    def add_class_arguments(self, theclass: Any, nested_key: str | None = None, *args: Any, **kwargs: Any) -> list[str]:
        if nested_key is None:
            self.described = theclass.__name__
        return super().add_class_arguments(theclass, nested_key, *args, **kwargs)

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        self.check_groups(namespace)
        super().validate(namespace, *args, **kwargs)
        # To the parser itself a null in a file is a setting that was left out, whatever its default is.
        for action in self._actions:
            if action.dest in namespace and namespace[action.dest] is None and needs_value(action):
                raise TypeError(f'Parser key "{action.dest}": {NULL}')

    def check_groups(self, namespace: Any) -> None:
        """Raise for a value in place of several settings."""
        for action in self._actions:
            value = namespace.get(action.dest)
            if is_group(action) and value is not None and not isinstance(value, (Mapping, Namespace)):
                raise TypeError(f'Parser key "{action.dest}": {SEVERAL}, got {value!r}')

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause = None if ex is None else ex.__cause__
        if isinstance(cause, ConfigurationError) and FOUND not in str(cause):
            raise cause  # of a file, which the same parser has read: all has been said
        where, text = explain(message, getattr(ex, "subcommand_parser", None) or self)
        if not self.exit_on_error:  # one of a class: the command's parser goes on from here
            raise ConfigurationError(FOUND.join(["", where, text, ""])) from ex
        raise ConfigurationError(f"{where}: {text}" if where else text) from ex


def needs_value(action: Any) -> bool:
    """Whether a setting may be left out but not be null: it has a default and a type without null, or stands for several."""
    hint = getattr(action, "_typehint", action.type)
    valued = action.default is not None and hint is not None and hint is not Any and type(None) not in get_args(hint)
    return is_group(action) or (bool(action.option_strings) and valued)


def is_group(action: Any) -> bool:
    """Whether a setting stands for several, as `model.local` does."""
    return getattr(action, "basetype", None) is not None


# ---- what a message says ---------------------------------------------------------------------------------------------


def explain(message: str, parser: Parser) -> tuple[str, str]:
    """Where a mistake is, as the dotted name of a setting, and what it is, from a parser's message."""
    before, found, after = message.partition(FOUND)
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', before)))
    if found:  # other attempts to make sense of the value, which come after it, are of no use
        inner, text, _ = after.split(FOUND, 2)
        return ".".join([*keys, inner] if inner else keys), text
    message = folded(message)
    if message.endswith(NULL):
        return ".".join(keys), NULL
    if "arguments are required: " in message:
        return ".".join(keys), missing(message, parser)
    for noise in (
        r"- Expected a path but .*? either not accessible or invalid (- )?",
        r'(- )?Parser key "[^"]+":( -)?( element \d+:)? ',
        r"Call to compute_fn of link .*? failed: ",
    ):
        message = re.sub(noise, "", message)
    text = in_our_terms(message) or unknown_setting(message, parser)
    text = text or unknown_class(message, parser, keys[:1]) or unfit_class(message, parser, keys[:1]) or wrong_type(message)
    if text is not None:
        return ".".join(keys), text
    if "No module named" in message:
        message += "; modules are looked for in the current folder and among the installed packages"
    return ".".join(keys), message


def missing(message: str, parser: Parser) -> str:
    """For settings that have no default; the command's own parser puts the command before their names."""
    commands = [command for action in parser._actions if isinstance(action.choices, dict) for command in action.choices]
    names = message.partition("required: ")[2].split(", ")
    for command in commands:
        names = [name.removeprefix(f"{command}.") for name in names]
    return f"{' and '.join(names)} must be given"


def in_our_terms(message: str) -> str | None:
    """For what a library says in its own terms alone."""
    for pattern, text in RAW.items():
        found = re.search(pattern, message)
        if found is not None:
            return found.expand(text)
    return None


def unknown_setting(message: str, parser: Parser) -> str | None:
    """For a setting that is not there: those that are, the nearest first."""
    wrong = re.search(r"(?:Group '([^']+)' does not accept )?[Oo]ption '([^']+)'|unrecognized arguments: (.*)", message)
    if wrong is None:
        return None
    name = ".".join(part for part in (wrong[1], wrong[2]) if part) or wrong[3].split("=")[0].split(" ")[0]
    if not wrong[2] and not name.startswith("--"):
        return f"{wrong[3]!r} stands alone; a setting is given as --NAME VALUE"
    name = name.removeprefix("--")
    within, known = "", names(parser)
    for word in name.split("."):
        if word not in known:
            break
        within, known = f"{within}{word}.", {other.partition(".")[0] for other in names(parser, f"{within}{word}.")}
    else:
        return f"{message}; see --help"
    if parser.described and max(likeness(word, other) for other in CLASS_KEYS) > ALMOST:
        return f"a class is given by class_path, and what stands beside that in init_args, got {word} beside it"
    owner = parser.described or within.rstrip(".") or "the command"
    listed = enumerated(by_likeness(word, known), MOST_LETTERS)
    hint = nearest(word, known)
    hint = f"{hint} It has: {listed}" if hint.startswith("did") else f"it has: {listed}"
    return f"{owner} has no setting {word}; {hint}" if known else f"{owner} has no settings, got {word}"


def unknown_class(message: str, parser: Parser, keys: list[str]) -> str | None:
    """For a class that is not there: what may stand in its place."""
    wrong = re.search(r"import path string: ([\w.]+)|module '[\w.]+' has no attribute '(\w+)'", message)
    if wrong is None or re.search(rf"Subtypes: \[[^\]]*{PLAIN}", message):  # a number was meant
        return None
    name = wrong[1] or wrong[2]
    offers = [cls for base in kinds_of(parser, keys) or PARTS for cls in subclasses(base) if offered(cls)]
    if not offers:  # no class is wanted
        return None
    offers.sort(key=lambda cls: (not cls.__module__.startswith("fl_lightning."), cls.__name__))  # the package's own first
    known = list(dict.fromkeys(cls.__name__ for cls in offers))
    hint = nearest(name, known)
    if not hint.startswith("did"):
        hint = f"known: {enumerated(known, MOST_LETTERS)}; one of yours goes by its import path"
    return f"there is no class {name}; {hint}"


def unfit_class(message: str, parser: Parser, keys: list[str]) -> str | None:
    """For a class that is there and cannot stand where it does: what may."""
    other = re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message)
    base = re.search(r"Expected an instantiatable class, but (\S+) is abstract", message)
    if other is None and base is None:
        return None
    known = sorted({cls.__name__ for kind in kinds_of(parser, keys) for cls in subclasses(kind) if offered(cls)})
    listed = f"; known: {enumerated(known, MOST_LETTERS)}" if known else ""
    if base is not None:
        return f"{base[1]} says what classes of its kind have in common, and none can be made of it{listed}"
    assert other is not None
    if other[2] == "ClientModule":
        return (
            f"{other[1]} is no LightningModule, which says what its loss is and how it is optimized; give one, which may hold "
            f"it as a layer{listed}"
        )
    return f"{other[1]} is no {other[2]}{listed}; one of yours goes by its import path"


def kinds_of(parser: Parser, keys: list[str]) -> list[type]:
    """The classes that the settings of these names are declared to take."""
    return [base for action in parser._actions if action.dest in keys for base in classes(getattr(action, "_typehint", None))]


def wrong_type(message: str) -> str | None:
    """For a value of another type than the setting's."""
    several = re.search(r"Subtypes: \[(.*?)\] Errors: .* Given value: (.*)$", message)
    if several is not None:
        types = [readable(part) for part in re.split(r", (?![^\[]*\])", several[1])]
        return f"must be {' or '.join(dict.fromkeys(types))}, got {several[2]}"
    one = re.search(r"Expected a (.*?)\. Got value: (.*)$", message) or re.search(
        r"Expected a (<class .*?>|typing.*?)$", message
    )
    if one is None:
        return None
    wanted = readable(one[1])
    wanted = "a list, to which NAME+ adds one" if wanted.endswith(("Sequence", "list")) else wanted
    return f"must be {wanted}" + (f", got {one[2]}" if len(one.groups()) > 1 else "")


def readable(type_name: str) -> str:
    """
    >>> readable("<class 'float'>"), readable("typing.Literal['mean', 'keep']")
    ('a number', 'one of mean, keep')
    """
    if "Literal[" in type_name:
        return "one of " + ", ".join(re.findall("'([^']*)'", type_name))
    plain = re.sub(r"<class '([^']+)'>", r"\1", type_name)
    plain = re.sub(r"\b[a-z_]\w*\.(?=\w)", "", plain)  # modules
    return {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "NoneType": "null"}.get(
        plain, f"a {plain}" if plain.isidentifier() else plain
    )


# ---- what there is ---------------------------------------------------------------------------------------------------


def names(parser: Parser, prefix: str = "") -> set[str]:
    """What stands behind `prefix` in the names of a parser's settings; of the main parser, also its commands."""
    found = {action.dest for action in parser._actions if action.dest and action.option_strings}
    for action in parser._actions:
        found |= set(action.choices) if isinstance(action.choices, dict) else set()
    return {name.removeprefix(prefix) if prefix else name.partition(".")[0] for name in found if name.startswith(prefix)} - {
        "help"
    }


def classes(hint: Any) -> Iterator[type]:
    """The classes in a type hint."""
    if isinstance(hint, type) and get_origin(hint) is None:
        yield from [] if hint is type(None) else [hint]
    for part in get_args(hint):
        yield from classes(part)


def offered(cls: type) -> bool:
    """Whether a class may be what somebody meant: one of which objects are made, and none of this package's own parts."""
    if cls in PARTS or inspect.isabstract(cls) or any(base.__module__ == "fl_lightning.federation" for base in cls.__mro__):
        return False  # nor is a federation anybody's client
    wing = ".".join(cls.__module__.split(".")[:2])
    if not wing.startswith("fl_lightning."):
        return True
    exported = set(getattr(sys.modules[wing], "__all__", ()))
    if not issubclass(cls, L.LightningModule):  # the federation itself is nobody's client
        exported |= set(sys.modules["fl_lightning"].__all__)
    return cls.__name__ in exported


def subclasses(base: type) -> list[type]:
    """All public subclasses that are loaded."""
    found = []
    for cls in base.__subclasses__():
        found += [] if cls.__name__.startswith("_") else [cls]
        found += subclasses(cls)
    return found
