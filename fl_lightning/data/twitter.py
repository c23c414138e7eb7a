"""Sentiment140: tweets with a user and a class, negative or positive, dealt out to clients by user.

A. Go, R. Bhayani, L. Huang, "Twitter Sentiment Classification using Distant Supervision", technical report, Stanford
University, 2009: 1,600,000 tweets labelled by the emoticons that were then removed from them, and 498 labelled by hand. Clients
made of users are due to S. Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, https://arxiv.org/abs/1812.01097. A
hundred of them is the setting of X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against
Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834.

As in LEAF, both files are read as one and users with few tweets are left out.

Differs from LEAF: neutral tweets are dropped, where LEAF counts them as negative; the test set are tweets of users that no
client has, the same number of either class, where LEAF holds out a tenth of every user's; and many users make a client
(`PackedKeys`), where in LEAF everyone is one (`ByKey`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.glove import GloVe
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.parquet import parquet_files, read_file
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.errors import ConfigurationError, enumerated
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

HUB_NAME = "stanfordnlp/sentiment140"
"""Where the data set lives on the Hugging Face Hub."""

HUB_REVISION = "refs/convert/parquet"
"""The Hub's own Parquet copy of it: the original comes as a script, which the `datasets` library no longer runs."""

NEGATIVE, POSITIVE = 0, 1
COLUMNS = ("text", "user", "sentiment")
SENTIMENTS = {"negative": 0, "neutral": 2, "positive": 4}
"""What the column `sentiment` may say."""

NOISE = re.compile(r"(?:https?://|\bwww\.)\S+|@\w+|[^\x00-\x7f]+", re.IGNORECASE)
"""Links, mentions of users, and whatever is not ASCII."""

TOKEN = re.compile(r"[a-z]+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|[a-z0-9]+|\.\.\.|[^\sa-z0-9]")


