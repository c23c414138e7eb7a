"""A file takes its name when it is whole: written beside it, synced, renamed.

Whoever reads it finds the old content or the new, also after a kill or a power cut, and nothing is needed of the system's
folder for temporary files. What a kill leaves are parts, which the next run in the folder removes.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fl_lightning.errors import ConfigurationError

PART = ".part"
"""Ending of a file that is still to be renamed."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, a quota or a limit on files has no room."""


class StorageError(ConfigurationError, OSError):
    """A file cannot be written; an `OSError` too, for those who wait for one."""


@contextmanager
def replacing(path: Path, wanted: int | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, which becomes `path` at the end, and is gone after an error.

    Args:
        path: the file to replace or to make; in a folder that is there.
        wanted: its size in bytes, for the message where there is no room; else what was written by then is named.

    Raises:
        StorageError: it cannot be written.

    Example:
        >>> with replacing(Path("run.json")) as file:
        ...     _ = file.write(b"{}")
    """
    part = part_of(path)
    try:
        with writing(part, path, wanted) as file:
            yield file
        take_name(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def part_of(path: Path) -> Path:
    """Where this thread writes what is to be `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PART}")


def take_name(part: Path, path: Path) -> None:
    """Make a file that is whole `path`, whatever there was."""
    with explained(path):
        part.replace(path)
        sync(path.parent)


@contextmanager
def writing(part: Path, path: Path, wanted: int | None = None) -> Iterator[IO[bytes]]:
    """Write a file down to the disk, which is gone after an error; `path` is what messages call it."""
    try:
        with explained(path, wanted), held(part) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def held(part: Path) -> IO[bytes]:
    """A file to write to, locked while it is open: the system frees it when its process ends, wherever that is."""
    while True:
        file = part.open("wb")
        with contextlib.suppress(OSError):  # a file system that knows no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if is_file_of(file, part):  # `remove_parts` may have taken it for a stray before it was locked
            return file
        file.close()


def is_file_of(file: IO[Any], path: Path) -> bool:
    """Whether an open file still has its name, which another may have by now, or none."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def explained(path: Path, wanted: int | None = None) -> Iterator[None]:
    """Raise what the system says against writing a file as an error that a reader can act on."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(cannot_write(path, error, wanted)) from error


def cannot_write(path: Path, error: OSError, wanted: int | None = None) -> str:
    """Why a file cannot be written, and what to do, on one line."""
    if error.errno not in FULL:
        return f"{path} cannot be written: {error.strerror or error}; make its folder one that can be written to"
    size = "" if wanted is None else f"{wanted:,} bytes are wanted and "
    return (
        f"there is no room for {path} ({error.strerror}): {size}{room(path.parent):,} are free; what was there is "
        "whole: make room and start again, a run with --ckpt_path last"
    )


def room(folder: Path) -> int:
    """Bytes that may still be written in a folder, 0 where the system does not tell."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def sync(folder: Path) -> None:
    """Have the names in a folder survive a power cut, where its file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Delete what killed processes left of files that they had not finished; those of living ones, which hold them, stay."""
    for part in folder.glob(f".*{PART}"):
        owner = re.search(r"\.(\d+)\.\d+\.part$", part.name)
        if owner and part.is_file():
            with contextlib.suppress(OSError), part.open("r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                except OSError:  # no locks here: the process's number is left, which another one may have by now
                    if lives(int(owner[1])):
                        continue
                part.unlink()


def lives(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
