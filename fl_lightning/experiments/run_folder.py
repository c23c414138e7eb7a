"""A run's folder: what lies in it, who is at work in it, and what became of it."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fl_lightning.files import read_json, read_lines, write_whole

BEAT_SECONDS = 15.0
"""Time between two signs of life of a run."""

SILENT_SECONDS = 6 * BEAT_SECONDS
"""Time without one after which a run on another machine counts as gone."""


class State(StrEnum):
    """What became of a run so far."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


class LockedError(Exception):
    """Another process is at work in the folder."""


@dataclass(frozen=True)
class RunFolder:
    """What a run leaves in its folder, read from the files alone, so that it tells the same on every node of a cluster.

    Files: `config.yaml` (all settings), `run.json` and `metrics.jsonl` (`RunRecord`), `last.ckpt`, `log.txt` (what the run
    printed), `status.json` (the last attempt: host, process, command, exit status), `lock`.

    Args:
        path: the folder; it need not be there yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def record(self) -> dict[str, Any]:
        """`run.json`, empty if there is none."""
        return read_json(self.path / "run.json")

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The evaluations so far, in order."""
        return read_lines(self.path / "metrics.jsonl")

    @property
    def status(self) -> dict[str, Any]:
        """The last attempt; empty before the first."""
        return read_json(self.path / "status.json")

    @property
    def state(self) -> State:
        """A run is at work if a process holds its lock, here or where locks are seen, or gave a sign of life just now."""
        if self.record.get("finished"):
            return State.FINISHED
        status = self.status
        running = status.get("state") == State.RUNNING
        if self.locked or (running and self._beat_seconds_ago < SILENT_SECONDS and status.get("host") != socket.gethostname()):
            return State.RUNNING
        if status.get("state") == State.FAILED:
            return State.FAILED
        return State.INTERRUPTED if running or (self.path / "run.json").exists() else State.PENDING

    @property
    def message(self) -> str:
        """Why the last attempt failed, on one line."""
        return self.status.get("message", "")

    @property
    def _beat_seconds_ago(self) -> float:
        return time.time() - (self.path / "status.json").stat().st_mtime

    # ---- for those at work in it -------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether a process holds the lock."""
        if not (self.path / "lock").exists():
            return False
        try:
            with self.lock(patience=0.0):
                return False
        except LockedError:
            return True

    @contextmanager
    def lock(self, *, patience: float = 1.0) -> Iterator[int]:
        """Hold the folder's lock; gives its file descriptor, by which a child process can hold it too.

        The system frees it when the last process that holds it has ended, however that came about.

        Args:
            patience: seconds to try for: who only asks whether it is locked holds it for a moment too.

        Raises:
            LockedError: another process holds it.
        """
        deadline = time.monotonic() + patience
        with (self.path / "lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise LockedError(str(self.path)) from None
                    time.sleep(0.05)
                except OSError:
                    break  # a file system without locks: signs of life are all there is
            yield file.fileno()

    def write_status(self, state: State, **more: Any) -> None:
        """Write `status.json`: the state, where and as what it runs, and more."""
        entry = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), **more}
        write_whole(self.path / "status.json", json.dumps(entry, indent=1) + "\n")

    def beat(self) -> None:
        """A sign of life."""
        os.utime(self.path / "status.json")
