"""The next word of what authors write, such as comments on Reddit; every author is a client.

LEAF's Reddit: S. Caldas, S. M. K. Duddu, P. Wu, T. Li, J. Konecny, H. B. McMahan, V. Smith, A. Talwalkar, "LEAF: A Benchmark
for Federated Settings", 2018, https://arxiv.org/abs/1812.01097. Next words under a backdoor are due to E. Bagdasaryan, A. Veit,
Y. Hua, D. Estrin, V. Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, https://arxiv.org/abs/1807.00459.

Differs from LEAF: the words are those of the training texts at hand, where LEAF brings a list; and unknown words are never
asked for, where LEAF trains on them and counts them as wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_lightning.checked import whole
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.leaf import REMEDY, check_test_fraction, is_leaf, keys_of, leaf_files, read_users
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.outcomes import Tokens
from fl_lightning.data.parquet import column_names, parquet_files, read_file
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.twitter import tokenize
from fl_lightning.data.vocabulary import PADDING, UNKNOWN, Vocabulary, most_frequent
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line

COLUMNS = ("author", "text")
HELD_OUT = 0.1
"""Share of an author's texts that are for testing, where files do not say."""

LEAF_MARKS = {"<PAD>": "<pad>", "<UNK>": "<unk>"}
"""LEAF's names of padding and unknown words."""

Piece = tuple[str, list[str], list[str]]
"""An author, words, and as many words that follow each of them."""