class Twitter(FederatedDataModule):
    """Tweets, 0 (negative) or 1 (positive), with model inputs (b, max_words, dimension + 1) float32: see `GloVe`.

    Samples hold the row numbers of a tweet's words in the word vectors, (n, max_words) int32, 0 behind its end; `tokenize` says
    what a word is. Longer tweets are cut. The groups of samples, for `PackedKeys` and `ByKey`, are the users.

    Args:
        partition: how training tweets are dealt out to clients.
        path: a folder that holds `train.parquet` and `test.parquet` (or several files each, `train-*.parquet`) with the columns
            `text`, `user` and `sentiment` (0 negative, 2 neutral, 4 positive; neutral tweets are dropped). None fetches
            "stanfordnlp/sentiment140" from the Hugging Face Hub, once per machine.
        glove: the word vectors; edge-case pools of tweets must be given the same, and the model their dimension.
        min_tweets: users with fewer tweets than this take no part in training, at least 2.
        num_test: test tweets, half of them of either class, at least 2 and even. They are drawn from those of users who take no
            part in training, without those whose text is also that of a training tweet.
        max_words: words per tweet, at least 1; all but 2% of tweets have at most 32.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it, the test set is not.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if files or columns are not there, labels are others, the Hub cannot be reached or
            there are too few tweets.

    Example:
        >>> data = Twitter(PackedKeys(num_clients=100), path="sentiment140", glove=GloVe(dimension=200))
        >>> data.setup("fit")
        >>> data.train.batch(torch.arange(64))[0].shape
        torch.Size([64, 32, 201])
    """

    class_names = ("negative", "positive")

    def __init__(
        self,
        partition: Partition,
        *,
        path: str | None = None,
        glove: GloVe = GloVe(),  # noqa: B008  frozen
        min_tweets: int = 3,
        num_test: int = 10_000,
        max_words: int = 32,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if min_tweets < 2:
            raise ConfigurationError(
                f"data.min_tweets must be at least 2, got {min_tweets}: test tweets are those of users with fewer; 3 is usual"
            )
        if num_test < 2 or num_test % 2:
            raise ConfigurationError(f"data.num_test must be even and at least 2, half for either class, got {num_test}")
        check_max_words("data.max_words", max_words)
        self.path = path
        self.glove = glove
        self.min_tweets = min_tweets
        self.num_test = num_test
        self.max_words = max_words

    def prepare_data(self) -> None:
        self.glove.prepare()
        for split in ("train", "test"):
            if self.path is None:
                _hub_table(split)
            else:
                parquet_files(self.path, split)

    def load(self) -> Task:
        texts, users, targets = read_tweets(self.path)
        tweets_of_user = np.bincount(users)
        trains = tweets_of_user[users] >= self.min_tweets
        if not trains.any():
            raise ConfigurationError(
                f"data.min_tweets is {self.min_tweets}, but no user has more than {tweets_of_user.max(initial=0)} tweets; use "
                "a lower one or more data"
            )
        train = np.flatnonzero(trains)
        test = self._held_out(texts, targets, trains)
        return Task(
            self._samples(texts[train], targets[train]),
            self._samples(texts[test], targets[test]),
            num_classes=2,
            keys=torch.from_numpy(users[train]),
        )

    def _held_out(self, texts: np.ndarray, targets: np.ndarray, trains: np.ndarray) -> np.ndarray:
        """Positions of the test tweets, ascending."""
        known = set(texts[trains])
        others = np.array([i for i, text in enumerate(texts) if text not in known], dtype=np.int64)
        chosen = []
        for label in (NEGATIVE, POSITIVE):
            of_class = others[targets[others] == label]
            if len(of_class) < self.num_test // 2:
                raise ConfigurationError(
                    f"data.num_test is {self.num_test}, half of them of class {label}, but users with fewer than "
                    f"data.min_tweets = {self.min_tweets} tweets wrote only {len(of_class)} of that class which are not "
                    f"training tweets word for word; use at most {2 * len(of_class)} or more data"
                )
            # The test set belongs to the data, so it does not depend on the experiment's seed.
            order = torch.randperm(len(of_class), generator=generator(0, "twitter test set", label)).numpy()
            chosen.append(of_class[order[: self.num_test // 2]])
        return np.sort(np.concatenate(chosen))

    def _samples(self, texts: Sequence[str] | np.ndarray, targets: np.ndarray) -> TensorSamples:
        return tweet_samples(texts, torch.from_numpy(targets), self.glove, self.max_words)


def tokenize(text: str) -> list[str]:
    """The words of a tweet, as far as possible as GloVe's vocabulary has them.

    HTML entities are decoded; links, mentions (`@user`) and characters that are not ASCII are taken out; letters are made lower
    case. A word is then a run of letters and digits, and every other character but blanks is a word of its own, three dots in a
    row being one. Contractions are split as the Penn Treebank splits them.

    >>> tokenize("@you I can't... it's SO #cool &amp; new: http://t.co/x1")
    ['i', 'ca', "n't", '...', 'it', "'s", 'so', '#', 'cool', '&', 'new', ':']
    """
    return TOKEN.findall(NOISE.sub(" ", html.unescape(text)).lower())


def tweet_samples(texts: Sequence[str] | np.ndarray, targets: Tensor, glove: GloVe, max_words: int) -> TensorSamples:
    """Tweets as samples: row numbers of their words, (n, max_words) int32, which become vectors batch by batch.

    Args:
        texts: n tweets.
        targets: (n,) classes.
        glove: the word vectors.
        max_words: words per tweet; longer ones are cut, shorter ones padded on the right.
    """
    return TensorSamples(glove.rows([tokenize(text) for text in texts], max_words), targets, prepare=glove)


def check_max_words(name: str, value: int) -> None:
    """Raise `ConfigurationError` unless tweets may have at least one word."""
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}; 32 holds all but 2% of tweets")


def read_tweets(path: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tweets of both splits but the neutral ones.

    Args:
        path: the folder of the Parquet files, or None for the Hub.

    Returns:
        Texts (n,) str, users (n,) int64 from 0, and classes (n,) int64.
    """
    import pyarrow  # here, as most runs do not need it and it is slow to import

    tables = []
    for split in ("train", "test"):
        if path is None:
            tables.append(checked(_hub_table(split), f"{HUB_NAME}, split {split}", COLUMNS))
        else:
            tables += [read_columns(file, COLUMNS) for file in parquet_files(path, split)]
    tweets = pyarrow.concat_tables(tables)
    tweets = tweets.filter(pyarrow.array(tweets.column("sentiment").to_numpy() != SENTIMENTS["neutral"]))
    texts = np.array(tweets.column("text").to_pylist(), dtype=object)
    users = tweets.column("user").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    targets = np.where(tweets.column("sentiment").to_numpy() == SENTIMENTS["positive"], POSITIVE, NEGATIVE)
    return texts, users, targets


def read_columns(file: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Columns of a Parquet file, checked; raises `ConfigurationError` if the file or one of them is not as it should be."""
    return checked(read_file(file), str(file), columns)


def checked(table: pyarrow.Table, name: str, columns: Sequence[str]) -> pyarrow.Table:
    """The columns alone, `sentiment` as int64 and others as strings.

    Raises:
        ConfigurationError: if a column or an entry is missing, of another type, or a sentiment is not 0, 2 or 4.
    """
    import pyarrow

    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ConfigurationError(
            f"{name} has the columns {enumerated(table.column_names)}, but not {' and '.join(missing)}; give files "
            f"with the columns {', '.join(columns)}, as in {HUB_NAME} on the Hub"
        )
    table = table.select(list(columns))
    wanted = [(column, pyarrow.int64() if column == "sentiment" else pyarrow.string()) for column in columns]
    for column, kind in wanted:
        found = table.schema.field(column).type
        fits = pyarrow.types.is_integer(found) if column == "sentiment" else str(found) in ("string", "large_string")
        if not fits:
            raise ConfigurationError(f"{name}: the column {column} has type {found}; it must be {kind}; convert it")
        if table.column(column).null_count:
            row = table.column(column).is_null().to_pylist().index(True)
            raise ConfigurationError(f"{name}: {column} of row {row} is missing; remove that row or give another path")
    if "sentiment" in columns:
        others = sorted(set(table.column("sentiment").unique().to_pylist()) - set(SENTIMENTS.values()))
        if others:
            raise ConfigurationError(
                f"{name}: the column sentiment holds {others[:5]}; it may hold 0 (negative), 2 (neutral) and 4 (positive); "
                "convert it or give another path"
            )
    return table.cast(pyarrow.schema(wanted))


def _hub_table(split: str) -> pyarrow.Table:
    """One split from the Hub or its local cache."""
    import datasets  # takes seconds to import, and a local copy of the data does not need it

    try:
        data = datasets.load_dataset(HUB_NAME, revision=HUB_REVISION, split=split)
    except OSError as error:
        raise ConfigurationError(
            f"data.path is not set and {HUB_NAME} cannot be fetched from the Hugging Face Hub ({error}); check the "
            "network, or set data.path to a folder with train.parquet and test.parquet"
        ) from error
    return data.with_format("arrow")[:]
