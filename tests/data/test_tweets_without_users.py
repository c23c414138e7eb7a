"""Twitter with `by_user=False`: all tweets train but the test set, whoever wrote them."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fl_lightning.data import twitter as twitter_file
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.glove import GloVe
from fl_lightning.data.partition import IID, PackedKeys, Partition
from fl_lightning.data.tweet_files import HUB_REVISION
from fl_lightning.data.twitter import Twitter
from fl_lightning.errors import ConfigurationError

FULL = {
    "text": ["w0 USER", "w1 URL w2", "w3", "w4", "W5", "w6", "w7", "w7", "w8"],
    "sentiment": [4, 0, 4, 0, 4, 0, 4, 4, 2],
    "in_test": [False, False, True, False, False, False, False, False, False],
}
"""Nine tweets, the last of them neutral; one is in the test set by its mark, one by its words."""

GIVEN = {"text": ["@someone w3", "w5", "w9"], "user": ["a", "b", "c"], "sentiment": [4, 4, 0]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, table in (("full_text", FULL), ("test", GIVEN)):
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    (tmp_path / "glove.txt").write_text("".join(f"w{i} {i} 0\n" for i in range(10)) + "user 1 1\nurl 1 1\n")
    return tmp_path


def twitter(folder: Path, partition: Partition | None = None, **changes: Any) -> Twitter:
    glove = GloVe(path=str(folder / "glove.txt"), dimension=2)
    settings: dict[str, Any] = {"path": str(folder), "glove": glove, "num_test": 2, "max_words": 3}
    settings |= {"by_user": False, "train_split": "full_text", **changes}
    return Twitter(partition or IID(num_clients=2), **settings)


def words(samples: Any) -> list[list[int]]:
    """The numbers of each tweet's words."""
    assert isinstance(samples, TensorSamples)
    return [[int(row) - 2 for row in tweet if row] for tweet in samples.inputs]


def test_a_given_test_set_is_left_out_of_training_by_its_marks_and_by_its_words(folder: Path) -> None:
    pq.write_table(pa.table({**GIVEN, "text": ["W5", "w5", "w9"]}), folder / "test.parquet")
    task = twitter(folder, test="given").load()
    assert task.keys is None
    assert words(task.train) == [[0], [1, 2], [4], [6], [7], [7]]  # neither marks nor masks of mentions and links
    assert task.train.targets.tolist() == [1, 0, 0, 0, 1, 1]
    assert words(task.test) == [[5], [9]]
    assert task.test.targets.tolist() == [1, 0]


def test_without_a_column_of_marks_words_alone_decide(folder: Path) -> None:
    pq.write_table(pa.table(FULL).drop_columns("in_test"), folder / "full_text.parquet")
    pq.write_table(pa.table({**GIVEN, "text": ["w5", "W5", "w9"]}), folder / "test.parquet")
    assert words(twitter(folder, test="given").load().train) == [[0], [1, 2], [3], [4], [6], [7], [7]]


def test_a_test_set_is_held_out_of_texts_that_occur_once_and_not_by_the_seed(folder: Path) -> None:
    tweets = [f"w{i % 10} {'x ' * (i // 10)}" for i in range(100)] + ["w0 w0", "W0 w0"] * 20
    pq.write_table(pa.table({"text": tweets, "sentiment": [4 * (i % 2) for i in range(140)]}), folder / "full_text.parquet")
    (folder / "test.parquet").unlink()  # which nobody reads
    first, second = (twitter(folder, seed=seed, num_test=60, max_words=12).load() for seed in (0, 1))
    assert words(first.test) == words(second.test)
    assert words(first.train) == words(second.train)
    assert (len(first.train), first.test.targets.bincount().tolist()) == (80, [30, 30])
    tested = words(first.test)
    assert all(tweet not in words(first.train) for tweet in tested)
    assert [0, 0] not in tested


def test_all_tweets_are_dealt_out_evenly_and_blocks_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = twitter(folder, test="given")
    whole.prepare_data()
    whole.setup("fit")
    assert whole.sizes.sum() == len(whole.train)
    assert whole.sizes.max() - whole.sizes.min() <= 1
    monkeypatch.setattr(twitter_file, "BLOCK", 4)
    assert words(twitter(folder, test="given").load().train) == words(whole.train)


def test_the_hub_has_them_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, revision: str, split: str) -> datasets.Dataset:
        assert (name, revision, split) == ("stanfordnlp/sentiment140", HUB_REVISION, "train")
        return datasets.Dataset(pq.read_table(folder / "full_text.parquet"))

    monkeypatch.setattr("datasets.load_dataset", load)
    task = twitter(folder, path=None, train_split="train").load()
    assert (len(task.train), len(task.test)) == (6, 2)


def test_users_are_no_groups_then(folder: Path) -> None:
    data = twitter(folder, PackedKeys(num_clients=2), test="given")
    data.prepare_data()
    with pytest.raises(ConfigurationError, match=r"these data come without keys; .* choose another partition such as IID"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by_user": True, "test": "given"}, r"data\.test is given, but with data\.by_user .* set by_user: false"),
        ({"test": "mine"}, r"data\.test must be held_out or given, got 'mine'"),
        ({"min_tweets": 5}, r"data\.min_tweets is 5, but data\.by_user is false"),
        ({"train_split": "../other"}, r"data\.train_split must be the name of a split .*, got '\.\./other'"),
        ({"train_split": "test"}, r"data\.train_split must be the name of a split of training tweets"),
        ({"path": None}, r"data\.train_split is 'full_text', but the Hub's is train; set data\.path"),
    ],
)
def test_settings_without_a_meaning_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        twitter(folder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"by_user": True}, r"full_text\.parquet has the columns .*, but not user; .* or set data\.by_user: false"),
        ({"test": "given", "num_test": 4}, r"the split test has only 1 of that class; use at most 2"),
        ({"num_test": 8}, r"the split full_text has, of texts that occur once, only 3 of that class; use at most 6"),
    ],
)
def test_files_that_cannot_serve_are_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        twitter(folder, **changes).load()


def test_marks_must_be_true_or_false_and_something_must_be_left(folder: Path) -> None:
    pq.write_table(pa.table({**FULL, "in_test": [0] * 9}), folder / "full_text.parquet")
    with pytest.raises(ConfigurationError, match="the column in_test has type int64; it must be bool"):
        twitter(folder, test="given").load()
    pq.write_table(pa.table({**FULL, "in_test": [True] * 9}), folder / "full_text.parquet")
    with pytest.raises(ConfigurationError, match="full_text has no tweet that is not in the test set"):
        twitter(folder, test="given").load()


@pytest.mark.slow
@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_data() -> None:
    root = Path(os.environ["FL_LIGHTNING_DATA"])
    vectors = GloVe(path=str(root / "glove" / "glove.6B.50d.subset.txt.gz"), dimension=50)
    settings: dict[str, Any] = {"by_user": False, "train_split": "full_text", "test": "given"}
    data = Twitter(IID(num_clients=100), path=str(root / "sent140"), glove=vectors, **settings)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train) == 1_600_000 - 16_610
    assert data.sizes.tolist() == [15_834] * 90 + [15_833] * 10
    assert torch.equal(data.evaluation["clean"].targets.bincount(), torch.tensor([5000, 5000]))