class NextWord(FederatedDataModule):
    """Sequences of words with their author as key, and the word that follows each; inputs and targets (b, max_words) int64.

    Number 0 is padding, behind the end of a text, and 1 an unknown word; targets that are one of these count for nothing,
    neither in the loss nor in Acc. With `ByKey` every author is a client. The test set is that of all authors together.
    `val/perplexity` is logged.

    Args:
        partition: how training sequences are dealt out to clients; keys are authors, numbered in the order of their names.
        path: a folder with LEAF's Reddit, `train/*.json` and `test/*.json`; or with texts and their authors: `train.jsonl`, an
            object with `author` and `text` in each line, or Parquet files with these columns (`train.parquet`,
            `train-*.parquet`), and the same for `test`, which may be missing.
        num_words: words that are known, at least 1: the most frequent ones of training. The model has two more.
        max_words: L, words of a sequence, at least 1. Longer texts become several sequences.
        test_fraction: share of each author's texts, the last ones, that is held out, in (0, 1), where there are no files for
            `test`; an author keeps at least one for training. None stands for .1.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or hold nothing to predict.

    Example:
        >>> list(sequences("ann", ["to", "be", "or", "not"], 2))
        [('ann', ['to', 'be'], ['be', 'or']), ('ann', ['or'], ['not'])]
    """

    def __init__(
        self,
        partition: Partition,
        *,
        path: str,
        num_words: int = 10_000,
        max_words: int = 20,
        test_fraction: float | None = None,
        eval_batch_size: int = 100,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        check_test_fraction(test_fraction)
        self.path, self.test_fraction = path, test_fraction
        self.num_words = whole("data.num_words", num_words, 1)
        self.max_words = whole("data.max_words", max_words, 1)

    def prepare_data(self) -> None:
        if not is_leaf(self.path, self.test_fraction):
            self._files("train")
            self._tested()

    def load(self) -> Task:
        if is_leaf(self.path, self.test_fraction):
            train, test = (list(read_leaf(self.path, split, self.max_words)) for split in ("train", "test"))
        else:
            train, test = self._plain()
        vocabulary = most_frequent(known_words(train), self.num_words)
        self.class_names = vocabulary.tokens
        samples, authors = self._samples(train, vocabulary, "train")
        tests, test_authors = self._samples(test, vocabulary, "test")
        keys, test_keys = keys_of(authors, test_authors)
        return Task(samples, tests, num_classes=self.num_words + 2, keys=keys, test_keys=test_keys)

    def _samples(self, pieces: Sequence[Piece], vocabulary: Vocabulary, name: str) -> tuple[TensorSamples, list[str]]:
        inputs = vocabulary.rows([words for _, words, _ in pieces], self.max_words)
        targets = vocabulary.rows([following for _, _, following in pieces], self.max_words).long()
        targets[targets == UNKNOWN] = PADDING
        asked = (targets != PADDING).any(1)
        if not asked.any():
            raise ConfigurationError(
                f"the {name} texts in {self.path} have no known word that follows another; give more of them, or raise "
                "data.num_words"
            )
        authors = [pieces[i][0] for i in torch.nonzero(asked).flatten().tolist()]
        outcome = Tokens(padding=PADDING, perplexity=True)
        return TensorSamples(inputs[asked], targets[asked], prepare=vocabulary, outcome=outcome), authors

    def _plain(self) -> tuple[list[Piece], list[Piece]]:
        """Sequences of training and test texts that are not LEAF's."""
        train = [entry for read, file in self._files("train") for entry in read(file)]
        if (tested := self._tested()) is not None:
            test = [entry for read, file in tested for entry in read(file)]
        else:
            fraction = HELD_OUT if self.test_fraction is None else self.test_fraction
            train, test = held_out(train, fraction)
            if train and not test:
                raise ConfigurationError(
                    f"data.test_fraction = {fraction} of each author's texts is none in {self.path}, as no author has enough; "
                    "raise it, or give test.jsonl"
                )
        return self._pieces(train), self._pieces(test)

    def _pieces(self, texts: Sequence[tuple[str, str]]) -> list[Piece]:
        return [piece for author, text in texts for piece in sequences(author, tokenize(text), self.max_words)]

    def _files(self, split: str) -> list[tuple[Callable[[Path], list[tuple[str, str]]], Path]]:
        """The files of one split, and what reads them."""
        lines = Path(self.path) / f"{split}.jsonl"
        if lines.is_file():
            return [(read_lines, lines)]
        try:
            return [(read_parquet, file) for file in parquet_files(self.path, split, "data")]
        except ConfigurationError as error:
            raise ConfigurationError(
                f"path {self.path} holds neither LEAF's {split}/*.json nor {split}.jsonl nor {split}.parquet; give the folder "
                "of the texts"
            ) from error

    def _tested(self) -> list[tuple[Callable[[Path], list[tuple[str, str]]], Path]] | None:
        """The files for testing, or None if there are none; a share is not held out where there are."""
        try:
            found = self._files("test")
        except ConfigurationError:
            return None
        if self.test_fraction is not None:
            raise ConfigurationError(
                f"data.test_fraction = {self.test_fraction}, but {self.path} holds texts for testing; leave it out"
            )
        return found


def sequences(author: str, words: Sequence[str], length: int) -> Iterator[Piece]:
    """A text of n words as pieces of up to `length` words with the word that follows each; none for less than two words."""
    for start in range(0, len(words) - 1, length):
        stop = min(start + length, len(words) - 1)
        yield author, list(words[start:stop]), list(words[start + 1 : stop + 1])


def known_words(pieces: Sequence[Piece]) -> Iterator[list[str]]:
    """The words of pieces, each once or nearly so, without padding and marks for unknown ones."""
    marks = set(LEAF_MARKS.values())
    for _, words, following in pieces:
        yield [word for word in (*words, *following[-1:]) if word not in marks]


def read_leaf(folder: str | Path, split: str, length: int) -> Iterator[Piece]:
    """The sequences in LEAF's files of one split, those that are longer than `length` in parts.

    A sample is a comment: `x` a list of sequences of words, `y` an object whose `target_tokens` are as many sequences of the
    words that follow. Padding is left out.
    """
    for file in leaf_files(folder, split):
        for user in read_users(file, dict):
            for number, (inputs, target) in enumerate(zip(user.inputs, user.targets, strict=True)):
                following = target.get("target_tokens")
                if not _words(inputs) or not _words(following) or list(map(len, inputs)) != list(map(len, following)):
                    raise ConfigurationError(
                        f"{user.place}: x of sample {number} must be a list of sequences of words, and target_tokens in y as "
                        f"many of the same lengths; {REMEDY}"
                    )
                for words, nexts in zip(inputs, following, strict=True):
                    pairs = [
                        (LEAF_MARKS.get(word, word), LEAF_MARKS.get(after, after))
                        for word, after in zip(words, nexts, strict=True)
                        if "<PAD>" not in (word, after)
                    ]
                    for start in range(0, len(pairs), length):
                        part = pairs[start : start + length]
                        yield user.name, [word for word, _ in part], [after for _, after in part]


def _words(value: Any) -> bool:
    """Whether it is a list of lists of texts."""
    return isinstance(value, list) and all(
        isinstance(sequence, list) and all(isinstance(word, str) for word in sequence) for sequence in value
    )


def read_lines(file: Path) -> list[tuple[str, str]]:
    """Authors and texts of a file of JSON lines."""
    found = []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    entry = json.loads(line)
                    found.append(_entry(entry if isinstance(entry, dict) else {}, f"{file}, line {number}"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{file} cannot be read: {in_one_line(error)}; correct it or give another path") from error
    return found


def read_parquet(file: Path) -> list[tuple[str, str]]:
    """Authors and texts of a Parquet file."""
    names = column_names(file)
    if not set(COLUMNS) <= set(names):
        raise ConfigurationError(f"{file} has the columns {enumerated(names)}; it must have {enumerated(COLUMNS)}")
    rows = read_file(file, list(COLUMNS)).to_pylist()
    return [_entry(row, f"{file}, row {number}") for number, row in enumerate(rows)]


def _entry(entry: dict[str, Any], place: str) -> tuple[str, str]:
    author, text = (entry.get(column) for column in COLUMNS)
    if not isinstance(author, str) or not isinstance(text, str):
        raise ConfigurationError(f"{place}: author is {author!r:.40} and text {text!r:.40}; both must be texts")
    return author, text


def held_out(texts: Sequence[tuple[str, str]], fraction: float) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Of each author's n texts the last round(fraction n) for testing, and never all."""
    of_author: dict[str, list[tuple[str, str]]] = {}
    for entry in texts:
        of_author.setdefault(entry[0], []).append(entry)
    train, test = [], []
    for own in of_author.values():
        kept = max(1, len(own) - int(np.rint(fraction * len(own))))
        train += own[:kept]
        test += own[kept:]
    return train, test
