"""Columns of texts, from any data set of the Hugging Face Hub or from files of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.table_file import read_table
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line, nearest
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

ENDINGS = (".parquet", ".csv", ".csv.gz", ".json", ".jsonl")
"""Of files that are looked for in a folder, the first that there is."""


@dataclass(frozen=True)
class TextSource:
    """Where texts come from.

    Attributes:
        path: a local file, or a folder with one for each split; None for `dataset`.
        dataset: a name on the Hugging Face Hub; None for `path`.
        subset: of a data set on the Hub that has several.
        revision: of `dataset`: a branch, a tag or a commit.
        test_split: the name of the split for testing; None where there is none.

    Raises:
        ConfigurationError: not exactly one of `path` and `dataset` is given, or settings of the other are.
    """

    path: str | None
    dataset: str | None
    subset: str | None
    revision: str | None
    test_split: str | None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.dataset is None):
            raise ConfigurationError(
                f"data.path is {self.path!r} and data.dataset {self.dataset!r}; give one of them, a file or folder, or a name "
                "on the Hub"
            )
        if self.path is not None and (self.subset is not None or self.revision is not None):
            raise ConfigurationError(
                "data.subset and data.revision are of a data set on the Hub, but data.path is given; leave them out"
            )

    def table(self, split: str, columns: Sequence[str]) -> tuple[pyarrow.Table, str]:
        """A split with these columns, none of whose entries is empty, and what it is called in messages.

        Raises:
            ConfigurationError: it cannot be had, a column is not there, or an entry is empty.
        """
        table, where = self._read(split)
        for column in columns:
            if column not in table.column_names:
                raise ConfigurationError(
                    f"{where} has no column {column!r}, which a setting of data (..._column) names; "
                    f"{nearest(column, table.column_names)}"
                )
            if table.column(column).null_count:
                row = table.column(column).is_null().to_pylist().index(True)
                raise ConfigurationError(f"{where}: {column!r} is empty in row {row}, counted from 0; fill or remove such rows")
        return table, where

    def _read(self, split: str) -> tuple[pyarrow.Table, str]:
        if self.dataset is not None:
            return self._fetched(self.dataset, split), f"{self.dataset}, split {split}"
        path = Path(self.path or "")
        if path.is_dir():
            found = [file for ending in ENDINGS if (file := path / f"{split}{ending}").is_file()]
            if not found:
                raise ConfigurationError(
                    f"data.path {path} has no {split}{ENDINGS[0]}, nor {enumerated(split + of for of in ENDINGS[1:])}; give a "
                    "file, or data.train_split and data.test_split the names of those that are there"
                )
            return read_table(found[0]), str(found[0])
        if self.test_split is not None:
            raise ConfigurationError(
                f"data.test_split is {self.test_split!r}, but data.path {path} is no folder with a file for each split; give "
                "one, or leave test_split out"
            )
        return read_table(path), str(path)

    def _fetched(self, dataset: str, split: str) -> pyarrow.Table:
        """One split from the Hub, or from its local cache."""
        import datasets  # takes seconds to import, and a local copy of the data does not need it

        try:
            data = datasets.load_dataset(dataset, self.subset, revision=self.revision, split=split)
        except (OSError, ValueError, RuntimeError) as error:  # also for subsets and splits that there are not
            raise ConfigurationError(
                f"data.dataset {dataset!r} (subset {self.subset}, split {split}) cannot be fetched from the Hugging Face Hub "
                f"({in_one_line(error)}); check the names and the network, or set data.path to a file"
            ) from error
        return data.with_format("arrow")[:]


def texts_of(table: pyarrow.Table, column: str, where: str) -> list[str]:
    """A column of texts; raises `ConfigurationError` for one of anything else."""
    kind = table.schema.field(column).type
    if str(kind) not in ("string", "large_string", "string_view"):
        raise ConfigurationError(f"{where}: {column!r} has type {kind}, and no texts; name another column")
    return table.column(column).to_pylist()


def names_of(table: pyarrow.Table, column: str) -> np.ndarray:
    """(n,) str, whose each row is."""
    return np.array([str(name) for name in table.column(column).to_pylist()])


def numbered(names: np.ndarray) -> Tensor:
    """(n,) int64, the number of each name among all, in ascending order."""
    return torch.from_numpy(np.unique(names, return_inverse=True)[1].astype(np.int64))


def check_share(test_split: str | None, test_fraction: float) -> None:
    """Raise `ConfigurationError` for a share of texts that cannot be held out."""
    if test_split is None and not 0 < test_fraction < 1:
        raise ConfigurationError(f"data.test_fraction must lie between 0 and 1, got {test_fraction}; 0.1 is usual")


def hold_out_texts(n: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows for training and those for testing, ascending, which depends on nothing but these two numbers.

    Raises:
        ConfigurationError: one of them would be empty.
    """
    count = round(fraction * n)
    if not 0 < count < n:
        raise ConfigurationError(
            f"data.test_fraction {fraction} of {n} texts leaves {count} for testing and {n - count} for training; both must be "
            "at least 1: give another one, or more data"
        )
    order = torch.randperm(n, generator=generator(0, "text test set")).numpy()
    return np.sort(order[count:]), np.sort(order[:count])
