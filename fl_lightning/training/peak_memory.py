"""The most memory that stretches of work take beyond what was held before them.

On a GPU the allocator counts. On a CPU it is the process's resident memory, of which Linux keeps the highest value since
somebody last set that back (`/proc/self/clear_refs`). Freed memory that the process keeps is held: work that finds enough of
it takes nothing more.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

SET_BACK = b"5"
"""What sets the highest value back, and nothing else: see proc_pid_clear_refs(5)."""


class PeakMemory:
    """Keeps the highest value since the last look, and the highest of all, as each look sets it back.

    Args:
        device: whose memory is looked at.

    Attributes:
        taken: bytes by name, of what `during` was called with.
        can_look: whether the system tells.

    Example:
        >>> peak = PeakMemory(torch.device("cpu"))
        >>> with peak.during("a vector"):
        ...     vector = torch.ones(2**26)
        >>> peak.taken["a vector"] > 2**27 if peak.can_look else True
        True
    """

    highest = 0
    """Of the process, as far as it was set back."""

    switch: tuple[int, int] = (0, -1)
    """The process, and the descriptor of its file, which stays open: a round looks ten times and more."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.taken: dict[str, int] = {}
        self._open: list[list[int]] = []  # of each stretch under way: bytes as it began, most since then
        self.can_look = device.type == "cuda" or self._set_back()

    def look(self) -> int:
        """The highest value since the last look, in bytes."""
        peak = reading(self.device)
        PeakMemory.highest = max(PeakMemory.highest, peak)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._set_back()
        return peak

    @classmethod
    def _set_back(cls) -> bool:
        with suppress(OSError):  # another system than Linux, or one that does not let a process do so
            if cls.switch[0] != os.getpid():  # a fork has its parent's
                cls.switch = (os.getpid(), os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
            return os.write(cls.switch[1], SET_BACK) == len(SET_BACK)
        return False

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """Raise `taken[name]` to the most that is taken inside; a stretch inside another one counts for itself alone.

        Nothing is said where nobody can look.
        """
        if not self.can_look:
            yield
            return
        self._note()
        self._open.append([reading(self.device), 0])
        try:
            yield
        finally:
            self._note()
            began, most = self._open.pop()
            self.taken[name] = max(self.taken.get(name, 0), most - began)

    def _note(self) -> None:
        peak = self.look()
        if self._open:
            self._open[-1][1] = max(self._open[-1][1], peak)


def reading(device: torch.device) -> int:
    """The highest value since it was last set back: allocated on a GPU, or resident on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory that this process has held so far."""
    return max(PeakMemory.highest, reading(device))
