"""Texts with classes, from any data set of the Hugging Face Hub or a file, as token numbers for networks of transformers.

Q. Lhoest, A. Villanova del Moral, Y. Jernite, et al., "Datasets: A Community Library for Natural Language Processing", EMNLP
2021 (demonstrations), https://aclanthology.org/2021.emnlp-demo.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.text_source import TextSource, check_share, hold_out_texts, names_of, numbered, texts_of
from fl_lightning.data.tokenizer import Tokenizer
from fl_lightning.errors import ConfigurationError, enumerated


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
        self.source = TextSource(path, dataset, subset, revision, test_split)
        check_share(test_split, test_fraction)
        if classes is not None and (
            isinstance(classes, str)
            or not isinstance(classes, Sequence)
            or len(set(classes)) != len(classes)
            or len(classes) < 2
        ):
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
        train.check_held(values, self.train_split)
        train = train.of_classes(values)
        if self.test_split is None:
            rows, held = hold_out_texts(len(train.texts), self.test_fraction)
            test, train = train.at(held), train.at(rows)
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
            keys = numbered(train.keys)
        return Task(self._samples(train, values), self._samples(test, values), num_classes=len(values), keys=keys)

    def _samples(self, split: Split, values: list[Any]) -> TensorSamples:
        return TensorSamples(self.tokens.kept_rows(split.texts), split.targets(values), prepare=self.tokens)

    def _read(self, name: str) -> Split:
        """A split's columns, checked."""
        keyed = [] if self.key_column is None else [self.key_column]
        table, where = self.source.table(name, [*self.text_columns, self.label_column, *keyed])
        parts = [texts_of(table, column, where) for column in self.text_columns]
        keys = None if self.key_column is None else names_of(table, self.key_column)
        return Split([" ".join(row) for row in zip(*parts, strict=True)], table.column(self.label_column).to_pylist(), keys)


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

    def check_held(self, values: list[Any], name: str) -> None:
        """Raise `ConfigurationError` for a class of which there is no text."""
        found = set(self.labels)
        missing = [repr(value) for value in values if value not in found]
        if missing:
            there = sorted({repr(label) for label in found})
            raise ConfigurationError(
                f"data.classes has {enumerated(missing)}, of which split {name} has no text (it has {enumerated(there)}); give "
                "values of data.label_column as they are written there"
            )

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
