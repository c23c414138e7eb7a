"""Phishing detection on a table of the user's own: any numeric columns and a label, from a CSV, JSON or Parquet file.

It takes the place of the private table of 45 sender-reputation scores of X. Wang, D. Dimitriadis, S. Koyejo, S. Tople,
"Invariant Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834;
`Phishing` is a synthetic one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.partition import Partition
from fl_lightning.data.phishing import Standardize
from fl_lightning.data.root import RootSet
from fl_lightning.data.table_file import is_gap, numbers, read_table
from fl_lightning.errors import ConfigurationError, enumerated, nearest
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)


class PhishingTable(FederatedDataModule):
    """Two classes, 0 (no phishing) and 1 (phishing), with model inputs (b, f) float32, standardised by column.

    Samples hold raw features, which attacks write to; `standardize` makes model inputs of them with the training part's mean
    and standard deviation, batch by batch. Columns that are constant, or nearly so, are left out with a warning that names
    them: a rare value in one of them would lie tens of standard deviations out and say nothing.

    Args:
        partition: how training samples are dealt out to clients.
        path: a file that ends in `.csv` (with a header; also `.csv.gz`), in `.json` or `.jsonl` (objects, in a list or one a
            line), or in `.parquet`.
        label_column: the column that tells phishing from the rest.
        phishing_value: its value for phishing, a number or a text; any other value is no phishing.
        drop_columns: columns that are no features, such as an identifier. All others must be numbers.
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
        standardize: raw features to model inputs, after `setup`.

    Raises:
        ConfigurationError: if the file cannot be read, or a column or the label is not what it should be.

    Example:
        >>> data = PhishingTable(IID(num_clients=100), path="senders.csv", label_column="verdict", phishing_value="bad")
        >>> data.setup("fit")
        >>> len(data.feature_names) == data.train.inputs.shape[1]
        True
    """

    feature_names: list[str]
    standardize: Standardize

    class_names = ("no phishing", "phishing")

    def __init__(
        self,
        partition: Partition,
        *,
        path: str,
        label_column: str = "label",
        phishing_value: int | float | str = 1,
        drop_columns: Sequence[str] = (),
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
        self.path = path
        self.label_column = label_column
        self.phishing_value = phishing_value
        self.drop_columns = drop_columns
        self.drop_repeats = drop_repeats
        self.max_share = max_share
        self.test_fraction = test_fraction
        self.data_seed = data_seed

    def prepare_data(self) -> None:
        self._read()

    def load(self) -> Task:
        names, features, targets = self._read()
        if self.drop_repeats:
            features, targets = without_repeats(features, targets)
        test = self._held_out(targets)  # (n,) bool
        kept = self._varied(names, features[~test])
        self.feature_names, features = [names[i] for i in kept], features[:, kept]
        std, mean = torch.std_mean(features[~test].double(), dim=0, correction=0)
        self.standardize = Standardize(mean.float(), std.float())
        train_samples, test_samples = (
            TensorSamples(features[rows], targets[rows], prepare=self.standardize, feature_names=self.feature_names)
            for rows in (~test, test)
        )
        return Task(train_samples, test_samples, num_classes=2)

    def _read(self) -> tuple[list[str], Tensor, Tensor]:
        """Names of the features, features (n, f) float32 and classes (n,) int64."""
        table = read_table(self.path)
        for setting, names in (("label_column", [self.label_column]), ("drop_columns", self.drop_columns)):
            for name in names:
                if name not in table.column_names:
                    raise ConfigurationError(
                        f"data.{setting} is {name!r}, which is none of the {len(table.column_names)} columns of {self.path}; "
                        f"{nearest(name, table.column_names)}"
                    )
        names = [name for name in table.column_names if name not in (self.label_column, *self.drop_columns)]
        if not names:
            raise ConfigurationError(f"{self.path} has no column but data.label_column and data.drop_columns; nothing is left")
        features = np.stack([numbers(table, name) for name in names], axis=1)
        return names, torch.from_numpy(features), self._classes(table)

    def _classes(self, table: pyarrow.Table) -> Tensor:
        """(n,) int64, 1 for phishing."""
        labels = table.column(self.label_column).to_pylist()
        gaps = [row for row, label in enumerate(labels) if label != self.phishing_value and is_gap(label)]
        if gaps:
            raise ConfigurationError(
                f"data.label_column {self.label_column!r} is empty in {len(gaps):,} of {len(table):,} rows of {self.path}, "
                f"first in row {gaps[0]}, counted from 0, which says {labels[gaps[0]]!r}; fill or remove them"
            )
        alike = {label for label in labels if label != self.phishing_value and _folded(label) == _folded(self.phishing_value)}
        if alike:
            raise ConfigurationError(
                f"data.phishing_value is {self.phishing_value!r}, but {self.label_column!r} of {self.path} also holds "
                f"{enumerated(sorted(map(repr, alike)))}, which would count as no phishing; write all of them alike"
            )
        targets = torch.tensor([label == self.phishing_value for label in labels], dtype=torch.int64)
        if not 0 < targets.sum() < len(targets):
            found = sorted({repr(label) for label in labels})
            raise ConfigurationError(
                f"data.phishing_value is {self.phishing_value!r}, which {'all' if targets.any() else 'none'} of the "
                f"{len(table):,} rows of {self.path} have in {self.label_column!r}; choose a value that some rows have "
                f"and others have not, there are {enumerated(found)}"
            )
        return targets

    def _held_out(self, targets: Tensor) -> Tensor:
        """(n,) bool, the test part: the same share of each class."""
        test = torch.zeros(len(targets), dtype=torch.bool)
        for label in (0, 1):
            rows = torch.nonzero(targets == label).squeeze(1)
            count = round(self.test_fraction * len(rows))
            if not 0 < count < len(rows):
                raise ConfigurationError(
                    f"data.test_fraction {self.test_fraction} leaves {len(rows) - count} training and {count} test samples of "
                    f"class {label} ({'phishing' if label else 'no phishing'}); both must be at least 1"
                )
            draws = generator(self.data_seed, "phishing table split", label)
            test[rows[torch.randperm(len(rows), generator=draws)[:count]]] = True
        return test

    def _varied(self, names: Sequence[str], train: Tensor) -> list[int]:
        """The columns that are not nearly constant, ascending."""
        shares = [int(column.unique(return_counts=True)[1].max()) / len(train) for column in train.T]
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


def _folded(label: object) -> object:
    """A text without blanks around it and capital letters, which may be meant for the same; anything else as it is."""
    return label.strip().casefold() if isinstance(label, str) else label


def without_repeats(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The first of all rows that are alike in features ((n, f)) and class ((n,)), in their order."""
    rows = torch.cat([features, targets[:, None].to(features.dtype)], dim=1).numpy()
    first = torch.from_numpy(np.sort(np.unique(rows, axis=0, return_index=True)[1]))
    if len(first) < len(targets):
        log.warning("left out %d of %d rows, which repeat an earlier one", len(targets) - len(first), len(targets))
    return features[first], targets[first]
