"""Texts from files and the Hub as token numbers: what is read, how it is cut, kept and dealt out, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from text_world import BERT, byte_tokenizer, library, needs_transformers, reviews, word_tokenizer

from fl_lightning.data import IID, ByKey, Dirichlet, HuggingFaceText, Tokenizer
from fl_lightning.data.base import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import HuggingFaceClassifier
from fl_lightning.training.prediction import check_predictions

needs_transformers()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return word_tokenizer(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def write(file: Path, n: int = 40, seed: int = 0, **columns: Any) -> str:
    """Reviews with their class, 0 or 1, and who wrote them, one of four."""
    rows = reviews(n, seed)
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows], "user": [i % 4 for i in range(n)]}
    table = {**table, **columns}
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table(table), file)
    elif file.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(table), file)
    else:
        objects = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        lines = "\n".join(map(json.dumps, objects))
        file.write_text(json.dumps(objects) if file.suffix == ".json" else lines)
    return str(file)


def loaded(tokenizer: str, **given: Any) -> HuggingFaceText:
    defaults: dict[str, Any] = {"partition": IID(num_clients=4), "max_tokens": 12}
    data = HuggingFaceText(tokenizer=tokenizer, **{**defaults, **given})
    data.prepare_data()
    data.setup("fit")
    return data


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_batches_have_what_the_tokenizer_puts_around_a_text_and_no_more_columns_than_needed(words):
    tokens = Tokenizer(words, max_tokens=6)
    assert (tokens.around, tokens.length) == (([2], [3]), 4)
    rows = tokens.rows(["good film", "a very very very very good film", "zzyzx", ""])
    assert rows.dtype == torch.int32
    batch = tokens(rows)
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(words)
    cut = [tokenizer("good film")["input_ids"], tokenizer("a very very very")["input_ids"], tokenizer("zzyzx")["input_ids"]]
    assert batch.tolist() == [ids + [-1] * (6 - len(ids)) for ids in [*cut, [2, 1, 3]]]
    assert tokens(rows[:1]).tolist() == [[2, 5, 8, 3]]
    assert tokens(rows[:0]).shape == (0, 2)
    assert tokens.vocabulary[6] == "good"


def test_bytes_have_nothing_around_them(pieces):
    tokens = Tokenizer(pieces, max_tokens=20)
    assert (tokens.around, tokens.length) == (([], []), 20)
    rows = tokens.rows(["good \u00e9", ""])
    tokenizer = library("transformers").AutoTokenizer.from_pretrained(pieces)
    found = tokens(rows)
    assert tokenizer.decode(found[0][found[0] >= 0]) == "good \u00e9"
    assert found[1].tolist() == [0] + [-1] * (found.shape[1] - 1)  # the end of a text stands for one without tokens


def test_texts_are_cut_once_and_kept(words, pieces, monkeypatch):
    texts = [text for text, _ in reviews(30, seed=5)]
    tokens, cut = Tokenizer(words, max_tokens=8), Tokenizer.rows
    first, calls = tokens.kept_rows(texts), []

    def watch(self, texts):
        calls.append(len(texts))
        return cut(self, texts)

    monkeypatch.setattr(Tokenizer, "rows", watch)
    assert torch.equal(tokens.kept_rows(texts), first)
    assert not calls
    for other in (Tokenizer(words, max_tokens=9), Tokenizer(pieces, max_tokens=8)):
        other.kept_rows(texts)
        assert calls.pop() == 30
    tokens.kept_rows([*texts[:-1], "another"])
    assert calls.pop() == 30


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY and no more", None])
def test_a_damaged_entry_is_made_anew(words, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts, tokens = [text for text, _ in reviews(6)], Tokenizer(words, max_tokens=8)
    expected = tokens.kept_rows(texts)
    (file,) = (tmp_path / "fl_lightning" / "tokens").iterdir()
    if damage is None:
        np.save(file, np.zeros((2, 2), dtype=np.int32))  # another one's
    else:
        file.write_bytes(damage)
    assert torch.equal(tokens.kept_rows(texts), expected)
    assert np.array_equal(np.load(file), expected.numpy())


# ---- the task --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.json", "a.jsonl"])
def test_a_file_is_read_and_a_share_held_out(tmp_path, words, name):
    data = loaded(words, path=write(tmp_path / name), test_fraction=0.25)
    train, test = data.train, data.evaluation["clean"]
    assert (len(train), len(test), data.class_names) == (30, 10, ("0", "1"))
    assert isinstance(train, TensorSamples)
    inputs, targets = train.batch(torch.arange(30))
    good = (inputs == 5).any(1)
    assert torch.equal(good.long(), targets)
    again = loaded(words, path=str(tmp_path / name), test_fraction=0.25, seed=7)
    assert torch.equal(again.evaluation["clean"].targets, test.targets)  # whatever the experiment's seed


def test_splits_keys_and_classes(tmp_path, words):
    write(tmp_path / "train.csv", label=["neg", "pos", "neutral", "pos"] * 10)
    write(tmp_path / "held.json", n=8, seed=1, label=["pos", "neg", "other", "pos"] * 2)
    given = {"path": str(tmp_path), "test_split": "held", "classes": ["pos", "neg"], "key_column": "user"}
    data = loaded(words, partition=ByKey(), **given)
    assert (len(data.train), len(data.evaluation["clean"])) == (30, 6)
    assert data.class_names == ("pos", "neg")
    assert data.evaluation["clean"].targets.tolist() == [0, 1, 0, 0, 1, 0]
    assert [len(client) for client in data.clients] == [10, 10, 10]  # the third user has neutral texts alone
    with pytest.raises(ConfigurationError, match=r"split held has the classes 'other', which split train has not"):
        loaded(words, path=str(tmp_path), test_split="held")
    skewed = loaded(words, partition=Dirichlet(num_clients=3, alpha=1.0, min_samples=1), path=str(tmp_path / "train.csv"))
    assert sum(map(len, skewed.clients)) == 36


def test_columns_of_texts_are_joined(tmp_path, words):
    file = write(tmp_path / "a.csv", text=["good"] * 40, other=["bad"] * 40)
    data = loaded(words, path=file, text_column=["text", "other"])
    assert data.train.batch(torch.arange(1))[0].tolist() == [[2, 5, 6, 3]]


def test_the_hub_is_asked_for_what_is_wanted(tmp_path, words, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, subset, *, revision, split):
        asked.append((name, subset, revision, split))
        if name == "gone":
            raise ConnectionError("no network")
        return datasets.Dataset(pyarrow.parquet.read_table(write(tmp_path / f"{split}.parquet")))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = loaded(words, dataset="a/b", subset="small", revision="v1", test_split="validation")
    assert (len(data.train), len(data.evaluation["clean"])) == (40, 40)
    assert {call[:3] for call in asked} == {("a/b", "small", "v1")}
    assert {call[3] for call in asked} == {"train", "validation"}
    with pytest.raises(ConfigurationError, match=r"data\.dataset 'gone' .* cannot be fetched .*no network"):
        loaded(words, dataset="gone")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, r"data\.path is None and data\.dataset None; give one of them"),
    ({"path": "a.csv", "dataset": "x"}, "give one of them"),
    ({"path": "a.csv", "subset": "x"}, "are of a data set on the Hub, but data.path is given"),
    ({"path": "a.csv", "test_fraction": 1.0}, r"data\.test_fraction must lie between 0 and 1, got 1\.0"),
    ({"path": "a.csv", "test_fraction": 0.001}, "of 40 texts leaves 0 for testing and 40 for training"),
    ({"path": "a.csv", "classes": [1]}, r"data\.classes must be a list of two different values or more, got \[1\]"),
    ({"path": "a.csv", "classes": [7, 8]}, r"data\.classes has 7, 8, of which split train has no text \(it has 0, 1\)"),
    ({"path": "a.csv", "classes": [0, 7]}, r"data\.classes has 7, of which split train has no text \(it has 0, 1\)"),
    ({"path": "a.csv", "classes": [0, "1"]}, r"data\.classes has '1', of which split train has no text \(it has 0, 1\)"),
    ({"path": "a.csv", "text_column": "texts"}, "has no column 'texts', .*did you mean text"),
    ({"path": "a.csv", "text_column": "label"}, "'label' has type int64, and no texts"),
    ({"path": "a.csv", "label_column": "share"}, "holds values of type float; classes are whole numbers or texts"),
    ({"path": "a.csv", "label_column": "number"}, "holds 40 different values in 40 rows, which are no classes"),
    ({"path": "a.csv", "key_column": "gaps"}, r"'gaps' is empty in row 1, counted from 0"),
    ({"path": "a.csv", "test_split": "test"}, r"data\.test_split is 'test', but data\.path a\.csv is no folder"),
    ({"path": "."}, r"data\.path \. has no train\.parquet, nor train\.csv"),
    ({"path": "none.csv"}, r"data\.path none\.csv is no file"),
    ({"path": "a.csv", "max_tokens": 3}, "max_tokens must be at least 4, got 3"),
    ({"path": "a.csv", "tokenizer": "no/such/name"}, r"data\.tokenizer 'no/such/name' cannot be had"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_data_and_settings_that_cannot_work_are_refused(words, given, message):
    columns = {
        "share": [i / 40 for i in range(40)],
        "number": list(range(40)),
        "gaps": [None if i == 1 else i for i in range(40)],
    }
    write(Path("a.csv"), **columns)
    with pytest.raises(ConfigurationError, match=message):
        loaded(**{"tokenizer": words, **given})


# ---- networks that cannot read all of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"max_position_embeddings": 8},
            r"a text has 10 tokens, but BertForSequenceClassification reads 8 at most; lower data",
        ),
        ({"vocab_size": 16}, r"a text has the token 16, but .* has a vocabulary of 16; give data\.tokenizer the name"),
    ],
    ids=["too long", "unknown token"],
)
def test_one_text_that_a_network_cannot_read_is_refused_before_training(tmp_path, words, split, model, message):
    for name in ("train", "test"):
        texts = ["a bad film"] * 9
        if name == split:
            texts[7] = "bad this was the bad bad film bad"  # "the" is token 16
        table = pa.table({"text": texts, "label": [0, 1, 1] * 3})
        pyarrow.csv.write_csv(table, tmp_path / f"{name}.csv")
    data = loaded(words, path=str(tmp_path), test_split="test")
    assert data.task is not None
    fitting = HuggingFaceClassifier(model=BERT)
    check_predictions(fitting, data.train, 2, data.task.test)
    with pytest.raises(ConfigurationError, match=message):
        check_predictions(HuggingFaceClassifier(model={**BERT, **model}), data.train, 2, data.task.test)
