"""Which checkpoint a run goes on from.

A run's folder has two: `last.ckpt` and, of the checkpoint before it, `previous.ckpt`. Where one is damaged the other is what
there is to go on from, and the error says so; nobody who watches a run has it go on from there without a word.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from fl_lightning.checkpoints import checkpoint_files, sharded_state
from fl_lightning.checkpoints.checkpoint_files import Stamp
from fl_lightning.checkpoints.newest import LAST, PREVIOUS
from fl_lightning.checkpoints.sharded_state import Part
from fl_lightning.errors import ConfigurationError
from fl_lightning.files.replacing import PART, explained, remove_parts, sync
from fl_lightning.files.sealed import DamagedError

log = logging.getLogger(__name__)

DAMAGED = "damaged.ckpt"
"""What a last one is called that is damaged and was set aside."""

COMMANDS = ("fit", "validate", "test")
"""Those that read checkpoints."""

UNREADABLE = (EOFError, OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)
"""What torch raises on a file that is no checkpoint."""


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's way to checkpoints on disk: written in one step with a digest, which is seen to fit when they are read.

    Checkpoints at addresses (`s3://...`) are Lightning's own, which have none.

    Attributes:
        verb: the command that reads checkpoints, for what is advised where one is damaged.
    """

    verb = "fit"

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if remote(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            # Ranks of a notebook hand their weights back in a file that knows of no round.
            checkpoint_files.save(checkpoint, Path(path), checkpoint.get("global_step", 0))

    def load_checkpoint(self, path: Any, map_location: Any = lambda storage, _: storage, weights_only: Any = None) -> Any:
        if remote(path):
            return super().load_checkpoint(path, map_location, weights_only)
        try:
            if checkpoint_files.check(Path(path)) is None:
                log.warning("%s has no digest, as an earlier version or another program wrote it: damage is not noticed", path)
            return super().load_checkpoint(path, map_location, weights_only)
        except DamagedError as error:
            raise ConfigurationError(f"{error}; {advice(Path(path), self.verb)}") from error
        except UNREADABLE as error:
            raise ConfigurationError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}: {first_line(error)}); "
                f"{advice(Path(path), self.verb)}"
            ) from error


def read_for(checkpoint_io: Any, verb: str) -> None:
    """Tell what reads checkpoints which command it reads them for: a method of Trainer, by its name."""
    if isinstance(checkpoint_io, CheckpointFiles):
        checkpoint_io.verb = verb


def parts(entry: Any, path: Any, start: int, stop: int, rank: int, world: int) -> Part:
    """`sharded_state.read`, with what to do where that cannot be.

    Raises:
        ConfigurationError: a file is missing, damaged, or of another checkpoint.
    """
    try:
        return sharded_state.read(entry, path, start, stop, rank, world)
    except DamagedError as error:
        raise ConfigurationError(f"{error}; {advice(Path(path))}") from error


def record_of(checkpoint: Mapping[str, Any], seed: int, rounds: int | None) -> dict[str, Any]:
    """What a federation wrote into a checkpoint, if it can go on from there.

    Args:
        checkpoint: as it was loaded.
        seed: the experiment's.
        rounds: how many there are to be; None or a negative number for no end.

    Raises:
        ConfigurationError: it is no federation's, of another seed, or of a later round.
    """
    record = checkpoint.get("federation")
    if record is None:
        raise ConfigurationError("the checkpoint is not one of a federation; give the last.ckpt of a run")
    if record["seed"] != seed:
        raise ConfigurationError(
            f"the checkpoint was written with seed {record['seed']}, this run has seed {seed}; resume with the same"
        )
    done = checkpoint["global_step"]
    if rounds is not None and 0 <= rounds < done:
        raise ConfigurationError(
            f"trainer.max_epochs, the number of rounds, is {rounds}, and the checkpoint is of round {done}; give {done} or "
            "more, or an earlier checkpoint"
        )
    return record


def remote(path: Any) -> bool:
    """Whether a checkpoint's path is an address."""
    return "://" in str(path)


def first_line(error: BaseException) -> str:
    """An error's message without what stands below its first line."""
    return str(error).partition("\n")[0]


