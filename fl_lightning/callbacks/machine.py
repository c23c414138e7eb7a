"""What a run ran on: processor, memory, versions."""

import os
import platform
import resource
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fl_lightning import __version__

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


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process held: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
