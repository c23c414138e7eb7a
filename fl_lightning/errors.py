"""The one exception that stands for a mistake in what the user asked for."""

import difflib
from collections.abc import Iterable

CLOSE = 0.6
"""How alike two names must be, from 0 to 1, for one to be offered in place of the other."""

ABOUT_AS_CLOSE = 0.1
"""How much less alike than the best name another may be to be offered beside it."""

FEW_LETTERS = 200
"""The length that a list of names in a message may have: there may be thousands, and a message is a line."""

SOME_LETTERS = 500
"""The same for a list of differences, each of them a few words."""


class ConfigurationError(ValueError):
    """A setting, path or piece of data that cannot work; the message names it, its value, the limit and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


def configuration_error(error: BaseException | None) -> ConfigurationError | None:
    """The configuration error that an exception is or was raised because of: parsers and launchers wrap what they catch."""
    while error is not None and not isinstance(error, ConfigurationError):
        error = error.__cause__ or error.__context__
    return error


def said(thing: object) -> str:
    """A text, or what an error says; that of a user's own class may fail at saying it.

    >>> class Silent(Exception):
    ...     def __str__(self):
    ...         raise TypeError
    >>> said(Silent())
    '(a Silent that cannot say what it is)'
    """
    try:
        return str(thing)
    except Exception:
        return f"(a {type(thing).__name__} that cannot say what it is)"


def folded(text: object) -> str:
    """The same on one line.

    >>> folded("two\\n  lines")
    'two lines'
    """
    return " ".join(said(text).split())


def first_line(error: BaseException) -> str:
    """The first line of what an error says, which may be a page; its kind where it says nothing.

    >>> first_line(RuntimeError("no graph\\nat line 3")), first_line(AssertionError())
    ('no graph', 'AssertionError')
    """
    return next(iter(said(error).strip().splitlines()), type(error).__name__)


def cause(error: Exception, *own: type[Exception]) -> str:
    """What kind of error it is and the first line of what it says; the latter alone where it is of a kind of one's own.

    >>> cause(RuntimeError("no graph\\nat line 3")), cause(ConfigurationError("too few"), ConfigurationError)
    ('RuntimeError: no graph', 'too few')
    """
    alone = isinstance(error, own) or not said(error).strip()
    return first_line(error) if alone else f"{type(error).__name__}: {first_line(error)}"


def noted(error: BaseException) -> str:
    """What has been noted of an error, as where it came up; empty if nothing has.

    >>> error = KeyError("a")
    >>> error.add_note("on batch 1"), error.add_note("of client 2"), noted(error)
    (None, None, 'on batch 1 of client 2')
    """
    return folded(" ".join(getattr(error, "__notes__", ())))


def in_one_line(error: Exception, length: int = 200) -> str:
    """What kind of error it is and what it says, cut to `length` characters of one line.

    >>> in_one_line(KeyError("a\\nb"))
    "KeyError: 'a\\\\nb'"
    """
    return folded(f"{type(error).__name__}: {error}")[:length]


def by_likeness(name: str, known: Iterable[str]) -> list[str]:
    """The known names, those that are spelt most like `name` first.

    >>> by_likeness("tua", ["alpha", "tau"])
    ['tau', 'alpha']
    """
    return sorted(known, key=lambda other: (-likeness(name, other), other))


def likeness(name: str, other: str) -> float:
    """How alike two names are, from 0 to 1."""
    return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names closest to `name`, as text for an error message.

    >>> nearest("Invarient", ["Invariant", "Median"])
    'did you mean Invariant?'
    >>> nearest("Krumm", ["Invariant", "Median"])
    'known: Invariant, Median'
    """
    ordered = by_likeness(name, known)
    best = likeness(name, ordered[0]) if ordered else 0.0
    if best < CLOSE:
        all_fit = len(", ".join(ordered)) <= FEW_LETTERS
        return f"known: {enumerated(sorted(ordered) if all_fit else ordered)}"
    close = [other for other in ordered if likeness(name, other) >= max(CLOSE, best - ABOUT_AS_CLOSE)]
    return f"did you mean {enumerated(close, between=' or ')}?"


def enumerated(names: Iterable[object], letters: int = FEW_LETTERS, between: str = ", ") -> str:
    """Names on a line, as many as fit, and how many more there are.

    Args:
        names: those that say most first.
        letters: the most that the names may take; a longer name is cut.
        between: what stands between two of them.

    >>> enumerated(["tau", "alpha"]), enumerated(range(1000), letters=9)
    ('tau, alpha', '0, 1, 2 and 997 more')
    >>> enumerated(["a b", " label"])  # blanks that would not be seen
    "a b, ' label'"
    """
    texts, shown, length = [text if folded(text) == text else repr(text) for text in map(said, names)], [], 0
    for text in texts:
        if shown and length + len(between) + len(text) > letters:
            break
        shown.append(text if len(text) <= letters else f"{text[:letters]}...")
        length += len(between) * bool(length) + len(text)
    more = len(texts) - len(shown)
    return between.join(shown) + (f" and {more} more" if more else "")
