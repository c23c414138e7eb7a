"""A table of the user's own: any numeric columns, a label of any number of classes, from a CSV, JSON or Parquet file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.partition import Partition
from fl_lightning.data.phishing import Standardize
from fl_lightning.data.repeats import without_repeats
from fl_lightning.data.root import RootSet
from fl_lightning.data.table_file import TableFile, is_gap, numbers
from fl_lightning.errors import ConfigurationError, enumerated, nearest
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

Value = int | float | str
"""What may stand in a label's column."""

TOGETHER = 8
"""Columns whose mean and deviation are computed at once, in float64."""


class Table(FederatedDataModule):
    """Classes by the value of one column, with all other columns as model inputs (b, f) float32, standardised.

    Samples hold raw features, which attacks write to; `standardize` makes model inputs of them with the training part's mean
    and standard deviation, batch by batch. Columns that are constant, or nearly so, are left out with a warning that names
    them: a rare value in one of them would lie tens of standard deviations out and say nothing. A Parquet file is read column
    by column; in memory are in the end 4 bytes for each number in the table, and twice as many while it is split.

    Args:
        partition: how training samples are dealt out to clients.
        path: a file that ends in `.csv` (with a header; also `.csv.gz`) or `.parquet`.
        label_column: the column that says the class, in numbers or texts.
        classes: its values in the order of class numbers, from 0. None stands for all that occur, in ascending order.
        drop_columns: columns that are no features, such as an identifier. All others must be numbers.
        key_column: the column that says to whom a row belongs (a state, a hospital), in whole numbers or texts, for the `ByKey`
            and `PackedKeys` partitions; it is no feature. Keys are numbered in ascending order.
        drop_repeats: whether rows that repeat an earlier one in all features and the label are left out, with a warning; their
            copies would otherwise be found in training and test part.
        max_share: a column is left out if one value fills more than this share of its training samples, in (0, 1]; with 1.0
            only if it fills all of them.
        test_fraction: share of each class that is held out for testing, in (0, 1).
        eval_batch_size: samples per evaluation batch, at least 1.
        data_seed: seed of the split into training and test part.
        seed: the experiment's seed; the partition is drawn from it, the split is not.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Attributes:
        feature_names: the columns that are left, in the table's order, after `setup`; a trigger goes by name or by the number
            in this list.
        class_names: the values of `classes` as texts, after `setup`.
        standardize: raw features to model inputs, after `setup`.

    Raises:
        ConfigurationError: if the file cannot be read, or a column or the label is not what it should be.

    Example:
        >>> data = Table(ByKey(), path="loans.parquet", label_column="loan_status", key_column="addr_state")
        >>> data.setup("fit")
        >>> len(data.feature_names) == data.train.inputs.shape[1]
        True
    """

    feature_names: list[str]
    standardize: Standardize

    split_purpose: ClassVar[str] = "table split"
    """What the split's draws are for; see `seeding`."""

    def __init__(
        self,
        partition: Partition,
        *,
        path: str,
        label_column: str = "label",
        classes: Sequence[Value] | None = None,
        drop_columns: Sequence[str] = (),
        key_column: str | None = None,
        drop_repeats: bool = True,
        max_share: float = 0.999,
        test_fraction: float = 0.2,
        eval_batch_size: int = 1000,
        data_seed: int = 0,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if not 0 < max_share <= 1:
            raise ConfigurationError(f"data.max_share must be more than 0 and at most 1, got {max_share}; 0.999 is usual")
        if not 0 < test_fraction < 1:
            raise ConfigurationError(f"data.test_fraction must lie between 0 and 1, got {test_fraction}; 0.2 is usual")
        if classes is not None and not are_classes(classes):
            raise ConfigurationError(f"data.classes must list two values or more of the label, none twice, got {classes!r}")
        self.path = path
        self.label_column = label_column
        self.classes = classes
        self.drop_columns = drop_columns
        self.key_column = key_column
        self.drop_repeats = drop_repeats
        self.max_share = max_share
        self.test_fraction = test_fraction
        self.data_seed = data_seed

    def prepare_data(self) -> None:
        """See that every column can be read, one after the other."""
        table = TableFile(self.path)
        for name in self._features(table):
            numbers(table.column(name), name)
        self._targets(table)
        self._keys(table)

    def load(self) -> Task:
        table = TableFile(self.path)
        names = self._features(table)
        array = np.empty((table.num_rows, len(names)), dtype=np.float32)
        for i, name in enumerate(names):
            array[:, i] = numbers(table.column(name), name)
        features = torch.from_numpy(array)
        (targets, self.class_names), keys = self._targets(table), self._keys(table)
        if self.drop_repeats:
            kept_rows = without_repeats(features, targets)
            if len(kept_rows) < len(targets):
                log.warning("left out %d of %d rows, which repeat an earlier one", len(targets) - len(kept_rows), len(targets))
                features, targets = features[kept_rows], targets[kept_rows]
                keys = None if keys is None else keys[kept_rows]
        test = self._held_out(targets)  # (n,) bool
        train_rows, test_rows = (torch.nonzero(part).flatten() for part in (~test, test))
        kept = self._varied(names, features, train_rows)
        self.feature_names = [names[i] for i in kept]
        self.standardize = statistics(features, train_rows, kept)
        train_samples, test_samples = (
            TensorSamples(
                features[rows[:, None], torch.tensor(kept)] if len(kept) < len(names) else features[rows],
                targets[rows],
                prepare=self.standardize,
                feature_names=self.feature_names,
            )
            for rows in (train_rows, test_rows)
        )
        return Task(train_samples, test_samples, len(self.class_names), None if keys is None else keys[train_rows])

    # ---- columns ---------------------------------------------------------------------------------------------------------

    def _features(self, table: TableFile) -> list[str]:
        """The columns that are features, in the table's order; `ConfigurationError` for a setting that names none."""
        others = [self.label_column, *self.drop_columns, *([] if self.key_column is None else [self.key_column])]
        keys = [] if self.key_column is None else [self.key_column]
        for setting, given in (
            ("label_column", [self.label_column]),
            ("drop_columns", self.drop_columns),
            ("key_column", keys),
        ):
            for name in given:
                if name not in table.names:
                    raise ConfigurationError(
                        f"data.{setting} is {name!r}, which is none of the {len(table.names)} columns of {self.path}; "
                        f"{nearest(name, table.names)}"
                    )
        if self.key_column == self.label_column:
            raise ConfigurationError(
                f"data.key_column and data.label_column are both {self.key_column!r}; name another for one"
            )
        names = [name for name in table.names if name not in others]
        if not names:
            raise ConfigurationError(
                f"{self.path} has no column but data.label_column, data.key_column and data.drop_columns; nothing is left"
            )
        return names

    def _targets(self, table: TableFile) -> tuple[Tensor, tuple[str, ...]]:
        """(n,) int64, and what classes are called."""
        place, values = encoded(table.column(self.label_column), "label_column", self.label_column, self.path)
        if self.classes is None:
            if len(values) < 2 or (len(values) > len(place) / 2 and len(place) > TOGETHER):
                raise ConfigurationError(
                    f"data.label_column {self.label_column!r} of {self.path} holds {len(values):,} different values in "
                    f"{len(place):,} rows, which are no classes: {enumerated(map(repr, values))}; name another column"
                )
            return place, tuple(map(str, values))
        wanted = list(self.classes)
        if other := [value for value in values if value not in wanted]:
            rows = int(torch.isin(place, torch.tensor([values.index(value) for value in other])).sum())
            raise ConfigurationError(
                f"data.classes is {wanted}, but {self.label_column!r} of {self.path} also holds "
                f"{enumerated(map(repr, other))}, in {rows:,} of {len(place):,} rows; name these too, or take such rows out"
            )
        number = torch.tensor([wanted.index(value) for value in values])
        return number[place], tuple(map(str, wanted))

    def _keys(self, table: TableFile) -> Tensor | None:
        """(n,) int64, whose a row is."""
        if self.key_column is None:
            return None
        return encoded(table.column(self.key_column), "key_column", self.key_column, self.path)[0]

    # ---- rows ------------------------------------------------------------------------------------------------------------

    def _held_out(self, targets: Tensor) -> Tensor:
        """(n,) bool, the test part: the same share of each class."""
        test = torch.zeros(len(targets), dtype=torch.bool)
        for label, name in enumerate(self.class_names):
            rows = torch.nonzero(targets == label).squeeze(1)
            count = round(self.test_fraction * len(rows))
            if not 0 < count < len(rows):
                raise ConfigurationError(
                    f"data.test_fraction {self.test_fraction} leaves {len(rows) - count} training and {count} test samples of "
                    f"class {label} ({name}); both must be at least 1"
                )
            draws = generator(self.data_seed, self.split_purpose, label)
            test[rows[torch.randperm(len(rows), generator=draws)[:count]]] = True
        return test

    def _varied(self, names: Sequence[str], features: Tensor, rows: Tensor) -> list[int]:
        """The columns that are not nearly constant in the training part, ascending."""
        columns = (features[:, i][rows] for i in range(len(names)))
        shares = [int(column.unique(return_counts=True)[1].max()) / len(rows) for column in columns]
        kept = [i for i, share in enumerate(shares) if share < 1 and share <= self.max_share]
        dropped = [f"{name} ({share:.4%})" for i, (name, share) in enumerate(zip(names, shares, strict=True)) if i not in kept]
        if not kept:
            raise ConfigurationError(
                f"all {len(names)} features of {self.path} have one value in more than data.max_share = {self.max_share} of "
                "the training samples, so nothing is left to learn from; use a larger max_share or another table"
            )
        if dropped:
            log.warning(
                "%s: left out %d of %d columns, in which one value fills more than %s of the training samples: %s",
                self.path,
                len(dropped),
                len(names),
                f"{self.max_share:.4%}" if self.max_share < 1 else "all",
                enumerated(dropped),
            )
        return kept


def are_classes(given: Any) -> bool:
    """Whether these are two values or more, none twice."""
    listed = (
        isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(one, (int, float, str)) for one in given)
    )
    return listed and len(set(given)) == len(given) >= 2