def examine(path: Path) -> Stamp | None:
    """See that a checkpoint, and the files beside it, are what was written.

    Returns:
        What its end says; None if it has no digest.

    Raises:
        DamagedError: something is not.
    """
    stamp = checkpoint_files.check(path)
    if stamp is None:
        return None
    try:
        entry = torch.load(path, map_location="cpu", mmap=True, weights_only=True).get(sharded_state.KEY, {})
    except UNREADABLE as error:
        raise DamagedError(f"{path} cannot be read: {first_line(error)}") from error
    if "world" in entry:
        sharded_state.read_files(entry, path.parent)
    return stamp


def whole(path: Path) -> int | None:
    """The round of a checkpoint that is whole; None if it is not, or has no digest."""
    try:
        stamp = examine(path)
    except DamagedError:
        return None
    return None if stamp is None else stamp.round


def set_aside(folder: Path) -> Iterator[str]:
    """Where the last checkpoint is damaged and the previous one is not, take it away, so that that one is the newest.

    For runs that nobody watches; the line that comes of it goes into their log. Called while nobody trains there.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        examine(last)
    except DamagedError as error:
        done = whole(previous) if previous.exists() else None
        if done is not None:
            last.replace(folder / DAMAGED)
            yield f"{error}; it is kept as {DAMAGED}, and the run goes on from {previous}, of round {done}"


def advice(path: Path, verb: str = "fit") -> str:
    """What to do where a checkpoint cannot be used: the last good one beside it, and the command that takes that.

    Args:
        path: the checkpoint.
        verb: what it was read for.
    """
    for other in (path.with_name(LAST), path.with_name(PREVIOUS)):
        if other.exists() and not (path.exists() and other.samefile(path)):
            done = whole(other)
            if done is not None:
                do = "go on from it" if verb == "fit" else "take that"
                return f"the last good one is {other}, of round {done}; {do}: {command(other, verb)}"
    afresh = ", or start afresh without --ckpt_path" if verb == "fit" else ""
    return f"there is no good one beside it: give another one{afresh}"


def command(path: Path, verb: str = "fit") -> str:
    """The command, or what is to be given to a Trainer's method that is none, that takes a checkpoint of a run's folder."""
    if verb not in COMMANDS:
        return f"ckpt_path={str(path)!r}"
    config = path.with_name("config.yaml")
    named = ["--config", str(config)] if config.exists() else []
    return shlex.join(["fl-lightning", verb, *named, "--ckpt_path", str(path)])


class Pair:
    """The two checkpoints of a folder, as one run replaces them.

    Args:
        folder: the run's.
        resumed: the checkpoint that the run went on from, wherever it lies; None for a run that begins.
        step: rounds that were done then.
    """

    def __init__(self, folder: Path, resumed: Path | None, step: int) -> None:
        self.last, self.previous = folder / LAST, folder / PREVIOUS
        self.steps: dict[Path, int] = {}  # of those of the two that are this run's and known to be good
        for own in (self.last, self.previous):
            if resumed is not None and resumed.exists() and own.exists() and own.samefile(resumed):
                self.steps[own] = step
                break

    def replace(self, part: Path, step: int) -> None:
        """Make a new checkpoint, which is complete, the last, and the last one the previous.

        A last one that the run did not go on from does not take the previous one's place: it may be the damaged one. What the
        folder has of another run goes.
        """
        with explained(self.last):
            if self.last in self.steps:
                self._keep()
            elif self.previous not in self.steps:
                self.previous.unlink(missing_ok=True)
            part.replace(self.last)
            sync(self.last.parent)
        self.steps[self.last] = step
        sharded_state.forget_others(self.last, self.steps.values())

    def _keep(self) -> None:
        """Give the last checkpoint the other name too, so that there is one under its own at all times."""
        link = self.previous.with_name(f".{PREVIOUS}{PART}")
        try:
            link.unlink(missing_ok=True)
            os.link(self.last.resolve(), link)  # it may be a link to another run's, which that one replaces
            link.replace(self.previous)
        except OSError:  # a file system without links, or somebody deleted it
            with contextlib.suppress(FileNotFoundError):
                self.last.replace(self.previous)
        self.steps[self.previous] = self.steps[self.last]


def clear(folder: Path, names: Collection[str]) -> None:
    """Delete what killed runs left of files that were not finished; called by who has the folder to itself.

    Args:
        folder: the run's.
        names: of the files that nobody but the run writes.
    """
    remove_parts(folder)
    for name in names:
        for part in (f"{name}{PART}", f".{name}{PART}"):
            (folder / part).unlink(missing_ok=True)
    for shards in sharded_state.shards_of(folder / LAST).glob("round-*"):
        remove_parts(shards)
