"""A run's folder: what lies in it, who is at work in it, and what became of it."""

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from fl_lightning.checkpoints.newest import newest
from fl_lightning.errors import ConfigurationError, folded
from fl_lightning.files.regular_files import check_regular
from fl_lightning.files.run_files import (
    TRAINING_LOCK,
    LockedError,
    locked,
    own_file,
    read_json,
    read_lines,
    take_lock,
    write_whole,
)
from fl_lightning.files.sealed import DamagedError, altered, sealed, unsealed

BEAT_SECONDS = 15.0
"""Time between two signs of life of a run."""

SILENT_SECONDS = 6 * BEAT_SECONDS
"""Time without one after which a run on another machine counts as gone."""


MOST_LETTERS = 500
"""Of a message in a table, which an exception may fill with pages."""


class State(StrEnum):
    """What became of a run so far; see `Ending` for how they differ."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"


def cut_short(record: Mapping[str, Any]) -> bool:
    """Whether `max_time` ended a run whose record, as an earlier version wrote it, says that it is finished."""
    trainer = record.get("config", {}).get("trainer", {})
    rounds, planned = record.get("rounds", 0), trainer.get("max_epochs")
    return "state" not in record and trainer.get("max_time") is not None and planned is not None and rounds < planned


@dataclass(frozen=True)
class RunFolder:
    """What a run leaves in its folder, read from the files alone, so that it tells the same on every node of a cluster.

    Files: `config.yaml` (all settings), `run.json` and `metrics.jsonl` (`RunRecord`), `last.ckpt`, `log.txt` (what the run
    printed), `status.json` (the last attempt: host, process, command, exit status), and locks.

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
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return newest(self.path) is not None

    @property
    def record(self) -> dict[str, Any]:
        """`run.json`, empty if there is none or it is damaged."""
        return read_json(own_file(self.path / "run.json"))

    @property
    def damage(self) -> str:
        """What is wrong with the record, and what to do; empty if nothing is: a number that has changed is not believed."""
        try:
            unsealed(own_file(self.path / "run.json"))
        except DamagedError as error:
            return f"{error}; the sweep's own command goes on from the last checkpoint, and writes it anew"
        return ""

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The evaluations so far, in order."""
        return read_lines(own_file(self.path / "metrics.jsonl"))

    @property
    def status(self) -> dict[str, Any]:
        """The last attempt; empty before the first, and where it is damaged, which is over with the next attempt."""
        return read_json(own_file(self.path / "status.json"))

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        record = self.record
        return bool(record.get("finished")) and not cut_short(record)

    @property
    def state(self) -> State:
        """A run is at work while a process holds one of its locks or, where locks do not reach, gives signs of life."""
        if self.finished:
            return State.FINISHED
        if self.locked or self.at_work_elsewhere:
            return State.RUNNING
        if self.damage:
            return State.FAILED
        record, attempt = self.record, self.status.get("state")
        state = record.get("state") if attempt is None else attempt
        if state in (State.FAILED, State.STOPPED):
            return State(state)
        return State.INTERRUPTED if state is not None or record else State.PENDING

    @property
    def message(self) -> str:
        """Why the last attempt failed or stopped, on one line that is not too long; the log has all of it."""
        said = self.damage or folded(self.status.get("message") or self.record.get("reason", ""))
        return said if len(said) <= MOST_LETTERS else f"{said[:MOST_LETTERS]}..."

    @property
    def attempt(self) -> int:
        """How often the run was started; 0 before the first."""
        number = self.status.get("attempt")
        return number if type(number) is int else 0

    @property
    def at_work_elsewhere(self) -> bool:
        """Whether a process on another machine says that it is at work here, and gave a sign of life just now."""
        return self._gives_signs_of_life and self.status.get("host") != socket.gethostname()

    @property
    def _gives_signs_of_life(self) -> bool:
        if self.status.get("state") != State.RUNNING:
            return False
        beat = (self.path / "status.json").stat()
        silent = time.time() - beat.st_mtime
        return self._beat_again(beat.st_mtime_ns) if silent < -SILENT_SECONDS else silent < SILENT_SECONDS

    def _beat_again(self, beat: int) -> bool:
        """Whether a run whose last sign of life lies in the future gives further ones.

        A clock is wrong, that machine's, this one's, or one that was set back. So its time says nothing, but that it changes
        does: the first who looks writes it down, and as many seconds later a run that gave no other one is gone.
        """
        seen = self.path / "status.seen"
        try:
            if read_json(seen).get("beat") == beat and (since := time.time() - seen.stat().st_mtime) > -SILENT_SECONDS:
                return since < SILENT_SECONDS
            write_whole(seen, json.dumps({"beat": beat}) + "\n")
        except OSError:  # somebody else's runs
            return False
        return True

    @property
    def whereabouts(self) -> str:
        """Where a run is at work, and since when it has given no sign of life, in words."""
        status = self.status
        if not status:
            return "by a process that was not started as part of a sweep"
        silent = round(time.time() - (self.path / "status.json").stat().st_mtime)
        when = f"{silent} s ago" if silent >= 0 else f"{-silent} s ahead of this machine's clock"
        return f"as process {status.get('child', status.get('pid'))} on {status.get('host')}, last sign of life {when}"

    def check_config(self) -> None:
        """Raise `ConfigurationError` where `config.yaml` is not what was written: nobody watches a run that starts by it."""
        check_regular(self.config)
        if altered(self.config):
            raise ConfigurationError(
                f"{self.config} is not what was written there: it is damaged, or was edited; the sweep's own command writes it "
                "anew, and where it was edited on purpose, delete its last line, the digest"
            )

    # ---- for those at work in it -------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether a process holds the lock of the job, or that of the training itself, which may outlive the job."""
        for path in (self.path / "lock", self.path / TRAINING_LOCK):
            if path.exists():
                try:
                    take_lock(path, patience=0.0).close()
                except LockedError:
                    return True
                except PermissionError:  # somebody else's runs
                    return self._gives_signs_of_life
        return False

    def lock(self) -> AbstractContextManager[int]:
        """Hold the job's lock; gives its file descriptor, by which a child process can hold it too.

        Raises:
            LockedError: another process is at work here.
        """
        return locked(self.path / "lock")

    def write_status(self, state: State, **more: Any) -> None:
        """Write `status.json`: the state, where and as what it runs, and more."""
        entry = {"state": state, "host": socket.gethostname(), "pid": os.getpid(), **more}
        write_whole(self.path / "status.json", json.dumps(sealed(entry), indent=1) + "\n")

    def beat(self) -> None:
        """A sign of life; one that cannot be given, on a disk that is full or away, is not worth a run."""
        with suppress(OSError):
            os.utime(self.path / "status.json")


# ---- numbers of a record ---------------------------------------------------------------------------------------------


class AsItStands(RunFolder):
    """A run's folder for a report: record and evaluations are read once, so that all of the report is of one moment."""

    @cached_property
    def record(self) -> dict[str, Any]:  # pyrefly: ignore[bad-override]
        return super().record

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:  # pyrefly: ignore[bad-override]
        return super().metrics


def count(value: Any) -> int:
    """A value of a record as a number of something, 0 if it is none."""
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else 0


def reached(run: RunFolder, record: dict[str, Any]) -> int:
    """The rounds done, as the record says, or the evaluations of a run whose record was written as it began."""
    evaluations = run.metrics[-1:] if record.get("state") == State.RUNNING else []
    return max([count(record.get("rounds")), *(int(entry["round"]) for entry in evaluations)])
