"""LEAF's files: JSON, each with the samples of some users.

S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konecny, H. B. McMahan, V. Smith, A. Talwalkar, "LEAF: A Benchmark for Federated
Settings", 2018, https://arxiv.org/abs/1812.01097, https://github.com/TalwalkarLab/leaf. A file is an object of `users`, a list
of names, `num_samples`, a list of as many numbers, and `user_data`, by name `{"x": [sample, ...], "y": [class, ...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_lightning.errors import ConfigurationError, in_one_line

REMEDY = "fetch it again, make it anew by LEAF's preprocess.sh, or give another path"


@dataclass(frozen=True)
class User:
    """One user's samples in one file.

    Args:
        name: of the user.
        place: the file and the user, for error messages.
        inputs: `x`, one entry per sample.
        targets: `y`, as many classes.
    """

    name: str
    place: str
    inputs: list[Any]
    targets: list[int]


def leaf_files(folder: str | Path, split: str) -> list[Path]:
    """The JSON files in `folder/<split>`, in order of their names; empty where there are none."""
    return sorted((Path(folder) / split).glob("*.json"))


def read_users(file: Path) -> Iterator[User]:
    """The users of one file, in its order.

    Raises:
        ConfigurationError: if it is no such file, or a user has not one class per sample.
    """
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigurationError(f"{file} cannot be read: {in_one_line(error)}; {REMEDY}") from error
    users, data = (content.get("users"), content.get("user_data")) if isinstance(content, dict) else (None, None)
    if not isinstance(users, list) or not isinstance(data, dict):
        raise ConfigurationError(f"{file} has no users and user_data, as LEAF's files have; {REMEDY}")
    for name in users:
        place = f"{file}, user {name!r}"
        samples = data.get(name) if isinstance(name, str) else None
        inputs, targets = (samples.get("x"), samples.get("y")) if isinstance(samples, dict) else (None, None)
        if not isinstance(inputs, list) or not isinstance(targets, list) or len(inputs) != len(targets):
            raise ConfigurationError(f"{place}: x and y must be lists of the same length; {REMEDY}")
        if not all(type(target) is int and abs(target) < 2**63 for target in targets):
            raise ConfigurationError(f"{place}: y must hold whole numbers; {REMEDY}")
        yield User(name, place, inputs, targets)
