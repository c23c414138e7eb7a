"""What rules keep from round to round, in checkpoints: written by every rank, read by any number of ranks.

A rank keeps its own coordinates of what a rule remembers and the memory of some of the clients, and nobody ever holds it all.
So beside a checkpoint `NAME` of several ranks lies a folder `NAME.shards/round-T` with one file per rank; the checkpoint says
which, and their digests. The files are complete before the checkpoint is, and older ones go after it: killed at any moment, a
run leaves checkpoints whose files are there. On a single rank everything is in the checkpoint itself.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.checkpoints import checkpoint_files
from fl_lightning.files.replacing import PART
from fl_lightning.files.sealed import DamagedError

KEY = "sharded_state"
"""Entry of the checkpoint."""


@dataclass
class Part:
    """One rank's part.

    Attributes:
        start: the first coordinate on the rank.
        coordinates: (S,) float32 tensors by name, for coordinates start to start + S; fewer where a rule remembers the last
            ones alone.
        clients: (P,) float32 tensors by client number.
    """

    start: int
    coordinates: dict[str, Tensor] = field(default_factory=dict)
    clients: dict[int, Tensor] = field(default_factory=dict)


def remembered(rule: Aggregator) -> dict[str, Tensor]:
    """(S,) each, what the rule and rules inside it keep, by `<place of the rule>:<name>`."""
    rules = [(place, part) for place, part in rule.named_modules() if isinstance(part, Aggregator)]
    return {f"{place}:{name}": kept for place, part in rules for name, kept in part.memory.items()}


def first_coordinates(rule: Aggregator) -> dict[str, int]:
    """By the same names, the first coordinate of d that is kept, for rules that do not keep all."""
    rules = [(place, part) for place, part in rule.named_modules() if isinstance(part, Aggregator) and part.first_remembered]
    return {f"{place}:{name}": part.first_remembered for place, part in rules for name in part.memory}


def write(checkpoint: dict[str, Any], path: str | os.PathLike[str], rank: int, world: int) -> str | None:
    """Move this rank's part out of the checkpoint into a file of its own; called on all ranks, before the checkpoint itself
    is written, which must be given the digests of all.

    Returns:
        the file's SHA-256, None where there is no part or it stays in the checkpoint.

    Raises:
        StorageError: it cannot be written.
    """
    part, step = checkpoint.get(KEY), checkpoint["global_step"]
    if part is None or world == 1:
        return None
    folder = shards_of(path) / f"round-{step}"
    checkpoint[KEY] = {"folder": str(folder.relative_to(Path(path).parent)), "world": world}
    return checkpoint_files.save(part, folder / f"rank-{rank}-of-{world}.pt", step).sha256


def elsewhere(entry: dict[str, Any], path: str | os.PathLike[str]) -> list[int]:
    """Ranks whose files were written and are not beside the checkpoint: their nodes share no folder with this one."""
    folder, world = Path(path).parent / entry["folder"], entry["world"]
    return [rank for rank in range(world) if not (folder / f"rank-{rank}-of-{world}.pt").exists()]


def forget_others(path: str | os.PathLike[str], steps: Collection[int]) -> None:
    """Delete the parts of all rounds but these beside checkpoints that are complete."""
    for folder in shards_of(path).glob("round-*"):
        if folder.name not in {f"round-{step}" for step in steps}:
            shutil.rmtree(folder, ignore_errors=True)


def remove(path: str | os.PathLike[str]) -> None:
    """Delete all parts beside a checkpoint."""
    shutil.rmtree(shards_of(path), ignore_errors=True)


def read(entry: Any, path: str | os.PathLike[str], start: int, stop: int, rank: int, world: int) -> Part:
    """Coordinates start to stop, and the memory of the clients c with c % world = rank, of any number of parts.

    Args:
        entry: `checkpoint[KEY]`.
        path: of the checkpoint.
        start: the first coordinate wanted.
        stop: one more than the last.
        rank: this rank.
        world: W now, whatever it was.

    Raises:
        DamagedError: a file is missing, damaged, or of another checkpoint.
    """
    mine = Part(start)
    for part in [entry] if "coordinates" in entry else read_files(entry, Path(path).parent):
        for name, kept in part["coordinates"].items():
            first = part.get("first_coordinates", {}).get(name, 0)
            here, there = min(max(start, first), stop), max(part["start"], first)
            into = mine.coordinates.setdefault(name, torch.zeros(stop - here))
            low, high = max(here, there), min(stop, there + len(kept))
            if low < high:
                into[low - here : high - here] = kept[low - there : high - there]
        mine.clients |= {client: row.clone() for client, row in part["clients"].items() if client % world == rank}
    return mine


def read_files(entry: dict[str, Any], beside: Path) -> list[dict[str, Any]]:
    """The parts in the files that an entry names, each seen to be what was written, mapped into memory rather than read."""
    parts = []
    for rank in range(entry["world"]):
        file = beside / entry["folder"] / f"rank-{rank}-of-{entry['world']}.pt"
        try:
            stamp = checkpoint_files.check(file)
            if "sha256" in entry and (stamp is None or stamp.sha256 != entry["sha256"][rank]):
                raise DamagedError(f"{file} was written with another checkpoint")
            parts.append(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error) if isinstance(error, DamagedError) else f"{type(error).__name__} in {file}"
            raise DamagedError(
                f"the checkpoint keeps what the rule remembers in {entry['world']} files beside it, of which one is no use: "
                f"{reason}; where it was copied, copy the folder {entry['folder']} along with it"
            ) from error
    return parts


def entry(rule: Aggregator, start: int, clients: Mapping[int, Tensor], memory_size: int) -> dict[str, Any] | None:
    """What goes into a checkpoint for a rank's part; None, on all ranks alike, where neither rule nor clients remember.

    Args:
        rule: the server's, with its shard of what it keeps.
        start: the first coordinate on this rank.
        clients: (P,) what clients keep, by client number.
        memory_size: P.
    """
    kept = remembered(rule)
    if not kept and not memory_size:
        return None
    return {
        "start": start,
        "coordinates": {name: tensor.cpu() for name, tensor in kept.items()},
        "first_coordinates": first_coordinates(rule),
        "clients": {client: row.cpu() for client, row in clients.items()},
    }


def recall(part: Part, rule: Aggregator, device: torch.device) -> dict[int, Tensor]:
    """Hand a rule, and rules inside it, what they keep. Returns what clients do."""
    for name, kept in part.coordinates.items():
        place, _, key = name.rpartition(":")
        inner = rule.get_submodule(place)
        assert isinstance(inner, Aggregator)
        inner.memory[key] = kept.to(device)
    return {client: row.to(device) for client, row in part.clients.items()}


def shards_of(path: str | os.PathLike[str]) -> Path:
    """The folder for the parts of a checkpoint, also while that is called otherwise."""
    return Path(str(path).removesuffix(PART) + ".shards")
