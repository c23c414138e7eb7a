"""Files that whoever reads them finds whole, also while a run writes them and after one was killed."""

import fcntl
import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fl_lightning.errors import ConfigurationError
from fl_lightning.files.regular_files import check_regular
from fl_lightning.files.replacing import explained, part_of, replacing, take_name, writing
from fl_lightning.files.sealed import DamagedError, unsealed

TRAINING_LOCK = "training.lock"
"""In a run's folder; held by rank 0 of whatever trains there."""

CLIENTS = "clients"
"""Folder in a run's folder with a row per client and round, of `ClientRecord`."""

EARLIER = "earlier"
"""Folder in a run's folder, with one folder per run that was put aside: 1, 2, ..."""


MOST_ROUNDS = 2**53
"""What a file of results can hold as a number of rounds, a float like all others."""

log = logging.getLogger(__name__)


class LockedError(Exception):
    """Another process holds the lock."""


def own_file(path: Path) -> Path:
    """The path of a run's own file, after seeing that it is one, or that nothing is there.

    By a link a report would show what lies elsewhere, and a run would write there; a pipe would be waited for.

    Raises:
        ConfigurationError: it is a link, or no regular file.
    """
    if path.is_symlink():
        raise ConfigurationError(
            f"{path} is a link to {os.readlink(path)}; a run's files lie in its folder: put the file there"
        )
    check_regular(path)
    return path


class RoundLines:
    """Adds entries to a JSON-lines file, each round's once.

    A run that was killed and resumed comes by some rounds again; by the law of equal bits their entries are the ones that are
    there. A last line that a kill cut off is removed.

    Args:
        path: the file; made if it is not there.
        afresh: empty the file first, for a run that starts at round 0.
        kept: what `state` gave when the checkpoint was written that the run goes on from. The file must still begin so; what
            comes after is dropped, as it comes again.

    Raises:
        ConfigurationError: the file does not begin as it did.

    Example:
        >>> lines = RoundLines(Path("metrics.jsonl"), afresh=True)
        >>> lines.add({"round": 1, "acc": 0.5})
        >>> lines.add({"round": 1, "acc": 0.5})  # already there
        >>> read_lines(Path("metrics.jsonl"))
        [{'round': 1, 'acc': 0.5}]
    """

    def __init__(self, path: Path, *, afresh: bool, kept: Mapping[str, Any] | None = None) -> None:
        self.path = own_file(path)
        if afresh or not path.exists():
            path.write_text("")
        elif kept:
            check_beginning(path, kept)
            os.truncate(path, kept["bytes"])
        entries, size = _read(path)
        os.truncate(path, size)
        self.rounds = {entry["round"] for entry in entries}
        self.size, self.sha256 = size, hashlib.sha256(path.read_bytes())

    def state(self) -> dict[str, Any]:
        """The file as it is now, by its size and digest, for a checkpoint."""
        return {"bytes": self.size, "sha256": self.sha256.hexdigest()}

    def add(self, entry: dict[str, Any]) -> None:
        """Add an entry with the key `round`, unless one of that round is there. NaN and infinity become null."""
        if entry["round"] in self.rounds:
            return
        self.rounds.add(entry["round"])
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        line = (json.dumps(plain) + "\n").encode()
        with explained(self.path), self.path.open("ab") as file:  # one write of one line, so that readers see it whole
            file.write(line)
        self.size += len(line)
        self.sha256.update(line)


def check_beginning(path: Path, kept: Mapping[str, Any]) -> None:
    """Raise unless a file begins with the bytes that `RoundLines.state` was of."""
    with path.open("rb") as file:
        beginning = file.read(kept["bytes"])
    if hashlib.sha256(beginning).hexdigest() != kept["sha256"]:
        raise ConfigurationError(
            f"{path} is damaged: its first {kept['bytes']:,} bytes are not those that it had when the checkpoint was written; "
            "put a copy of it back, or move it away, and the run goes on with a new one that lacks the rounds before"
        )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of such a file, also while it is written; none if there is no file.

    Raises:
        ConfigurationError: it is no regular file.
    """
    check_regular(path)
    return _read(path)[0] if path.exists() else []


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The entries up to the first line that is none, as a kill or a power cut may leave one, and the bytes that they take.

    A last line that is not whole is what a kill leaves, or being written; any other is damage, and named.
    """
    entries, size = [], 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            if line.endswith(b"\n") or number < len(lines):
                log.warning(
                    "%s is damaged: line %d of %d is no entry of a round; it and what follows are left out",
                    path,
                    number,
                    len(lines),
                )
            break
        entries.append(entry)
        size += len(line)
    return entries, size


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says: a round, and numbers, or lists of them, or null; None if it is not whole, or says something else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not line.endswith(b"\n") or not isinstance(entry, dict) or not _is_number(entry.get("round")):
        return None
    values = [part for value in entry.values() for part in (value if isinstance(value, list) else [value])]
    whole = type(entry["round"]) is int and 0 <= entry["round"] < MOST_ROUNDS
    return entry if whole and all(value is None or _is_number(value) for value in values) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file, or it is damaged.

    Raises:
        ConfigurationError: something else than a file is there.
    """
    try:
        return unsealed(path)
    except DamagedError:
        return {}


def write_whole(path: Path, text: str | bytes) -> None:
    """Write a file so that readers see the old text or the new, never a part, whoever else writes it, and after a power cut.

    Raises:
        StorageError: it cannot be written; the old one is still there.
    """
    content = text.encode() if isinstance(text, str) else text
    with replacing(path, len(content)) as file:
        file.write(content)


@contextmanager
def written_together(texts: Mapping[Path, str]) -> Iterator[None]:
    """Write several files, which take their names after the block: where one finds no room, none is there, and nothing is done.

    Raises:
        StorageError: one cannot be written; the old ones are still there.
    """
    parts = {path: part_of(path) for path in texts}
    try:
        for path, part in parts.items():
            content = texts[path].encode()
            with writing(part, path, len(content)) as file:
                file.write(content)
        yield
        for path, part in parts.items():
            take_name(part, path)
    except BaseException:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
        raise


def take_lock(path: Path, patience: float) -> IO[str]:
    """Hold a lock as long as the file that is returned is open, in this process or a child that inherits it.

    The system frees it when the last of them has ended, however that came about. On file systems that know no locks, nothing
    is held.

    Args:
        path: the lock's file; made if it is not there.
        patience: seconds to try for: who only asks whether it is locked holds it for a moment too.

    Raises:
        ConfigurationError: something else than a file is there.
        LockedError: another process holds it.
    """
    check_regular(path)
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
