"""A peer at the driver's end of the line: a process of the peer's own Python, one at work at a time."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

KINDS = {"byzfl": ("rules", "rounds"), "flower": ("rules", "rounds"), "pfl": ("rounds",), "fedjax": ("rounds",)}
"""By peer, the kinds of work that it does. Each has a script `NAME_peer.py` here and a virtual environment of its name."""

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""One thread in every library, and no reports sent anywhere."""


class PeerError(RuntimeError):
    """A peer that has died or that cannot do a piece of work."""


class Peer:
    """A started peer; a context manager that ends it.

    Args:
        name: one of `KINDS`.
        environments: folder of the virtual environments.
        workload: what the peer prepares, to be written as JSON.
        log: file for all that the peer prints.

    Attributes:
        versions: of the packages that matter, by name.
        runs: names of what it can run.
        answers: by name, what the latest run came to.
    """

    def __init__(self, name: str, environments: Path, workload: dict[str, Any], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [environments.absolute() / name / "bin" / "python", Path(__file__).with_name(f"{name}_peer.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | QUIET,
            )
        about = self._ask(json.dumps(workload))
        self.versions: dict[str, str] = about["versions"]
        self.runs: list[str] = about["runs"]
        self.answers: dict[str, dict[str, Any]] = {}

    def run(self, name: str) -> float:
        """Seconds of one run."""
        answer = self._ask(f"run {name}")
        if "error" in answer:
            raise PeerError(answer["error"])
        self.answers[name] = answer
        return answer["seconds"]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # which a peer takes as the end
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = ""
        if self.process.poll() is None:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        if not answer:
            tail = "\n".join(self.log.read_text().splitlines()[-10:])
            raise PeerError(f"the peer {self.name} has ended; its last words:\n{tail}")
        return json.loads(answer)


def available(environments: Path) -> list[str]:
    """Names of the peers whose virtual environments are there."""
    return [name for name in KINDS if (environments / name / "bin" / "python").exists()]
