"""What a run ran on: processor, memory, versions."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_lightning import __version__
from fl_lightning.federation import Federation
from fl_lightning.server.phases import EXTRA_WORK
from fl_lightning.training.peak_memory import peak_memory_bytes
from fl_lightning.training.stopwatch import ATTACKERS_TRAINING

PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "numpy")


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that decide what a run computes."""
    others = {name: installed(name) for name in PACKAGES}
    return {"python": platform.python_version(), "fl_lightning": __version__, **others}


def installed(package: str) -> str | None:
    """Its version; None where it was not installed but is imported from a folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine of rank 0."""
    found = {"platform": platform.platform(), "processors": os.cpu_count(), "threads_per_rank": torch.get_num_threads()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    return {"device": device.type, "name": name, **found}


def processor_name() -> str:
    """The processor's model, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


@dataclass(frozen=True)
class MemoryTaken:
    """What a federation has taken, in bytes.

    Attributes:
        peak: most memory that the process has held.
        extra: the most that attackers and rule took beyond what was held before them, by phase; those alone that there were.
    """

    peak: int
    extra: dict[str, int]

    PARTS = (ATTACKERS_TRAINING, *EXTRA_WORK)
    MISSING = -1

    @classmethod
    def of(cls, federation: Federation, device: torch.device) -> MemoryTaken:
        """Of this rank, so far."""
        return cls(peak_memory_bytes(device), dict(federation.peak_memory.taken))

    def as_tensor(self, device: torch.device) -> Tensor:
        """Numbers that ranks can compare."""
        return torch.tensor([self.peak, *(self.extra.get(part, self.MISSING) for part in self.PARTS)], device=device)

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> MemoryTaken:
        """The same back."""
        peak, *parts = numbers.long().tolist()
        return cls(peak, {part: taken for part, taken in zip(cls.PARTS, parts, strict=True) if taken != cls.MISSING})
