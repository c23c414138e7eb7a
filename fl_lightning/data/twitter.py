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

A tenth of a pass over a client's tweets is 25 steps of 64 where it holds 16,000, which takes all 1.6 million over 100 clients,
users or not: `by_user=False`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fl_lightning.checked import one_of
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.glove import GloVe
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.parquet import parquet_files
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.tweet_files import (
    NEGATIVE,
    POSITIVE,
    classes,
    hub_table,
    occurring_once,
    read_texts,
    read_tweets,
    unlike,
)
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

if TYPE_CHECKING:
    import pyarrow

    Texts = Sequence[str] | np.ndarray | pyarrow.ChunkedArray

FEWEST_TWEETS = 3
"""Of a user who takes part in training; the number with which LEAF's authors sample too."""

NOISE = re.compile(r"(?:https?://|\bwww\.)\S+|@\w+|[^\x00-\x7f]+", re.IGNORECASE)
"""Links, mentions of users, and whatever is not ASCII."""

MASKS = re.compile(r"\b(?:USER|URL)\b")
"""What stands for mentions and links in copies of the data that have no users."""

BLOCK = 2**14
"""Tweets that are in lists of words at a time: all 1.6 million would take four gigabytes."""

TestSet = Literal["held_out", "given"]

TOKEN = re.compile(r"[a-z]+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|[a-z0-9]+|\.\.\.|[^\sa-z0-9]")


