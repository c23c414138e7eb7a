"""Twitter: words of tweets, who trains and who is tested on, and every way in which files may be wrong."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.glove import GloVe
from fl_lightning.data.partition import IID, ByKey, PackedKeys, Partition
from fl_lightning.data.tweet_files import HUB_REVISION, read_tweets
from fl_lightning.data.twitter import Twitter, tokenize
from fl_lightning.errors import ConfigurationError

Tweet = tuple[str, str, int]
"""Text, user and sentiment."""

ANN = [("Good day", "ann", 4), ("bad @bob day", "ann", 0), ("so so", "ann", 2), ("a good day http://x.y/z", "ann", 4)]
BOB = [("day!", "bob", 0), ("day day day day day day", "bob", 4), ("", "bob", 0)]
OTHERS = [
    ("what a day", "cat", 4),
    ("Good day", "dan", 4),  # ann's words: no test tweet
    ("no day", "cat", 0),
    ("bad day", "eve", 0),
    ("day off", "fay", 4),
    ("neutral", "gus", 2),
]


def write(folder: Path, train: list[Tweet], test: list[Tweet]) -> None:
    folder.mkdir(exist_ok=True)
    for split, tweets in (("train", train), ("test", test)):
        texts, users, sentiments = zip(*tweets, strict=True) if tweets else ((), (), ())
        columns = {
            "text": pa.array(texts, pa.string()),
            "date": pa.array([""] * len(tweets), pa.string()),
            "user": pa.array(users, pa.string()),
            "sentiment": pa.array(sentiments, pa.int32()),
        }
        pyarrow.parquet.write_table(pa.table(columns), folder / f"{split}.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "tweets", ANN[:3] + OTHERS[:3] + BOB, [ANN[3], *OTHERS[3:]])
    (tmp_path / "glove.txt").write_text("day 1 2\ngood 3 4\nbad 5 6\n! 7 8\na 9 9\nwhat 1 1\nno 1 1\noff 1 1\n")
    return tmp_path / "tweets"


def twitter(folder: Path, partition: Partition | None = None, **changes) -> Twitter:
    glove = GloVe(path=str(folder.parent / "glove.txt"), dimension=2)
    defaults: dict[str, Any] = {"path": str(folder), "glove": glove, "num_test": 4, "max_words": 5}
    return Twitter(partition or ByKey(), **{**defaults, **changes})


def loaded(folder: Path, partition: Partition | None = None, **changes) -> Twitter:
    data = twitter(folder, partition, **changes)
    data.prepare_data()
    data.setup("fit")
    return data


def number_words(file: Path, count: int) -> GloVe:
    """Vectors for the words w0, w1, ..., of which wi has row 2 + i."""
    file.write_text("".join(f"w{i} {i} 0\n" for i in range(count)))
    return GloVe(path=str(file), dimension=2)


def inputs(samples) -> torch.Tensor:
    assert isinstance(samples, TensorSamples)
    return samples.inputs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("I can't, don't & WON'T", ["i", "ca", "n't", ",", "do", "n't", "&", "wo", "n't"]),
        ("it's I'm you're I've he'd we'll", ["it", "'s", "i", "'m", "you", "'re", "i", "'ve", "he", "'d", "we", "'ll"]),
        ("rock'n'roll o'clock '09", ["rock", "'", "n", "'", "roll", "o", "'", "clock", "'", "09"]),
        ("@a_1: thx @B", [":", "thx"]),
        ("see http://t.co/aB?c=1 or HTTPS://x.y, www.z.com now", ["see", "or", "now"]),
        ("awww.so cute", ["awww", ".", "so", "cute"]),
        ("caf\u00e9 \u2665 na\u00efve\u00a0x", ["caf", "na", "ve", "x"]),
        ("&lt;3 tom &amp; jerry &quot;hi&quot; &#39;s", ["<", "3", "tom", "&", "jerry", '"', "hi", '"', "'s"]),
        ("well... so....! ..", ["well", "...", "so", "...", ".", "!", ".", "."]),
        ("#fail\n\t$5", ["#", "fail", "$", "5"]),
        ("@only http://links", []),
        ("", []),
    ],
)
def test_tokenize(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("abnstIT3'.@&#;/:w \n\u00e9\u2665"), max_size=40) | st.text(max_size=40))
def test_words_are_lower_case_ascii_and_words_of_themselves(text: str) -> None:
    words = tokenize(text)
    for word in words:
        assert word
        assert word.isascii()
        assert word == word.lower()
        assert not any(character.isspace() for character in word)
    assert tokenize(" ".join(words)) == words


def test_users_with_enough_tweets_train_and_others_are_tested_on(folder: Path) -> None:
    data = loaded(folder)
    assert data.task is not None
    assert data.task.num_classes == 2
    # Neutral tweets do not count: ann has three tweets without hers. Both files are read, the training file first.
    assert inputs(data.train).tolist() == [
        [3, 2, 0, 0, 0],
        [4, 2, 0, 0, 0],
        [2, 5, 0, 0, 0],
        [2, 2, 2, 2, 2],
        [0, 0, 0, 0, 0],
        [6, 3, 2, 0, 0],
    ]
    assert data.train.targets.tolist() == [1, 0, 0, 1, 0, 1]
    assert [client.tolist() for client in data.clients] == [[0, 1, 5], [2, 3, 4]]
    assert inputs(data.evaluation["clean"]).tolist() == [[7, 6, 2, 0, 0], [8, 2, 0, 0, 0], [4, 2, 0, 0, 0], [2, 9, 0, 0, 0]]
    assert data.evaluation["clean"].targets.tolist() == [1, 0, 0, 1]


def test_batches_are_vectors_with_a_mark_for_words(folder: Path) -> None:
    vectors, targets = loaded(folder).train.batch(torch.tensor([1, 4]))
    assert vectors.tolist() == [[[5, 6, 1], [1, 2, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0]] * 5]
    assert targets.tolist() == [0, 0]


def test_min_tweets_decides_who_trains(folder: Path) -> None:
    data = loaded(folder, min_tweets=2, num_test=2)
    assert len(data.train) == 8  # cat as well
    assert len(data.clients) == 3


def test_the_seed_deals_users_out_but_does_not_choose_the_test_set(folder: Path) -> None:
    many = [(f"day {i} {j}", f"user{i}", 4 * (j % 2)) for i in range(20) for j in range(3)]
    few = [(f"w{i}", f"rare{i}", 4 * (i % 2)) for i in range(40)]
    write(folder, many, few)
    vectors = number_words(folder.parent / "numbers.txt", 40)
    first, second = (loaded(folder, PackedKeys(num_clients=4), seed=seed, glove=vectors, num_test=10) for seed in (0, 1))
    rows = inputs(first.evaluation["clean"])
    assert rows.unique(dim=0).shape == (10, 5)
    assert torch.equal(rows, inputs(second.evaluation["clean"]))
    assert not torch.equal(rows[:, 0], torch.arange(2, 12))  # nor are the first ones taken
    assert [part.tolist() for part in first.clients] != [part.tolist() for part in second.clients]
    assert [len(part) for part in first.clients] == [15] * 4


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    owners=st.lists(st.integers(0, 25), min_size=40, max_size=80),
    sentiments=st.lists(st.sampled_from([0, 2, 4]), min_size=80, max_size=80),
    min_tweets=st.integers(2, 5),
    cut=st.integers(0, 40),
)
def test_no_test_tweet_is_of_a_user_or_text_in_training(
    folder: Path, owners: list[int], sentiments: list[int], min_tweets: int, cut: int
) -> None:
    # The text says who wrote it, and some texts occur twice; every one is unknown but for its number, which GloVe then holds.
    tweets = [
        (f"w{i // 2 if i % 10 == 1 else i}", f"u{owner}", s)
        for i, (owner, s) in enumerate(zip(owners, sentiments, strict=False))
    ]
    write(folder, tweets[cut:], tweets[:cut])
    vectors = number_words(folder.parent / "numbers.txt", 80)
    data = twitter(folder, min_tweets=min_tweets, num_test=2, glove=vectors)
    kept = [(int(text[1:]), user, s // 4) for text, user, s in tweets[cut:] + tweets[:cut] if s != 2]
    counts = {user: sum(other == user for _, other, _ in kept) for _, user, _ in kept}
    train = [(number, label) for number, user, label in kept if counts[user] >= min_tweets]
    free = [(number, label) for number, user, label in kept if counts[user] < min_tweets]
    known = {number for number, _ in train}
    free = [(number, label) for number, label in free if number not in known]
    if not train or {label for _, label in free} != {0, 1}:
        with pytest.raises(ConfigurationError):
            data.load()
        return
    task = data.load()
    found = [
        (row - 2, label) for row, label in zip(inputs(task.train)[:, 0].tolist(), task.train.targets.tolist(), strict=True)
    ]
    assert found == train
    tested = [(row - 2, label) for row, label in zip(inputs(task.test)[:, 0].tolist(), task.test.targets.tolist(), strict=True)]
    assert set(tested) <= set(free)
    assert sorted(label for _, label in tested) == [0, 1]


def test_a_folder_or_file_that_is_missing_is_named_before_training(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere holds no train\.parquet.*no such folder.*leave path out"):
        twitter(folder, path=str(folder / "nowhere")).prepare_data()
    (folder / "test.parquet").unlink()
    with pytest.raises(ConfigurationError, match=r"holds no test\.parquet"):
        twitter(folder).prepare_data()
    with pytest.raises(ConfigurationError, match=r"glove\.path .*none\.txt is no file"):
        twitter(folder, glove=GloVe(path="none.txt")).prepare_data()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "sentiment": [0]}, r"columns text, sentiment, but not user; .* text, user, sentiment"),
        ({"tweet": ["a"], "user": ["u"], "label": [0]}, "but not text and sentiment"),
        ({"text": ["a"], "user": [7], "sentiment": [0]}, "the column user has type int64; it must be string"),
        ({"text": [b"a"], "user": ["u"], "sentiment": [0]}, "the column text has type binary; it must be string"),
        ({"text": ["a"], "user": ["u"], "sentiment": ["0"]}, "the column sentiment has type string; it must be int64"),
        ({"text": ["a"], "user": ["u"], "sentiment": [0.0]}, "the column sentiment has type double"),
        ({"text": ["a", None], "user": ["u", "u"], "sentiment": [0, 4]}, "text of row 1 is missing"),
        ({"text": ["a", "b"], "user": [None, "u"], "sentiment": [0, 4]}, "user of row 0 is missing"),
        ({"text": ["a", "b"], "user": ["u", "u"], "sentiment": [0, None]}, "sentiment of row 1 is missing"),
        ({"text": ["a", "b"], "user": ["u", "u"], "sentiment": [0, 1]}, r"holds \[1\]; it may hold 0 .*, 2 .* and 4"),
    ],
)
def test_columns_that_cannot_work_are_named(folder: Path, columns: dict, message: str) -> None:
    pyarrow.parquet.write_table(pa.table(columns), folder / "test.parquet")
    with pytest.raises(ConfigurationError, match=rf"test\.parquet.*{message}"):
        read_tweets(str(folder))


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigurationError, match=r"train\.parquet cannot be read"):
        read_tweets(str(folder))


def test_files_of_several_types_and_shards_are_one_table(folder: Path) -> None:
    table = pyarrow.parquet.read_table(folder / "train.parquet")
    (folder / "train.parquet").unlink()
    large = pa.schema([("text", pa.large_string()), ("user", pa.large_string()), ("sentiment", pa.int8())])
    pyarrow.parquet.write_table(table.slice(0, 4), folder / "train-00000-of-00002.parquet")
    pyarrow.parquet.write_table(
        table.select(["text", "user", "sentiment"]).slice(4).cast(large), folder / "train-00001-of-00002.parquet"
    )
    texts, users, targets = read_tweets(str(folder))
    expected = [tweet for tweet in [*ANN[:3], *OTHERS[:3], *BOB, ANN[3], *OTHERS[3:]] if tweet[2] != 2]
    assert texts.tolist() == [text for text, _, _ in expected]
    assert targets.tolist() == [sentiment // 4 for _, _, sentiment in expected]
    names = [user for _, user, _ in expected]
    assert users.tolist() == [list(dict.fromkeys(names)).index(name) for name in names]


def test_too_few_tweets_are_refused_with_a_remedy(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"num_test is 6, half of them of class 0, but .* only 2 of that class; use at most 4"
    ):
        twitter(folder, num_test=6).load()
    with pytest.raises(ConfigurationError, match=r"min_tweets is 4, but no user has more than 3 tweets; use a lower one"):
        twitter(folder, min_tweets=4).load()
    write(folder, [], [])
    with pytest.raises(ConfigurationError, match="no user has more than 0 tweets"):
        twitter(folder).load()
    write(folder, ANN + BOB, OTHERS)
    with pytest.raises(ConfigurationError, match="only 2 distinct keys"):
        loaded(folder, PackedKeys(num_clients=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_tweets": 1}, r"data\.min_tweets must be at least 2, got 1"),
        ({"num_test": 0}, r"data\.num_test must be even and at least 2, .* got 0"),
        ({"num_test": 7}, r"data\.num_test must be even .* got 7"),
        ({"max_words": 0}, r"data\.max_words must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Twitter(IID(num_clients=2), **settings)


def test_reads_the_data_set_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, revision: str, split: str) -> datasets.Dataset:
        assert (name, revision) == ("stanfordnlp/sentiment140", HUB_REVISION)
        return datasets.Dataset(pyarrow.parquet.read_table(folder / f"{split}.parquet"))

    monkeypatch.setattr("datasets.load_dataset", load)
    hub, local = read_tweets(None), read_tweets(str(folder))
    assert all(np.array_equal(a, b) for a, b in zip(hub, local, strict=True))


def test_unreachable_hub_is_an_error_with_a_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ConfigurationError, match=r"stanfordnlp/sentiment140 cannot be fetched .*no route.*set data\.path"):
        twitter(folder, path=None).prepare_data()


@pytest.mark.slow
@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_data() -> None:
    root = Path(os.environ["FL_LIGHTNING_DATA"])
    vectors = GloVe(path=str(root / "glove" / "glove.6B.50d.subset.txt.gz"), dimension=50)
    data = Twitter(PackedKeys(num_clients=100), path=str(root / "sent140"), glove=vectors)
    data.prepare_data()
    data.setup("fit")
    assert data.task is not None
    assert data.task.keys is not None
    assert (len(data.train), len(data.task.keys.unique())) == (8926, 2233)
    assert data.task.test.targets.bincount().tolist() == [5000, 5000]
    assert data.sizes.max() - data.sizes.min() <= 3
    rows = inputs(data.train)
    words = (rows != 0).sum()
    assert 0.86 < ((rows > 1).sum() / words).item() < 0.89  # what the vocabulary of the 10,361 most frequent words covers
    assert rows[:, -1].count_nonzero() / len(rows) < 0.04  # hardly any tweet has 32 words or more
