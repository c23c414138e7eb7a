"""Texts with classes, from any data set of the Hugging Face Hub or a file, as token numbers for networks of transformers.

Q. Lhoest, A. Villanova del Moral, Y. Jernite, et al., "Datasets: A Community Library for Natural Language Processing", EMNLP
2021 (demonstrations), https://aclanthology.org/2021.emnlp-demo.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.table_file import read_table
from fl_lightning.data.tokenizer import Tokenizer
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line, nearest
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

ENDINGS = (".parquet", ".csv", ".csv.gz", ".json", ".jsonl")
"""Of files that are looked for in a folder, the first that there is."""


class HuggingFaceText(FederatedDataModule):
    """Texts and their classes, with model inputs (b, L') int64: token numbers, -1 behind the end (see `Tokenizer`).

    Samples hold row numbers of tokens, (n, L) int32, 0 behind the end. Texts are cut into tokens once per machine and kept in
    the package's cache folder. A batch is as long as its longest text.

    Args:
        partition: how training texts are dealt out to clients; keys are the values of `key_column`.
        tokenizer: a name on the Hub, that of the model, or a local folder.
        max_tokens: the most that a text may have, with what the tokenizer puts around it, at least 4; longer ones are cut.
        path: a local file (`.parquet`, `.csv`, `.csv.gz`, `.json`, `.jsonl`), or a folder with one for each split, such as
            `train.csv` and `test.csv`; null for `dataset`.
        dataset: a name on the Hugging Face Hub; null for `path`.
        subset: of a data set on the Hub that has several; null for the only one.
        revision: of `dataset`: a branch, a tag or a commit; null for its main branch.
        text_column: the texts; several columns, such as a question and a sentence, are joined by a blank.
        label_column: the classes, whole numbers or texts.
        classes: the values of `label_column` that count, in the order of the classes 0, 1, ...; rows with others are left out.
            Null takes all that the training split has, in ascending order.
        key_column: whose texts they are, for `ByKey` and `PackedKeys`; null for none.
        train_split: the name of the training split, or of its file without the ending; of a single file it means nothing.
        test_split: the same of the test split; null holds out `test_fraction`.
        test_fraction: share of the training split's texts that is held out for testing, in (0, 1), where there is no test
            split; which ones depends on nothing but their number.
        eval_batch_size: texts per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it, the test set is not.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if texts or tokenizer cannot be had, a column is not there or not as it should be.

    Example:
        >>> data = HuggingFaceText(IID(num_clients=10), tokenizer="google-bert/bert-base-uncased", path="reviews.csv")
        >>> data.setup("fit")
        >>> data.train.batch(torch.arange(8))[0].dtype
        torch.int64
    """

    def __init__(
        self,
        partition: Partition,
        *,
        tokenizer: str,
        max_tokens: int = 128,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | None = None,
        revision: str | None = None,
        text_column: str | Sequence[str] = "text",
        label_column: str = "label",
        classes: Sequence[int | str] | None = None,
        key_column: str | None = None,
        train_split: str = "train",
        test_split: str | None = None,
        test_fraction: float = 0.1,
        eval_batch_size: int = 256,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if (path is None) == (dataset is None):
            raise ConfigurationError(
                f"data.path is {path!r} and data.dataset {dataset!r}; give one of them, a file or folder, or a name on the Hub"
            )
        if path is not None and (subset is not None or revision is not None):
            raise ConfigurationError(
                "data.subset and data.revision are of a data set on the Hub, but data.path is given; leave them out"
            )
        if test_split is None and not 0 < test_fraction < 1:
            raise ConfigurationError(f"data.test_fraction must lie between 0 and 1, got {test_fraction}; 0.1 is usual")
        if classes is not None and (isinstance(classes, str) or len(set(classes)) != len(classes) or len(classes) < 2):
            raise ConfigurationError(f"data.classes must be a list of two different values or more, got {classes!r}")
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokens = Tokenizer(tokenizer, max_tokens)
        self.path, self.dataset, self.subset, self.revision = path, dataset, subset, revision
        self.text_column, self.label_column, self.key_column = text_column, label_column, key_column
        self.text_columns = [text_column] if isinstance(text_column, str) else list(text_column)
        self.classes = classes
        self.train_split, self.test_split, self.test_fraction = train_split, test_split, test_fraction

    def prepare_data(self) -> None:
        self.load()  # what takes long, fetching and cutting texts into tokens, is kept

    def load(self) -> Task:
        train = self._read(self.train_split)
        values = list(self.classes) if self.classes is not None else ascending(train.labels, self.label_column)
        train = train.of_classes(values)
        if self.test_split is None:
            count = round(self.test_fraction * len(train.texts))
            if not 0 < count < len(train.texts):
                raise ConfigurationError(
                    f"data.test_fraction {self.test_fraction} of {len(train.texts)} texts leaves {count} for testing and "
                    f"{len(train.texts) - count} for training; both must be at least 1: give another one, or more data"
                )
            order = torch.randperm(len(train.texts), generator=generator(0, "text test set")).numpy()
            test, train = train.at(np.sort(order[:count])), train.at(np.sort(order[count:]))
        else:
            test = self._read(self.test_split)
            if self.classes is None:
                test.check_known(values, self.test_split, self.train_split)
            test = test.of_classes(values)
        for split, name in ((train, self.train_split), (test, self.test_split)):
            if not split.texts:
                raise ConfigurationError(
                    f"split {name} has no text of the classes {enumerated(values)}; look at data.label_column"
                )
        self.class_names = tuple(map(str, values))
        keys = None
        if train.keys is not None:
            keys = torch.from_numpy(np.unique(train.keys, return_inverse=True)[1].astype(np.int64))
        return Task(self._samples(train, values), self._samples(test, values), num_classes=len(values), keys=keys)

    def _samples(self, split: Split, values: list[Any]) -> TensorSamples:
        return TensorSamples(self.tokens.kept_rows(split.texts), split.targets(values), prepare=self.tokens)

    def _read(self, name: str) -> Split:
        """A split's columns, checked."""
        table, where = self._table(name)
        wanted = [*self.text_columns, self.label_column, *([] if self.key_column is None else [self.key_column])]
        for column in wanted:
            if column not in table.column_names:
                raise ConfigurationError(
                    f"{where} has no column {column!r} (data.text_column, label_column or key_column); "
                    f"{nearest(column, table.column_names)}"
                )
            if table.column(column).null_count:
                row = table.column(column).is_null().to_pylist().index(True)
                raise ConfigurationError(f"{where}: {column!r} is empty in row {row}, counted from 0; fill or remove such rows")
        parts = [texts_of(table, column, where) for column in self.text_columns]
        keys = None if self.key_column is None else np.array([str(key) for key in table.column(self.key_column).to_pylist()])
        return Split([" ".join(row) for row in zip(*parts, strict=True)], table.column(self.label_column).to_pylist(), keys)

    def _table(self, name: str) -> tuple[pyarrow.Table, str]:
        """A split as it comes, and what it is called in messages."""
        if self.dataset is not None:
            return hub_split(self.dataset, self.subset, self.revision, name), f"{self.dataset}, split {name}"
        path = Path(self.path or "")
        if path.is_dir():
            found = [file for ending in ENDINGS if (file := path / f"{name}{ending}").is_file()]
            if not found:
                raise ConfigurationError(
                    f"data.path {path} has no {name}{ENDINGS[0]}, nor {enumerated(name + of for of in ENDINGS[1:])}; give a "
                    "file, or data.train_split and data.test_split the names of those that are there"
                )
            return read_table(found[0]), str(found[0])
        if self.test_split is not None:
            raise ConfigurationError(
                f"data.test_split is {self.test_split!r}, but data.path {path} is no folder with a file for each split; give "
                "one, or leave test_split out"
            )
        return read_table(path), str(path)


class Split:
    """Rows of texts.

    Args:
        texts: n of them.
        labels: n values of the label column.
        keys: (n,) whose they are; None for nobody's.
    """

    def __init__(self, texts: list[str], labels: list[Any], keys: np.ndarray | None) -> None:
        self.texts, self.labels, self.keys = texts, labels, keys

    def at(self, rows: np.ndarray) -> Split:
        """Some of the rows, (m,) int64."""
        keys = None if self.keys is None else self.keys[rows]
        return Split([self.texts[i] for i in rows], [self.labels[i] for i in rows], keys)

    def of_classes(self, values: list[Any]) -> Split:
        """The rows whose label is one of these values."""
        known = set(values)
        return self.at(np.array([i for i, label in enumerate(self.labels) if label in known], dtype=np.int64))

    def targets(self, values: list[Any]) -> Tensor:
        """(n,) int64, where the labels stand among the values."""
        place = {value: i for i, value in enumerate(values)}
        return torch.tensor([place[label] for label in self.labels], dtype=torch.int64)

    def check_known(self, values: list[Any], name: str, other: str) -> None:
        """Raise `ConfigurationError` for a label that the training split has not."""
        strange = sorted({repr(label) for label in self.labels} - {repr(value) for value in values})
        if strange:
            raise ConfigurationError(
                f"split {name} has the classes {enumerated(strange)}, which split {other} has not; give data.classes those "
                "that count"
            )


def ascending(labels: list[Any], column: str) -> list[Any]:
    """The different labels in order.

    Raises:
        ConfigurationError: they are no classes, or there is one alone.
    """
    found = set(labels)
    kinds = {type(label) for label in found}
    if not kinds <= {int, bool} and kinds != {str}:
        raise ConfigurationError(
            f"data.label_column {column!r} holds values of type {enumerated(sorted(kind.__name__ for kind in kinds))}; classes "
            "are whole numbers or texts: give another column"
        )
    if not 2 <= len(found) <= max(2, len(labels) // 2):
        raise ConfigurationError(
            f"data.label_column {column!r} holds {len(found)} different values in {len(labels)} rows, which are no classes; "
            "give another column"
        )
    return sorted(found)


def texts_of(table: pyarrow.Table, column: str, where: str) -> list[str]:
    """A column of texts."""
    kind = table.schema.field(column).type
    if str(kind) not in ("string", "large_string", "string_view"):
        raise ConfigurationError(f"{where}: {column!r} has type {kind}, and no texts; give data.text_column another column")
    return table.column(column).to_pylist()


def hub_split(dataset: str, subset: str | None, revision: str | None, split: str) -> pyarrow.Table:
    """One split of a data set of the Hugging Face Hub, or of its local cache."""
    import datasets  # takes seconds to import, and a local copy of the data does not need it

    try:
        data = datasets.load_dataset(dataset, subset, revision=revision, split=split)
    except (OSError, ValueError, RuntimeError) as error:  # also for subsets and splits that there are not
        raise ConfigurationError(
            f"data.dataset {dataset!r} (subset {subset}, split {split}) cannot be fetched from the Hugging Face Hub "
            f"({in_one_line(error)}); check the names and the network, or set data.path to a file"
        ) from error
    return data.with_format("arrow")[:]
