"""How long the parts of a round take, and how much memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

EXTRA_WORK = ("attack", "examination", "aggregation", "edits")
"""Phases that are an attack's or a rule's work, whose memory is told apart from that of training and exchange."""


class Phases:
    """Adds up the seconds of phases, of which one may lie inside another; each second counts once, for the inner one."""

    def __init__(self) -> None:
        self._inside = 0.0  # seconds of phases inside the one under way

    @contextmanager
    def phase(
        self,
        name: str,
        seconds: MutableMapping[str, float],
        device: torch.device,
        watched: AbstractContextManager[None] | None = None,
    ) -> Iterator[None]:
        """Add the time of what is done inside to `seconds[name]`, the device's work included; `watched` is entered as well."""
        began, beside = time.perf_counter(), self._inside
        self._inside = 0.0
        with watched or nullcontext():
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - began
        seconds[name] += elapsed - self._inside
        self._inside = beside + elapsed
