"""What a peer's script and the driver say to each other: one line of text each way, in turn.

The driver sends the workload as a line of JSON and reads a line that tells the versions and the names of what can be run.
Then it sends `run NAME` for each timed run and reads the seconds and what the run came to. A script runs in its peer's own
environment, so this file and its neighbours import neither `fl_lightning` nor the rest of `benchmarks`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

Workload = dict[str, Any]
Answer = dict[str, Any]
Run = Callable[[], Answer]


def serve(packages: list[str], prepare: Callable[[Workload], Mapping[str, Run]]) -> None:
    """Answer the driver until it closes the line.

    Args:
        packages: whose versions the driver is told.
        prepare: makes everything that is not timed from the workload; by name, functions that do one timed run.
    """
    # What the peer prints goes to stderr, so that the answers have stdout for themselves.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: Answer) -> None:
        print(json.dumps(content), file=answers, flush=True)

    runs = prepare(json.loads(sys.stdin.readline()))
    answer({"versions": {package: version(package) for package in packages}, "runs": list(runs)})
    for line in iter(sys.stdin.readline, ""):
        try:
            answer(runs[line.removeprefix("run ").strip()]())
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})


def timed_rule(rule: Callable[[], Any]) -> Run:
    """A run of a rule: its seconds, and about a thousand coordinates of the aggregate for comparison."""

    def run() -> Answer:
        began = time.perf_counter()
        aggregate = rule()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "values": [float(value) for value in aggregate[:: len(aggregate) // 1000]]}

    return run
