"""LEAF's files: JSON, each with the samples of some users.

S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konecny, H. B. McMahan, V. Smith, A. Talwalkar, "LEAF: A Benchmark for Federated
Settings", 2018, https://arxiv.org/abs/1812.01097, https://github.com/TalwalkarLab/leaf. A file is an object of `users`, a list
of names, `num_samples`, a list of as many numbers, and `user_data`, by name `{"x": [sample, ...], "y": [target, ...]}`.

The numbers are not read: LEAF's Reddit has, in every split, those of all splits together. And where LEAF splits each user's
samples, `user_data` has users of one sample or none as well, empty, whom `users` leaves out.
"""

from __future__ import annotations

import filecmp
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.dealt import numbered
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line

KINDS: dict[type, str] = {int: "whole numbers", str: "texts", dict: "objects"}
"""What targets may be."""

REMEDY = "fetch it again, make it anew by LEAF's preprocess.sh, or give another path"


@dataclass(frozen=True)
class User:
    """One user's samples in one file.

    Args:
        name: of the user.
        place: the file and the user, for error messages.
        inputs: `x`, one entry per sample.
        targets: `y`, as many targets.
    """

    name: str
    place: str
    inputs: list[Any]
    targets: list[Any]


def leaf_files(folder: str | Path, split: str) -> list[Path]:
    """The JSON files in `folder/<split>`, in order of their names; empty where there are none."""
    return sorted((Path(folder) / split).glob("*.json"))


def is_leaf(folder: str | Path, test_fraction: float | None) -> bool:
    """Whether the folder holds LEAF's files.

    Raises:
        ConfigurationError: it holds those of one split alone, or one of them twice, or a share is to be held out that they have
            held out already.
    """
    files = [leaf_files(folder, split) for split in ("train", "test")]
    for of_split in files:
        check_copies(of_split)
    there = [bool(of_split) for of_split in files]
    if any(there) and not all(there):
        missing = "test" if there[0] else "train"
        raise ConfigurationError(f"path {folder} holds no {missing}/*.json; make both by LEAF's preprocess.sh, or give another")
    if all(there) and test_fraction is not None:
        raise ConfigurationError(
            f"data.test_fraction = {test_fraction}, but LEAF's files in {folder} are split already; leave it out"
        )
    return all(there)


def check_copies(files: Sequence[Path]) -> None:
    """Raise `ConfigurationError` if two files are the same, byte for byte: every sample in them would count twice."""
    of_size: dict[int, list[Path]] = {}
    try:
        for file in files:
            alike = of_size.setdefault(file.stat().st_size, [])
            for other in alike:
                if filecmp.cmp(other, file, shallow=False):
                    raise ConfigurationError(
                        f"{file} is a copy of {other.name}, so that its samples would count twice; remove one"
                    )
            alike.append(file)
    except OSError as error:
        raise ConfigurationError(f"the files in {files[0].parent} cannot be read: {in_one_line(error)}; {REMEDY}") from error


def check_test_fraction(fraction: float | None) -> None:
    """Raise `ConfigurationError` unless a share of each user's samples is in (0, 1), or left out."""
    if fraction is not None and not (type(fraction) in (int, float) and math.isfinite(fraction) and 0 < fraction < 1):
        raise ConfigurationError(f"data.test_fraction must lie between 0 and 1, got {fraction!r}; 0.1 is usual")


def keys_of(train: Sequence[str], test: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The users of training and test samples as int64, in the order of the names in training; -1 for those not in it."""
    names, keys = np.unique(np.asarray(train), return_inverse=True)
    return torch.from_numpy(keys.astype(np.int64)), torch.from_numpy(numbered(np.asarray(test), names).astype(np.int64))


def read_users(file: Path, kind: type = int) -> Iterator[User]:
    """The users of one file, in its order.

    Args:
        file: of JSON.
        kind: what targets are, one of `KINDS`.

    Raises:
        ConfigurationError: if it is no such file, or a user has not one target of that kind per sample.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"{file} cannot be read: {in_one_line(error)}; {REMEDY}") from error
    users, data = (content.get("users"), content.get("user_data")) if isinstance(content, dict) else (None, None)
    if not isinstance(users, list) or not isinstance(data, dict):
        raise ConfigurationError(f"{file} has no users and user_data, as LEAF's files have; {REMEDY}")
    counts = Counter(name for name in users if isinstance(name, str))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigurationError(f"{file}: users names {enumerated(map(repr, twice))} more than once; {REMEDY}")
    empty = {"x": [], "y": []}
    unnamed = [name for name, samples in data.items() if name not in counts and samples != empty]
    if unnamed and counts.total() == len(users):  # whoever has no text for a name comes first
        raise ConfigurationError(f"{file}: user_data has {enumerated(map(repr, unnamed))}, whom users does not name; {REMEDY}")
    for name in users:
        place = f"{file}, user {name!r}"
        samples = data.get(name) if isinstance(name, str) else None
        inputs, targets = (samples.get("x"), samples.get("y")) if isinstance(samples, dict) else (None, None)
        if not isinstance(inputs, list) or not isinstance(targets, list) or len(inputs) != len(targets):
            raise ConfigurationError(f"{place}: x and y must be lists of the same length; {REMEDY}")
        if not all(type(target) is kind and (kind is not int or abs(target) < 2**63) for target in targets):
            raise ConfigurationError(f"{place}: y must hold {KINDS[kind]}; {REMEDY}")
        yield User(name, place, inputs, targets)
