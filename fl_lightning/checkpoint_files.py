"""Checkpoints that tell whether they are what was written.

A checkpoint is the zip file of `torch.save`, which any program that reads those reads, with a comment at its end: the round,
and the SHA-256 of all bytes before it. A bit that flips anywhere, in the weights, in the file's directory or in the comment
itself, is noticed, as is a file that was cut off.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from fl_lightning.regular_files import irregular
from fl_lightning.replacing import FULL, PART, StorageError, cannot_write, replacing, writing
from fl_lightning.sealed import DamagedError

COMMENT = "fl_lightning round {round:018d} sha256 "
"""What stands at the end of a file before the digest's 64 digits; of one length for all rounds, so that it is found."""

PATTERN = re.compile(rb"fl_lightning round (\d{18}) sha256 ([0-9a-f]{64})")
DIGITS = 64
LENGTH = len(COMMENT.format(round=0)) + DIGITS

BARE = re.compile(rb"PK\x05\x06.{16}\0\0", re.DOTALL)
"""The end of a zip file that says it has no comment: what others write, and earlier versions wrote."""

PIECE = 1 << 20
"""Bytes that are read at a time."""


@dataclass(frozen=True)
class Stamp:
    """What the end of a checkpoint says.

    Attributes:
        round: rounds that were done when it was written.
        sha256: the digest of all bytes before it, in hexadecimal.
    """

    round: int
    sha256: str


def save(content: Any, path: Path, round_number: int) -> Stamp:
    """Write what `torch.save` takes, in one step, with its digest; a path that ends in `PART` is written in place.

    Args:
        content: what to write.
        path: the file.
        round_number: rounds that are done.

    Raises:
        StorageError: it cannot be written; the file that was there still is.
    """
    named = Path(str(path).removesuffix(PART))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path, named) if named != path else replacing(path) as file:
            return write(content, file, round_number)
    except (OSError, RuntimeError) as error:  # torch raises a RuntimeError of its own after one of the file's
        cause = system_error(error)
        if cause is None:
            raise
        wanted = size_of(content) if cause.errno in FULL else None
        raise StorageError(cannot_write(named, cause, wanted)) from error


def write(content: Any, file: IO[bytes], round_number: int) -> Stamp:
    """Write to an open file, which is read through for the digest on its way."""
    digesting = Digesting(file)
    torch.save(content, digesting)  # pyrefly: ignore[bad-argument-type]
    digesting.end(COMMENT.format(round=round_number).encode())
    file.write(digesting.sha256.hexdigest().encode())
    return Stamp(round_number, digesting.sha256.hexdigest())


def system_error(error: BaseException | None) -> OSError | None:
    """What the system said, of an exception or one that it was raised because of."""
    while error is not None and not (isinstance(error, OSError) and error.errno is not None):
        error = error.__cause__ or error.__context__
    return error


def size_of(content: Any) -> int:
    """Bytes of a file with this content, found by writing it to nowhere."""
    counted = Digesting(None)
    torch.save(content, counted)  # pyrefly: ignore[bad-argument-type]
    return counted.size + LENGTH


class Digesting:
    """Passes on what is written and adds it to a digest, but for the last two bytes: the length of a zip file's comment.

    Args:
        file: where to; None only counts.
    """

    def __init__(self, file: IO[bytes] | None) -> None:
        self.file, self.sha256, self.size, self.held = file, hashlib.sha256(), 0, b""

    def write(self, data: bytes | memoryview) -> int:
        view = memoryview(data).cast("B")
        self.size += len(view)
        if len(view) < 2:
            joined = self.held + bytes(view)
            self._pass_on(joined[:-2])
            self.held = joined[-2:]
        else:
            self._pass_on(self.held)
            self._pass_on(view[:-2])
            self.held = bytes(view[-2:])
        return len(view)

    def flush(self) -> None:
        """The file is flushed by whoever opened it."""

    def end(self, comment: bytes) -> None:
        """Add a comment's length, for which room was left, and the comment, which `DIGITS` bytes are to follow."""
        assert self.held == b"\0\0", "a zip file as torch writes it ends with the length of no comment"
        self._pass_on((len(comment) + DIGITS).to_bytes(2, "little"))
        self._pass_on(comment)

    def _pass_on(self, data: bytes | memoryview) -> None:
        if self.file is not None:
            self.sha256.update(data)
            self.file.write(data)


def check(path: Path) -> Stamp | None:
    """Read a checkpoint through, and see that it is what was written.

    Returns:
        What its end says; None if it has no digest, as earlier versions and other programs write them.

    Raises:
        DamagedError: it is not what was written, cut off, not there, or no checkpoint.
    """
    kind = irregular(path)
    if kind is not None:
        raise DamagedError(f"{path} cannot be read: it is {kind} and no regular file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - LENGTH))
            end = file.read()
            found = PATTERN.fullmatch(end)
            if found is None:
                if BARE.fullmatch(end[-22:]):
                    return None
                raise DamagedError(
                    f"{path} cannot be read: it is damaged or no checkpoint, as it does not end as one ({size:,} bytes)"
                )
            file.seek(0)
            if digest(file, size - DIGITS) != found[2].decode():
                raise DamagedError(f"{path} is damaged: its {size:,} bytes have another SHA-256 than the one they end with")
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from error
    return Stamp(int(found[1]), found[2].decode())


def digest(file: IO[bytes], size: int) -> str:
    """SHA-256 of the next bytes of a file, in hexadecimal."""
    sha256, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    while size > 0:
        read = file.readinto(piece[: min(size, PIECE)])  # pyrefly: ignore[missing-attribute]
        if not read:
            break
        sha256.update(piece[:read])
        size -= read
    return sha256.hexdigest()
