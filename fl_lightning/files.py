"""Files that whoever reads them finds whole, also while a run writes them and after one was killed."""

import fcntl
import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fl_lightning.errors import ConfigurationError

TRAINING_LOCK = "training.lock"
"""In a run's folder; held by rank 0 of whatever trains there."""


class LockedError(Exception):
    """Another process holds the lock."""


def own_file(path: Path) -> Path:
    """The path of a run's own file, after seeing that it is one, or that nothing is there.

    By a link a report would show what lies elsewhere, and a run would write there; a pipe would be waited for.

    Raises:
        ConfigurationError: it is a link, or no file.
    """
    if path.is_symlink():
        raise ConfigurationError(
            f"{path} is a link to {os.readlink(path)}; a run's files lie in its folder: put the file there"
        )
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"{path} is no file; a run keeps a file by that name there: move what is in its place")
    return path


class RoundLines:
    """Adds entries to a JSON-lines file, each round's once.

    A run that was killed and resumed comes by some rounds again; by the law of equal bits their entries are the ones that are
    there. A last line that a kill cut off is removed.

    Args:
        path: the file; made if it is not there.
        afresh: empty the file first, for a run that starts at round 0.

    Example:
        >>> lines = RoundLines(Path("metrics.jsonl"), afresh=True)
        >>> lines.add({"round": 1, "acc": 0.5})
        >>> lines.add({"round": 1, "acc": 0.5})  # already there
        >>> read_lines(Path("metrics.jsonl"))
        [{'round': 1, 'acc': 0.5}]
    """

    def __init__(self, path: Path, *, afresh: bool) -> None:
        self.path = own_file(path)
        if afresh or not path.exists():
            path.write_text("")
        entries, size = _read(path)
        os.truncate(path, size)
        self.rounds = {entry["round"] for entry in entries}

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry with the key `round`, unless one of that round is there. NaN and infinity become null."""
        if entry["round"] in self.rounds:
            return
        self.rounds.add(entry["round"])
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        with self.path.open("a") as file:  # one write of one line, so that readers see it whole
            file.write(json.dumps(plain) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of such a file, also while it is written; none if there is no file."""
    return _read(path)[0] if path.exists() else []


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries up to the first line that is none, as a kill or a power cut may leave one, and the bytes that they take."""
    entries, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict) or "round" not in entry:
            break
        entries.append(entry)
        size += len(line)
    return entries, size


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file or it is not one."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_whole(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new, never a part, whoever else writes it, and after a power cut."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def take_lock(path: Path, patience: float) -> IO[str]:
    """Hold a lock as long as the file that is returned is open, in this process or a child that inherits it.

    The system frees it when the last of them has ended, however that came about. On file systems that know no locks, nothing
    is held.

    Args:
        path: the lock's file; made if it is not there.
        patience: seconds to try for: who only asks whether it is locked holds it for a moment too.

    Raises:
        LockedError: another process holds it.
    """
    deadline = time.monotonic() + patience
    file = path.open("a")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise LockedError(str(path)) from None
            time.sleep(0.05)
        except OSError:
            return file


@contextmanager
def locked(path: Path, patience: float = 1.0) -> Iterator[int]:
    """Hold a lock; gives its file descriptor. See `take_lock`."""
    with take_lock(path, patience) as file:
        yield file.fileno()
