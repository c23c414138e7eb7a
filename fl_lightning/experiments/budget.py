"""A span of time that a sweep may take, after which it ends as by SIGTERM and goes on the next time."""

import argparse
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SPENT = 75
"""Exit status of a sweep whose time is spent before its runs are: try again later, as `EX_TEMPFAIL` of sysexits.h."""

SECONDS = {"h": 3600, "m": 60, "s": 1}

MOST_SECONDS = 366 * 24 * 3600
"""A year; who means more means no budget."""

FORMS = "give whole hours, minutes or seconds with their units, such as 2h, 25m, 90s or 1h30m"


def read_span(text: str) -> int:
    """The seconds that a text such as `1h30m` stands for, in [1, `MOST_SECONDS`]; the type of an option of argparse.

    >>> read_span("90s"), read_span("25m"), read_span("1h30m")
    (90, 1500, 5400)
    """
    found = re.fullmatch(r"(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?", text)
    if not text or found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no span of time; {FORMS}")
    span = sum(int(number) * SECONDS[unit] for number, unit in zip(found.groups(default="0"), SECONDS, strict=True))
    if not 1 <= span <= MOST_SECONDS:
        most = MOST_SECONDS // SECONDS["h"]
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1s and at most {most}h; leave it out for no limit")
    return span


class Budget:
    """Time that begins to run now.

    Args:
        seconds: how long it lasts; None for no limit.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds

    @property
    def spent(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end

    @contextmanager
    def ending(self, stop: threading.Event) -> Iterator[None]:
        """Set an event when the time is spent, unless the block is left before."""
        if self.end is None:
            yield
            return
        timer = threading.Timer(max(0.0, self.end - time.monotonic()), stop.set)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
