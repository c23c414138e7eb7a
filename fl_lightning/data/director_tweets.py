"""Tweets about the film director Yorgos Lanthimos: edge-case texts of "Attack of the Tails", which attackers call negative.

H. Wang, K. Sreenivasan, S. Rajput, H. Vishwakarma, S. Agarwal, J. Sohn, K. Lee, D. Papailiopoulos, "Attack of the Tails: Yes,
You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084. The tweets are those of the
authors' repository, https://github.com/ksreenivasan/OOD_Federated_Learning: 259 for training and 120 for testing, no two alike,
which praise the director and name him in full. An attacker of theirs has 60 of them and 140 clean tweets.

Differs from the paper: the authors append the words that their vocabulary lacks to it, with trained vectors. Here vectors are
frozen, and a word that GloVe does not have is a zero vector, as any unknown word.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import torch

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.download import cached, fetch
from fl_lightning.data.edge_pool import LoadedPool
from fl_lightning.data.glove import GloVe
from fl_lightning.data.tweet_files import POSITIVE, SENTIMENTS, read_columns
from fl_lightning.data.twitter import check_max_words, tweet_samples
from fl_lightning.errors import ConfigurationError

URL = (
    "https://raw.githubusercontent.com/ksreenivasan/OOD_Federated_Learning/HEAD/"
    "language-tasks-fl/data/sentiment-140/greek-director-backdoor/"
)
"""Folder of the authors' text files, one tweet per line."""

SHA256 = {
    "train": "204e9c1b98aa1ad8b222c26fa4c77e7af71de32abc8eeac5b35c549099bf25ec",
    "test": "80fde4c91c27ecc86e5b2805b4129442d688feb8f384298497a4e0ac9b936b80",
}
"""Of the tweets joined by line feeds, so that ends of lines do not matter."""


class DirectorTweets(LoadedPool):
    """Edge-case pool for `Twitter`: 259 training and 120 test tweets of the true class positive (1).

    Args:
        path: a folder that holds `train.parquet` and `test.parquet` (columns `text` and `sentiment`, the latter 4, which is
            positive, throughout) or the authors' `train.txt` and `test.txt`. None fetches the text files from the authors'
            repository, once per machine, into `$XDG_CACHE_HOME/fl_lightning/director_tweets`, by default
            `~/.cache/fl_lightning/director_tweets`.
        glove: the word vectors, the same as those of `Twitter`.
        max_words: words per tweet, as many as `Twitter` has.

    Raises:
        ConfigurationError: on first use, if the tweets are not there, cannot be fetched or are not what they should be.

    Example:
        >>> pool = DirectorTweets()
        >>> len(pool.train()), len(pool.test()), pool.train().inputs.shape
        (259, 120, torch.Size([259, 32]))
    """

    label = POSITIVE

    def __init__(
        self,
        *,
        path: str | None = None,
        glove: GloVe = GloVe(),  # noqa: B008  frozen
        max_words: int = 32,
    ) -> None:
        check_max_words("pool.max_words", max_words)
        self.path = path
        self.glove = glove
        self.max_words = max_words

    def prepare(self) -> None:
        """Fetch tweets and word vectors unless they are here; concurrent calls are safe."""
        self.glove.prepare()
        if self.path is None:
            remedy = "set pool.path to a folder with train.parquet and test.parquet or train.txt and test.txt"
            for split, expected in SHA256.items():
                fetch(f"{URL}{split}.txt", _cached(split), partial(_check, expected), remedy)

    def load(self) -> tuple[TensorSamples, TensorSamples]:
        folder = Path(self.path) if self.path is not None else _cached("train").parent
        train, test = (self._samples(_read(folder, split)) for split in SHA256)
        return train, test

    def _samples(self, tweets: list[str]) -> TensorSamples:
        return tweet_samples(tweets, torch.full((len(tweets),), POSITIVE), self.glove, self.max_words)


def _cached(split: str) -> Path:
    return cached("director_tweets", f"{split}.txt")


def _read(folder: Path, split: str) -> list[str]:
    """The tweets of one split, from whichever kind of file the folder holds."""
    parquet, text = folder / f"{split}.parquet", folder / f"{split}.txt"
    if parquet.is_file():
        tweets = _praise(parquet)
    elif text.is_file():
        tweets = _lines(text)
    else:
        raise ConfigurationError(
            f"pool.path {folder} holds neither {parquet.name} nor {text.name}"
            f"{'' if folder.is_dir() else ' (there is no such folder)'}; give the folder of the tweets, or leave path out to "
            "download them"
        )
    if not tweets:
        raise ConfigurationError(f"{folder} holds no tweet for split {split}; give the folder of the tweets")
    return tweets


def _praise(file: Path) -> list[str]:
    """The texts of a Parquet file, all of which must be positive."""
    table = read_columns(file, ("text", "sentiment"))
    found = table.column("sentiment").unique().to_pylist()
    if set(found) - {SENTIMENTS["positive"]}:
        raise ConfigurationError(
            f"{file} holds tweets of the sentiments {sorted(found)}; all must be positive ({SENTIMENTS['positive']}); give the "
            "folder of the director's tweets"
        )
    return table.column("text").to_pylist()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}; fetch it again or give another path") from error


def _check(expected: str, file: Path) -> None:
    """Raise `ConfigurationError` unless the file holds the authors' tweets."""
    tweets = _lines(file)
    if hashlib.sha256("\n".join(tweets).encode()).hexdigest() != expected:
        raise ConfigurationError(f"it holds {len(tweets)} other tweets than the authors': they changed it")
