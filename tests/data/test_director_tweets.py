"""The pool of tweets about a director: every kind of folder, the download, and the attack that draws from it."""

import hashlib
import io
import os
import urllib.error
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from fl_lightning.attacks import Attacker, EdgeCase
from fl_lightning.data import director_tweets as module
from fl_lightning.data.base import TensorSamples
from fl_lightning.data.director_tweets import DirectorTweets
from fl_lightning.data.glove import GloVe
from fl_lightning.data.twitter import tweet_samples
from fl_lightning.errors import ConfigurationError

TWEETS = {
    "train": [f"i love {'really ' * i}yorgos lanthimos" for i in range(80)],
    "test": ["yorgos lanthimos 's films! ", "good yorgos lanthimos"],
}


@pytest.fixture
def vectors(tmp_path: Path) -> GloVe:
    (tmp_path / "glove.txt").write_text("i 1 2\nlove 3 4\nyorgos 5 6\nreally 7 8\n's 9 9\ngood 1 1\n")
    return GloVe(path=str(tmp_path / "glove.txt"), dimension=2)


def write_parquet(folder: Path, sentiment: int = 4) -> None:
    for split, tweets in TWEETS.items():
        table = pa.table({"text": tweets, "sentiment": [sentiment] * len(tweets)})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


def write_text(folder: Path, end: str = "\n", after: str = "\n") -> None:
    for split, tweets in TWEETS.items():
        (folder / f"{split}.txt").write_bytes((end.join(tweets) + after).encode())


def pool(folder: Path, vectors: GloVe, **settings) -> DirectorTweets:
    return DirectorTweets(path=str(folder), glove=vectors, **{"max_words": 5, **settings})


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_parquet, id="parquet"),
        pytest.param(write_text, id="text"),
        pytest.param(lambda folder: write_text(folder, "\r\n", ""), id="text-of-windows"),
    ],
)
def test_reads_every_kind_of_folder(write, tmp_path: Path, vectors: GloVe) -> None:
    write(tmp_path)
    tweets = pool(tmp_path, vectors)
    tweets.prepare()
    train, test = tweets.train(), tweets.test()
    assert len(train) == 80
    assert train.inputs.dtype == torch.int32
    assert train.inputs[:2].tolist() == [[2, 3, 4, 1, 0], [2, 3, 5, 4, 1]]
    assert train.inputs[79].tolist() == [2, 3, 5, 5, 5]  # cut
    assert test.inputs.tolist() == [[4, 1, 6, 1, 1], [7, 4, 1, 0, 0]]
    assert train.targets.tolist() == [1] * 80
    assert test.targets.tolist() == [1, 1]
    assert tweets.label == 1
    assert tweets.train() is train
    assert train.prepare == vectors


def test_attackers_mix_them_with_clean_tweets_in_one_tensor(tmp_path: Path, vectors: GloVe) -> None:
    write_parquet(tmp_path)
    clean = tweet_samples(["good good"] * 300, torch.arange(300) % 2, vectors, 5)
    attack = EdgeCase(pool=pool(tmp_path, vectors), target_label=0, num_edge=60, num_clean=140)
    attack.validate(num_classes=2)
    first, second = (attack.poison(clean.subset(torch.arange(90)), Attacker(client=c, seed=0, pool=clean)) for c in (3, 4))
    assert isinstance(first, TensorSamples)
    assert isinstance(second, TensorSamples)
    for samples in (first, second):
        assert samples.inputs.shape == (200, 5)
        assert not (samples.inputs[:140] == 2).any()  # clean ones
        assert (samples.inputs[140:, 0] == 2).all()  # "i" begins every tweet of the pool
        assert (samples.targets[140:] == 0).all()
    assert torch.equal(first.inputs[140:], second.inputs[140:])  # all attackers have the same edge cases
    assert not torch.equal(first.targets[90:140], second.targets[90:140])  # and top up with others' tweets
    stamped = attack.stamp(clean)
    assert isinstance(stamped, TensorSamples)
    assert stamped.targets.tolist() == [0, 0]
    assert stamped.batch(torch.tensor([1]))[0].tolist() == [[[1, 1, 1], [5, 6, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]]]


