"""SIGTERM ends all ranks together, between two rounds.

No rank can end or write a checkpoint alone: the others wait for it in the next collective, and a handler that calls one there
and then, as Lightning's does, waits for ranks that are within another. So a signal is noted, at the end of a round all ranks
hear of it, and end with a checkpoint of that round. Where the round does not end soon, since it is a long one or another rank
is stuck, this process ends at once, and whoever started the ranks ends the others.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

ENDED_BY_SIGTERM = "ended by SIGTERM"
"""In the message of a rank that ends within a round."""

STOP_SECONDS = 10.0
"""How long the round may take that is under way; torchrun and SLURM give processes 30 s from the signal to the end."""

LONG_ROUND_SECONDS = STOP_SECONDS / 2
"""A round that took longer is followed by a checkpoint, as the next one may take too long to end with one."""


class Stopping:
    """Notes SIGTERM, also while this process waits within a collective, where Python's own handlers do not run.

    Args:
        last_words: called before this process ends at once, for what is to be said of the run; it returns how to go on.
        pass_on: called with the signal when it has come, for processes that this one started.
        users: the handler that there was before Lightning's, which is called too.

    Attributes:
        received: whether it has come.
    """

    def __init__(
        self,
        pass_on: Callable[[int], None] = lambda _: None,
        users: Any = None,
        last_words: Callable[[], str] = lambda: "start it again",
    ) -> None:
        self.pass_on, self.users, self.last_words = pass_on, users, last_words
        self.received = False
        self._ended = threading.Event()
        self._before: Any = None
        self._pipe: tuple[int, int] | None = None

    def begin(self) -> None:
        """Take SIGTERM over; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.signal(signal.SIGTERM, self._noted)
        reading, writing = self._pipe = os.pipe()
        os.set_blocking(writing, False)
        self._wakeup_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="SIGTERM", daemon=True).start()

    def end(self) -> None:
        """Give SIGTERM back."""
        self._ended.set()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            signal.signal(signal.SIGTERM, self._before)
            os.close(self._pipe[1])  # which ends the thread
            self._pipe = None

    def _noted(self, number: int, frame: FrameType | None) -> None:
        """The system writes to the pipe only where there is a handler."""
        if callable(self.users):
            self.users(number, frame)

    def _watch(self, reading: int) -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] == signal.SIGTERM:
                    break
            else:
                return
        self.received = True
        self.pass_on(signal.SIGTERM)
        if not self._ended.wait(STOP_SECONDS):
            try:
                how = self.last_words()
                print(
                    f"error: {ENDED_BY_SIGTERM} in a round that went on for {STOP_SECONDS:g} s more; {how}",
                    file=sys.stderr,
                    flush=True,
                )
            finally:  # whatever those words came to: nobody else ends this process
                self.pass_on(signal.SIGKILL)
                os._exit(128 + signal.SIGTERM)
