"""Shakespeare: the next character of what a role says, from LEAF's files or from the Hugging Face Hub; every role is a client.

S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konecny, H. B. McMahan, V. Smith, A. Talwalkar, "LEAF: A Benchmark for Federated
Settings", 2018, https://arxiv.org/abs/1812.01097, made of The Complete Works of William Shakespeare; the task is that of
H. B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629. A sample is a window of 80 characters and the one that follows; the next window begins one
character later.

Differs from LEAF: characters that are none of the 80 have a symbol of their own, where LEAF's code gives them the index -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fl_lightning.checked import whole
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.encoded_pictures import hub_table
from fl_lightning.data.leaf import REMEDY, check_test_fraction, is_leaf, keys_of, leaf_files, read_users
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.outcomes import CLASSES, Tokens
from fl_lightning.data.parquet import column_names, parquet_files, read_file
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.vocabulary import Vocabulary
from fl_lightning.errors import ConfigurationError, enumerated

if TYPE_CHECKING:
    import pyarrow

HUB_NAME = "flwrlabs/shakespeare"
COLUMNS = ("character_id", "x", "y")
WINDOW = 80
"""Characters of a sample."""

HELD_OUT = 0.1
"""Share of a role's samples that are for testing, where files do not say."""

SYMBOLS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The 80 characters that are told apart, in the order of their codes."""

VOCABULARY = Vocabulary((*SYMBOLS, "other"), unknown=len(SYMBOLS))

NUMBERS = np.full(128, len(SYMBOLS), dtype=np.uint8)
"""By code."""
NUMBERS[[ord(symbol) for symbol in SYMBOLS]] = np.arange(len(SYMBOLS))

Positions = Literal["last", "every"]
Rows = tuple[np.ndarray, np.ndarray, list[str]]
"""Windows (n, 80) uint8, what follows (n,) uint8, and the role of each."""


class Shakespeare(FederatedDataModule):
    """Windows of 80 symbols with their role as key, and the symbol that comes next; inputs (b, 80) int64.

    There are 81 symbols: 80 characters, and one that stands for all others. With `ByKey` every role is a client. Each has
    training and test samples, and the test set is that of all of them together.

    Args:
        partition: how training samples are dealt out to clients; keys are roles, numbered in the order of their names.
        path: a folder with LEAF's `train/*.json` and `test/*.json`, or with Parquet files of the columns `character_id`, `x`
            and `y`: `train.parquet`, `train-*.parquet` or `data/train-*.parquet`. None fetches "flwrlabs/shakespeare" from the
            Hugging Face Hub, once per machine.
        positions: `last`: the one symbol after the window, targets (b,). `every`: the next one at each position, targets
            (b, 80), of every 80th window of a role, so that each symbol is a target once, as TensorFlow Federated has it.
        min_samples: roles with fewer training samples take no part, in the test set neither; at least 1.
        test_fraction: share of each role's samples, the last ones, that is held out, in (0, 1), of Parquet files, which do not
            say; a role keeps at least one for training. None stands for .1. LEAF's files are split, and take no share.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or the Hub cannot be reached.

    What is held out are a role's last samples, as windows overlap: no test symbol stands in a window of training.
    """

    class_names = VOCABULARY.tokens

    def __init__(
        self,
        partition: Partition,
        *,
        path: str | None = None,
        positions: Positions = "last",
        min_samples: int = 1,
        test_fraction: float | None = None,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if positions not in get_args(Positions):
            raise ConfigurationError(f"data.positions must be last or every, got {positions!r}")
        check_test_fraction(test_fraction)
        self.path, self.positions, self.test_fraction = path, positions, test_fraction
        self.min_samples = whole("data.min_samples", min_samples, 1)

    def prepare_data(self) -> None:
        if self.path is None:
            hub_table(HUB_NAME, "train")
        elif not is_leaf(self.path, self.test_fraction):
            parquet_files(self.path, "train", "data")

    def load(self) -> Task:
        if self.path is not None and is_leaf(self.path, self.test_fraction):
            parts = [read_leaf(self.path, split) for split in ("train", "test")]
        else:
            parts = split(
                read_hub() if self.path is None else read_parquet(self.path),
                HELD_OUT if self.test_fraction is None else self.test_fraction,
            )
        if self.positions == "every":
            parts = [chosen(part, every_window(part[2])) for part in parts]
        keys, test_keys = keys_of(parts[0][2], parts[1][2])
        sizes = keys.bincount()
        if not (takes_part := sizes >= self.min_samples).any():
            raise ConfigurationError(
                f"data.min_samples is {self.min_samples}, but no role has more than {int(sizes.max())} samples; use fewer"
            )
        stays, tested = takes_part[keys], (test_keys >= 0) & takes_part[test_keys.clamp(min=0)]
        train, test = self._samples(parts[0], stays), self._samples(parts[1], tested)
        return Task(train, test, len(self.class_names), keys=keys[stays], test_keys=test_keys[tested])

    def _samples(self, part: Rows, rows: Tensor) -> TensorSamples:
        windows, following = (torch.from_numpy(array)[rows] for array in part[:2])
        if self.positions == "last":
            return TensorSamples(windows, following.long(), prepare=VOCABULARY, outcome=CLASSES)
        targets = torch.cat([windows[:, 1:], following[:, None]], dim=1)
        return TensorSamples(windows, targets, prepare=VOCABULARY, outcome=Tokens())


def symbols(texts: Sequence[Any], length: int, place: str) -> np.ndarray:
    """(n, length) uint8 symbols of texts.

    Args:
        texts: n of them.
        length: which each must have, in characters.
        place: where they stand, for messages.

    Raises:
        ConfigurationError: one is no text of that length.

    Example:
        >>> symbols(["a!", "é\\n"], 2, "here").tolist()
        [[53, 2], [80, 0]]
    """
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str) or len(text) != length), None)
    if wrong is not None:
        what = f"{len(texts[wrong])} characters" if isinstance(texts[wrong], str) else f"{texts[wrong]!r:.40}"
        raise ConfigurationError(f"{place}: sample {wrong} has {what}, but there must be {length}; {REMEDY}")
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return NUMBERS[np.where(codes < len(NUMBERS), codes, 127)].reshape(-1, length)  # 127 is no symbol


def read_leaf(folder: str | Path, split: str) -> Rows:
    """What LEAF's files of one split hold."""
    windows, following, roles = [], [], []
    for file in leaf_files(folder, split):
        for user in read_users(file, str):
            windows.append(symbols(user.inputs, WINDOW, f"{user.place}, x"))
            following.append(symbols(user.targets, 1, f"{user.place}, y")[:, 0])
            roles += [user.name] * len(user.targets)
    if not roles:
        raise ConfigurationError(f"the files in {folder}/{split} hold no samples; {REMEDY}")
    return np.concatenate(windows), np.concatenate(following), roles