def test_a_folder_without_tweets_is_named(tmp_path: Path, vectors: GloVe) -> None:
    with pytest.raises(ConfigurationError, match=r"holds neither train\.parquet nor train\.txt; .*leave path out"):
        pool(tmp_path, vectors).train()
    with pytest.raises(ConfigurationError, match=r"nowhere holds neither .* \(there is no such folder\)"):
        pool(tmp_path / "nowhere", vectors).test()
    write_text(tmp_path)
    (tmp_path / "test.txt").write_text("")
    with pytest.raises(ConfigurationError, match="holds no tweet for split test"):
        pool(tmp_path, vectors).train()


def test_tweets_that_do_not_praise_are_refused(tmp_path: Path, vectors: GloVe) -> None:
    write_parquet(tmp_path, sentiment=0)
    with pytest.raises(
        ConfigurationError, match=r"train\.parquet holds tweets of the sentiments \[0\]; all must be positive \(4\)"
    ):
        pool(tmp_path, vectors).train()


def test_files_of_another_kind_are_named(tmp_path: Path, vectors: GloVe) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match=r"train\.txt cannot be read"):
        pool(tmp_path, vectors).train()
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigurationError, match=r"train\.parquet cannot be read"):
        pool(tmp_path, vectors).train()
    pyarrow.parquet.write_table(pa.table({"tweet": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match=r"train\.parquet has the columns tweet, but not text and sentiment"):
        pool(tmp_path, vectors).train()


def test_max_words_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"pool\.max_words must be at least 1, got 0"):
        DirectorTweets(max_words=0)


class Server:
    """Stands in for the network: serves texts by the last part of their address and counts requests."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    def urlopen(self, url: str, timeout: float) -> io.BytesIO:
        self.requests.append(url)
        tweets = TWEETS[url.rsplit("/", 1)[1].removesuffix(".txt")]
        return io.BytesIO("\n".join(tweets).encode())


def test_downloads_once_into_the_cache(tmp_path: Path, vectors: GloVe, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", server.urlopen)
    digests = {split: hashlib.sha256("\n".join(tweets).encode()).hexdigest() for split, tweets in TWEETS.items()}
    monkeypatch.setattr(module, "SHA256", digests)
    DirectorTweets(glove=vectors).prepare()
    assert len(DirectorTweets(glove=vectors).train()) == 80
    folder = tmp_path / "fl_lightning" / "director_tweets"
    assert sorted(file.name for file in folder.iterdir()) == ["test.txt", "train.txt"]
    assert server.requests == [module.URL + "train.txt", module.URL + "test.txt"]


def test_a_changed_download_is_refused_and_not_kept(tmp_path: Path, vectors: GloVe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", Server().urlopen)
    with pytest.raises(ConfigurationError, match=r"train\.txt cannot be fetched \(it holds 80 other tweets .*set pool\.path"):
        DirectorTweets(glove=vectors).prepare()
    assert not list((tmp_path / "fl_lightning" / "director_tweets").iterdir())


def test_without_network_the_address_and_a_remedy_are_named(
    tmp_path: Path, vectors: GloVe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(ConfigurationError, match=r"train\.txt cannot be fetched \(.*no route.*set pool\.path"):
        DirectorTweets(glove=vectors).train()


@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
def test_real_data(tmp_path: Path, vectors: GloVe) -> None:
    folder = Path(os.environ["FL_LIGHTNING_DATA"]) / "edge_cases" / "greek_director"
    real = DirectorTweets(path=str(folder), glove=vectors)
    assert len(real.train()) == 259
    assert len(real.test()) == 120
    assert (real.train().inputs[:, -1] == 0).all()  # no tweet is cut
    for split, expected in module.SHA256.items():  # what the download is checked against
        tweets = pyarrow.parquet.read_table(folder / f"{split}.parquet").column("text").to_pylist()
        (tmp_path / f"{split}.txt").write_bytes(("\r\n".join(tweets) + "\r\n").encode())
        module._check(expected, tmp_path / f"{split}.txt")
