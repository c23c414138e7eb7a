"""How long stretches of work take on a device, which nobody waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ATTACKERS_TRAINING = "attackers_training"
"""Of a federation's seconds: what malicious clients took of local training, on all ranks together; the others are phases."""


class Stopwatch:
    """Adds up the seconds of stretches of work; on a GPU between two marks in its stream of work.

    Example:
        >>> watch = Stopwatch(torch.device("cpu"))
        >>> with watch.running():
        ...     pass
        >>> 0 <= watch.read() < 1
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.seconds = 0.0
        self.marks: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        if not self.on_gpu:
            began = time.perf_counter()
            yield
            self.seconds += time.perf_counter() - began
            return
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self.marks.append((first, last))

    def read(self) -> float:
        """Seconds so far; waits for a GPU to come to the last mark."""
        if self.marks:
            self.marks[-1][1].synchronize()
            self.seconds += sum(first.elapsed_time(last) for first, last in self.marks) / 1e3
            self.marks = []
        return self.seconds
