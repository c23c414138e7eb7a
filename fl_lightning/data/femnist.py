"""FEMNIST: the characters of EMNIST by who wrote them, from LEAF's files or from the Hugging Face Hub.

S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konecny, H. B. McMahan, V. Smith, A. Talwalkar, "LEAF: A Benchmark for Federated
Settings", 2018, https://arxiv.org/abs/1812.01097; the characters are those of EMNIST (see `mnist.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.encoded_pictures import decode, hub_table, read_tables
from fl_lightning.data.leaf import REMEDY, check_test_fraction, is_leaf, keys_of, leaf_files, read_users
from fl_lightning.data.mnist import EMNIST_CLASSES, SIDE
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.parquet import parquet_files
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.standardize import Standardize
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

HUB_NAME = "flwrlabs/femnist"
COLUMNS = ("image", "writer_id", "character")
HELD_OUT = 0.1
"""Share of a writer's samples that are for testing, as LEAF has it."""

AS_IT_IS, INVERTED = Standardize(0.0, 1.0), Standardize(1.0, -1.0)  # (x - 1) / -1 = 1 - x


class FEMNIST(FederatedDataModule):
    """Handwritten characters of 62 classes with their writers as keys; inputs (b, 1, 28, 28) float32 in [0, 1].

    Classes are digits, then capitals, then small letters. With `ByKey` each of some 3,500 writers is a client, with
    `PackedKeys` several are. Every writer has training and test samples, and the test set is that of all of them together.

    Args:
        partition: how training samples are dealt out to clients; keys are writers, numbered in the order of their names.
        path: a folder with LEAF's `train/*.json` and `test/*.json`, or a copy of the Hub's repository with
            `data/train-*.parquet`, or with `train.parquet` (columns `image`, `writer_id` and `character`). None fetches
            "flwrlabs/femnist" from the Hugging Face Hub, once per machine.
        invert: whether ink is made bright and paper black, as in MNIST and EMNIST; in the files it is the other way round, and
            published figures are for pictures as they are there.
        test_fraction: share of each writer's samples that is held out, in (0, 1), of Parquet files, which do not say; a writer
            keeps at least one for training. None stands for .1. LEAF's files are split, and take no share.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it. Which samples are held out does not depend on it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or the Hub cannot be reached.

    Triggers are written into bytes before anything is inverted: white paper is 255, ink 0.
    """

    class_names = EMNIST_CLASSES["byclass"]

    def __init__(
        self,
        partition: Partition,
        *,
        path: str | None = None,
        invert: bool = False,
        test_fraction: float | None = None,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if not isinstance(invert, bool):
            raise ConfigurationError(f"data.invert must be true or false, got {invert!r}")
        check_test_fraction(test_fraction)
        self.path, self.invert, self.test_fraction = path, invert, test_fraction

    def prepare_data(self) -> None:
        if self.path is None:
            hub_table(HUB_NAME, "train")
        elif not is_leaf(self.path, self.test_fraction):
            parquet_files(self.path, "train", "data")

    def load(self) -> Task:
        if self.path is not None and is_leaf(self.path, self.test_fraction):
            parts = [read_leaf(self.path, split) for split in ("train", "test")]
        else:
            pictures, classes, writers = read_hub() if self.path is None else read_parquet(self.path)
            held = held_out(writers, HELD_OUT if self.test_fraction is None else self.test_fraction)
            names = np.asarray(writers)
            parts = [
                (pictures[rows], classes[rows], names[rows.numpy()].tolist())
                for rows in (torch.nonzero(~held).flatten(), torch.nonzero(held).flatten())
            ]
        prepare = INVERTED if self.invert else AS_IT_IS
        train, test = (TensorSamples(pictures, classes, prepare=prepare) for pictures, classes, _ in parts)
        keys, test_keys = keys_of(parts[0][2], parts[1][2])
        return Task(train, test, num_classes=len(self.class_names), keys=keys, test_keys=test_keys)


def read_leaf(folder: str | Path, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures (n, 1, 28, 28) uint8, classes (n,) int64 and the writer of each sample, from LEAF's files of one split.

    LEAF divides bytes by 255; this gives these bytes again, which take a quarter of the memory.
    """
    pictures, classes, writers = [], [], []
    for file in leaf_files(folder, split):
        for user in read_users(file):
            if not user.targets:
                continue
            try:
                pixels = np.asarray(user.inputs, dtype=np.float64)
            except (TypeError, ValueError):
                pixels = np.empty(0)
            if pixels.shape != (len(user.targets), SIDE * SIDE) or not ((pixels >= 0) & (pixels <= 1)).all():  # NaN neither
                raise ConfigurationError(f"{user.place}: x must hold {SIDE * SIDE} numbers in [0, 1] for each sample; {REMEDY}")
            pictures.append(np.rint(pixels * 255).astype(np.uint8).reshape(-1, 1, SIDE, SIDE))
            classes += user.targets
            writers += [user.name] * len(user.targets)
    if not pictures:
        raise ConfigurationError(f"the files in {folder}/{split} hold no samples; {REMEDY}")
    return torch.from_numpy(np.concatenate(pictures)), torch.tensor(classes, dtype=torch.int64), writers


def read_parquet(folder: str | Path) -> tuple[Tensor, Tensor, list[str]]:
    """The same of all samples in the Hub's Parquet files."""
    parts = [_of_table(table, name) for table, name in read_tables(folder, "train", COLUMNS, "data")]
    pictures, classes, writers = zip(*parts, strict=True)
    return torch.cat(pictures), torch.cat(classes), [name for part in writers for name in part]


def read_hub() -> tuple[Tensor, Tensor, list[str]]:
    """The same from the Hub or its local cache."""
    return _of_table(hub_table(HUB_NAME, "train"), HUB_NAME)


def _of_table(table: pyarrow.Table, name: str) -> tuple[Tensor, Tensor, list[str]]:
    pictures, classes = decode(table, name, column="image", label="character", shape=(1, SIDE, SIDE))
    writers = table.column("writer_id").to_pylist()
    wrong = next((i for i, writer in enumerate(writers) if not isinstance(writer, str)), None)
    if wrong is not None:
        raise ConfigurationError(f"{name}: writer_id of row {wrong} is {writers[wrong]!r}; it must be a text")
    return pictures, classes, writers


def held_out(writers: list[str], fraction: float) -> Tensor:
    """(n,) bool, which samples are for testing: the share of each writer's, rounded, and never all.

    The split belongs to the data: it depends on writers' names alone, not on the experiment's seed.
    """
    held = torch.zeros(len(writers), dtype=torch.bool)
    names, of, sizes = np.unique(np.asarray(writers), return_inverse=True, return_counts=True)
    rows = torch.from_numpy(np.argsort(of, kind="stable")).split(sizes.tolist())
    for name, mine in zip(names.tolist(), rows, strict=True):
        count = min(round(fraction * len(mine)), len(mine) - 1)
        held[mine[torch.randperm(len(mine), generator=generator(0, f"FEMNIST split of {name}"))[:count]]] = True
    return held