class Twitter(FederatedDataModule):
    """Tweets, 0 (negative) or 1 (positive), with model inputs (b, max_words, dimension + 1) float32: see `GloVe`.

    Samples hold the row numbers of a tweet's words in the word vectors, (n, max_words) int32, 0 behind its end; `tokenize` says
    what a word is. Longer tweets are cut. The groups of samples, for `PackedKeys` and `ByKey`, are the users; there are none
    with `by_user=False`.

    Args:
        partition: how training tweets are dealt out to clients.
        path: a folder that holds `train.parquet` and `test.parquet` (or several files each, `train-*.parquet`) with the columns
            `text`, `user` and `sentiment` (0 negative, 2 neutral, 4 positive; neutral tweets are dropped). None fetches
            "stanfordnlp/sentiment140" from the Hugging Face Hub, once per machine.
        glove: the word vectors; edge-case pools of tweets must be given the same, and the model their dimension.
        min_tweets: users with fewer tweets than this take no part in training, at least 2.
        num_test: test tweets, half of them of either class, at least 2 and even. They are drawn from those of users who take no
            part in training, without those whose text is also that of a training tweet.
        by_user: whether users decide which tweets train. False takes all of the training split, with a column `user` or not,
            for a partition such as `IID`; `min_tweets` has no meaning then, and `USER` and `URL`, which stand for mentions and
            links in copies without users, are no words. All 1.6 million take half a minute of a core to encode, a gigabyte of
            memory meanwhile and 200 MB from then on.
        train_split: the name that training files begin with: `full_text` reads `full_text.parquet`. The Hub has `train` alone.
        test: where the test tweets of `by_user=False` come from. `held_out`: from the training split, of tweets whose text
            occurs once. `given`: from the split `test`; training tweets of the same text, and those that a column `in_test`
            marks, are left out.
        max_words: words per tweet, at least 1; all but 2% of tweets have at most 32.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it, the test set is not.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if files or columns are not there, labels are others, the Hub cannot be reached or
            there are too few tweets, and where a setting has no meaning beside another.

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
        min_tweets: int = FEWEST_TWEETS,
        num_test: int = 10_000,
        max_words: int = 32,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
        by_user: bool = True,
        train_split: str = "train",
        test: TestSet = "held_out",
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if min_tweets < 2:
            raise ConfigurationError(
                f"data.min_tweets must be at least 2, got {min_tweets}: test tweets are those of users with fewer; 3 is usual"
            )
        if num_test < 2 or num_test % 2:
            raise ConfigurationError(f"data.num_test must be even and at least 2, half for either class, got {num_test}")
        check_max_words("data.max_words", max_words)
        one_of("data.test", test, get_args(TestSet))
        if by_user and test != "held_out":
            raise ConfigurationError(
                f"data.test is {test}, but with data.by_user test tweets are those of users who do not train; leave it out, or "
                "set by_user: false"
            )
        if not by_user and min_tweets != FEWEST_TWEETS:
            raise ConfigurationError(
                f"data.min_tweets is {min_tweets}, but data.by_user is false, so that users do not count; leave one of them out"
            )
        if not train_split.isidentifier() or train_split == "test":
            raise ConfigurationError(
                f"data.train_split must be the name of a split of training tweets, such as train, got {train_split!r}"
            )
        if path is None and train_split != "train":
            raise ConfigurationError(
                f"data.train_split is {train_split!r}, but the Hub's is train; set data.path, or leave it out"
            )
        self.path = path
        self.glove = glove
        self.min_tweets = min_tweets
        self.num_test = num_test
        self.max_words = max_words
        self.by_user = by_user
        self.train_split = train_split
        self.test = test

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are read."""
        return (self.train_split, "test") if self.by_user or self.test == "given" else (self.train_split,)

    def prepare_data(self) -> None:
        self.glove.prepare()
        for split in self.splits:
            if self.path is None:
                hub_table(split)
            else:
                parquet_files(self.path, split)

    def load(self) -> Task:
        return self._of_users() if self.by_user else self._of_anyone()

    def _of_users(self) -> Task:
        texts, users, targets = read_tweets(self.path, self.splits)
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

    def _of_anyone(self) -> Task:
        tweets = read_texts(self.path, self.train_split)
        targets = classes(tweets)
        if self.test == "given":
            given = read_texts(self.path, "test")
            given = given.take(self._balanced(np.arange(len(given)), classes(given), "the split test has"))
            test, trains = self._samples(given.column("text"), classes(given)), unlike(tweets, given)
        else:
            origin = f"the split {self.train_split} has, of texts that occur once,"
            chosen = self._balanced(occurring_once(tweets), targets, origin)
            test, trains = self._samples(tweets.column("text").take(chosen), targets[chosen]), np.ones(len(tweets), dtype=bool)
            trains[chosen] = False
        if not trains.any():
            raise ConfigurationError(
                f"data.train_split: {self.train_split} has no tweet that is not in the test set; give more data"
            )
        return Task(self._samples(tweets.column("text").filter(trains), targets[trains]), test, num_classes=2)

    def _held_out(self, texts: np.ndarray, targets: np.ndarray, trains: np.ndarray) -> np.ndarray:
        """Positions of the test tweets, ascending."""
        known = set(texts[trains])
        others = np.array([i for i, text in enumerate(texts) if text not in known], dtype=np.int64)
        few = f"users with fewer than data.min_tweets = {self.min_tweets} tweets wrote, other than word for word in training,"
        return self._balanced(others, targets, few)

    def _balanced(self, others: np.ndarray, targets: np.ndarray, origin: str) -> np.ndarray:
        """`num_test` of the positions in `others`, ascending, half of them of either class; `origin` is for the message."""
        chosen = []
        for label in (NEGATIVE, POSITIVE):
            of_class = others[targets[others] == label]
            if len(of_class) < self.num_test // 2:
                raise ConfigurationError(
                    f"data.num_test is {self.num_test}, half of them of class {label}, but {origin} only {len(of_class)} of "
                    f"that class; use at most {2 * len(of_class)} or more data"
                )
            # The test set belongs to the data, so it does not depend on the experiment's seed.
            order = torch.randperm(len(of_class), generator=generator(0, "twitter test set", label)).numpy()
            chosen.append(of_class[order[: self.num_test // 2]])
        return np.sort(np.concatenate(chosen))

    def _samples(self, texts: Texts, targets: np.ndarray) -> TensorSamples:
        return tweet_samples(texts, torch.from_numpy(targets), self.glove, self.max_words, masked=not self.by_user)


def tokenize(text: str) -> list[str]:
    """The words of a tweet, as far as possible as GloVe's vocabulary has them.

    HTML entities are decoded; links, mentions (`@user`) and characters that are not ASCII are taken out; letters are made lower
    case. A word is then a run of letters and digits, and every other character but blanks is a word of its own, three dots in a
    row being one. Contractions are split as the Penn Treebank splits them.

    >>> tokenize("@you I can't... it's SO #cool &amp; new: http://t.co/x1")
    ['i', 'ca', "n't", '...', 'it', "'s", 'so', '#', 'cool', '&', 'new', ':']
    """
    return TOKEN.findall(NOISE.sub(" ", html.unescape(text)).lower())


def tweet_samples(texts: Texts, targets: Tensor, glove: GloVe, max_words: int, *, masked: bool = False) -> TensorSamples:
    """Tweets as samples: row numbers of their words, (n, max_words) int32, which become vectors batch by batch.

    Args:
        texts: n tweets.
        targets: (n,) classes.
        glove: the word vectors.
        max_words: words per tweet; longer ones are cut, shorter ones padded on the right.
        masked: whether `USER` and `URL` stand for mentions and links, and are taken out as these are.
    """
    rows = torch.empty(len(texts), max_words, dtype=torch.int32)
    for start in range(0, len(texts), BLOCK):
        block = (str(text) for text in texts[start : start + BLOCK])
        words = [tokenize(MASKS.sub(" ", text) if masked else text) for text in block]
        rows[start : start + BLOCK] = glove.rows(words, max_words)
    return TensorSamples(rows, targets, prepare=glove)


def check_max_words(name: str, value: int) -> None:
    """Raise `ConfigurationError` unless tweets may have at least one word."""
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}; 32 holds all but 2% of tweets")