def encoded(
    column: pyarrow.ChunkedArray, setting: str, name: str, path: str, meant: Value | None = None
) -> tuple[Tensor, list[Value]]:
    """Where each row's value ((n,) int64) stands among the distinct ones, ascending, and these.

    Args:
        column: of numbers or texts.
        setting, name, path: what names the column, its name and its file, for messages.
        meant: a value that says something, though it may look like a gap ("NA").

    Raises:
        ConfigurationError: if a row has none, or values are neither numbers nor texts.
    """
    import pyarrow

    of = pyarrow.types
    if not any(test(column.type) for test in (of.is_boolean, of.is_integer, of.is_floating, of.is_string, of.is_large_string)):
        raise ConfigurationError(f"data.{setting} {name!r} of {path} is of type {column.type}; it must be of numbers or texts")
    encoding = column.combine_chunks().dictionary_encode(null_encoding="encode")
    found = encoding.dictionary.to_pylist()
    place = torch.from_numpy(encoding.indices.to_numpy(zero_copy_only=False).astype(np.int64))
    gaps = torch.isin(
        place,
        torch.tensor(
            [i for i, value in enumerate(found) if value is None or (is_gap(value) and value != meant)], dtype=torch.int64
        ),
    )
    if gaps.any():
        row = int(gaps.int().argmax())
        raise ConfigurationError(
            f"data.{setting} {name!r} is empty in {int(gaps.sum()):,} of {len(place):,} rows of {path}, first in row {row}, "
            f"counted from 0, which says {found[place[row]]!r}; fill or remove them"
        )
    ordered = sorted(set(found))  # 0.0 and -0.0 are one value
    number = {value: i for i, value in enumerate(ordered)}
    return torch.tensor([number[value] for value in found])[place], ordered


def statistics(features: Tensor, rows: Tensor, kept: Sequence[int]) -> Standardize:
    """Means and standard deviations of some columns of (n, f) float32 over some rows, computed in float64."""
    means, deviations = [], []
    for start in range(0, len(kept), TOGETHER):
        columns = torch.stack([features[:, i][rows] for i in kept[start : start + TOGETHER]], dim=1).double()
        std, mean = torch.std_mean(columns, dim=0, correction=0)
        means.append(mean.float())
        deviations.append(std.float())
    return Standardize(torch.cat(means), torch.cat(deviations))
