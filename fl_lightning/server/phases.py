"""How long the parts of a round take."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import torch


class Phases:
    """Adds up the seconds of phases, of which one may lie inside another; each second counts once, for the inner one."""

    def __init__(self) -> None:
        self._inside = 0.0  # seconds of phases inside the one under way

    @contextmanager
    def phase(self, name: str, seconds: MutableMapping[str, float], device: torch.device) -> Iterator[None]:
        """Add the time of what is done inside to `seconds[name]`, the device's work included."""
        began, beside = time.perf_counter(), self._inside
        self._inside = 0.0
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - began
        seconds[name] += elapsed - self._inside
        self._inside = beside + elapsed
