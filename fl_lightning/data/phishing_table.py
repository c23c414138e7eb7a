"""Phishing detection on a table of the user's own: any numeric columns and a label, from a CSV, JSON or Parquet file.

It takes the place of the private table of 45 sender-reputation scores of X. Wang, D. Dimitriadis, S. Koyejo, S. Tople,
"Invariant Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834;
`Phishing` is a synthetic one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fl_lightning.data.any_table import Table, encoded
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.table_file import TableFile
from fl_lightning.errors import ConfigurationError, enumerated


class PhishingTable(Table):
    """A `Table` of two classes, 0 (no phishing) and 1 (phishing): one value of the label against all others.

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

    split_purpose: ClassVar[str] = "phishing table split"

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
        super().__init__(
            partition,
            path=path,
            label_column=label_column,
            drop_columns=drop_columns,
            drop_repeats=drop_repeats,
            max_share=max_share,
            test_fraction=test_fraction,
            eval_batch_size=eval_batch_size,
            data_seed=data_seed,
            seed=seed,
            root=root,
        )
        self.phishing_value = phishing_value

    def _targets(self, table: TableFile) -> tuple[Tensor, tuple[str, ...]]:
        place, values = encoded(
            table.column(self.label_column), "label_column", self.label_column, self.path, self.phishing_value
        )
        is_phishing = [value == self.phishing_value for value in values]
        alike = [value for value in values if value != self.phishing_value and _folded(value) == _folded(self.phishing_value)]
        if alike:
            raise ConfigurationError(
                f"data.phishing_value is {self.phishing_value!r}, but {self.label_column!r} of {self.path} also holds "
                f"{enumerated(map(repr, alike))}, which would count as no phishing; write all of them alike"
            )
        if not any(is_phishing) or all(is_phishing):
            raise ConfigurationError(
                f"data.phishing_value is {self.phishing_value!r}, which {'all' if any(is_phishing) else 'none'} of the "
                f"{len(place):,} rows of {self.path} have in {self.label_column!r}; choose a value that some rows have "
                f"and others have not, there are {enumerated(sorted(map(repr, values)))}"
            )
        return torch.tensor(is_phishing, dtype=torch.int64)[place], self.class_names


def _folded(label: object) -> object:
    """A text without blanks around it and capital letters, which may be meant for the same; anything else as it is."""
    return label.strip().casefold() if isinstance(label, str) else label
