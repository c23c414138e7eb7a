"""The one exception that stands for a mistake in what the user asked for."""

import difflib
from collections.abc import Iterable

CLOSE = 0.6
"""How alike two names must be, from 0 to 1, for one to be offered in place of the other."""

ABOUT_AS_CLOSE = 0.1
"""How much less alike than the best name another may be to be offered beside it."""


class ConfigurationError(ValueError):
    """A setting, path or piece of data that cannot work; the message names it, its value, the limit and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def in_one_line(error: Exception, length: int = 200) -> str:
    """What kind of error it is and what it says, cut to `length` characters of one line.

    >>> in_one_line(KeyError("a\\nb"))
    "KeyError: 'a\\\\nb'"
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names closest to `name`, as text for an error message.

    >>> nearest("Invarient", ["Invariant", "Median"])
    'did you mean Invariant?'
    >>> nearest("Krumm", ["Invariant", "Median"])
    'known: Invariant, Median'
    """
    known = sorted(known)
    likeness = {k: difflib.SequenceMatcher(None, name.lower(), k.lower()).ratio() for k in known}
    best = max(likeness.values(), default=0.0)
    if best < CLOSE:
        return f"known: {', '.join(known)}"
    close = sorted((k for k in known if likeness[k] >= max(CLOSE, best - ABOUT_AS_CLOSE)), key=lambda k: -likeness[k])
    return f"did you mean {' or '.join(close)}?"
