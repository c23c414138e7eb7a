"""What all benchmarks share: alternating timing, medians with their spread, and one JSON line per row."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and versions that a figure depends on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
    }


def processor() -> str:
    """The CPU's name; its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], object], device: torch.device, calls: int = 1) -> Callable[[], float]:
    """A function that makes so many calls in a row and returns the seconds that each took, the device's work included."""

    def run() -> float:
        synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            function()
        synchronize(device)
        return (time.perf_counter() - began) / calls

    return run


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Most memory that one run of `function` takes beyond what is there before it.

    On a CPU the run happens in a forked child, whose high-water mark begins at what it shares with its parent; so the parent's
    memory is not counted, and pages that the child only reads are not either.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        function()
        theirs.send(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))

    process = context.Process(target=child)
    process.start()
    theirs.close()  # the child has its own end: should that fail, reading ends too
    found = ours.recv()
    process.join()
    return found


def alternate(candidates: Mapping[str, Callable[[], float]], *, repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Measure candidates in turn, so that a change of the machine's load meets all of them alike.

    Args:
        candidates: by name, functions that return the seconds of one run.
        repeats: measured runs of each.
        warm_up: runs of each before, which are thrown away.

    Returns:
        By name, the seconds of the measured runs.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warm_up + repeats):
        for name, candidate in candidates.items():
            elapsed = candidate()
            if repeat >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def summary(values: list[float]) -> dict[str, float]:
    """The median and the quartile spread, the distance between the quartiles as a share of the median."""
    median = statistics.median(values)
    if len(values) < 2:
        return {"median": significant(median), "spread": 0.0}
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": significant(median), "spread": round((quartiles[2] - quartiles[0]) / median, 3)}


def significant(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def emit(benchmark: str, row: Mapping[str, Any], device: torch.device) -> None:
    """Print one row as a line of JSON."""
    print(json.dumps({"benchmark": benchmark, **row, **environment(device)}), flush=True)