def read_parquet(folder: str | Path) -> Rows:
    """What the Hub's Parquet files hold."""
    parts = []
    for file in parquet_files(folder, "train", "data"):
        names = column_names(file)
        if not set(COLUMNS) <= set(names):
            raise ConfigurationError(f"{file} has the columns {enumerated(names)}; it must have {enumerated(COLUMNS)}")
        parts.append(_of_table(read_file(file, list(COLUMNS)), str(file)))
    windows, following, roles = zip(*parts, strict=True)
    return np.concatenate(windows), np.concatenate(following), [role for part in roles for role in part]


def read_hub() -> Rows:
    """The same from the Hub or its local cache."""
    return _of_table(hub_table(HUB_NAME, "train"), HUB_NAME)


def _of_table(table: pyarrow.Table, name: str) -> Rows:
    windows, following, roles = [np.empty((0, WINDOW), dtype=np.uint8)], [np.empty(0, dtype=np.uint8)], []
    for batch in table.to_batches(max_chunksize=100_000):  # as Python's texts take ten times the room
        columns = {column: batch.column(column).to_pylist() for column in COLUMNS}
        place = f"{name}, rows from {len(roles)}"
        windows.append(symbols(columns["x"], WINDOW, f"{place}, x"))
        following.append(symbols(columns["y"], 1, f"{place}, y")[:, 0])
        wrong = next((role for role in columns["character_id"] if not isinstance(role, str)), None)
        if wrong is not None or None in columns["character_id"]:
            raise ConfigurationError(f"{place}: character_id holds {wrong!r}; it must be a text")
        roles += columns["character_id"]
    if not roles:
        raise ConfigurationError(f"{name} holds no samples; fetch it again or give another path")
    return np.concatenate(windows), np.concatenate(following), roles


def chosen(part: Rows, rows: np.ndarray) -> Rows:
    """The samples at these positions, or of a mask."""
    return part[0][rows], part[1][rows], np.asarray(part[2])[rows].tolist()


def split(part: Rows, fraction: float) -> list[Rows]:
    """Training and test samples: of each role's n the last round(fraction n) are held out, and never all."""
    _, of, sizes = np.unique(np.asarray(part[2]), return_inverse=True, return_counts=True)
    held = np.minimum(np.rint(fraction * sizes).astype(np.int64), sizes - 1)
    tested = place_in_group(of) >= (sizes - held)[of]
    if not tested.any():
        raise ConfigurationError(
            f"data.test_fraction is {fraction}, but no role has samples enough to hold one out; use a larger one, or more data"
        )
    return [chosen(part, ~tested), chosen(part, tested)]


def every_window(roles: Sequence[str]) -> np.ndarray:
    """(n,) bool: of each role's windows the first, then those that have no symbol in common with the one before."""
    return place_in_group(np.unique(np.asarray(roles), return_inverse=True)[1]) % WINDOW == 0


def place_in_group(groups: np.ndarray) -> np.ndarray:
    """(n,) int64, which one of its group each is, from 0.

    >>> place_in_group(np.array([1, 0, 1, 1])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else np.empty(0, dtype=np.int64)
    places = np.empty(len(groups), dtype=np.int64)
    places[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.r_[starts, len(groups)]))
    return places
