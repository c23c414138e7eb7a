"""The next word: LEAF's Reddit, JSON lines and Parquet, the vocabulary, sequences, and what is refused."""

import json
from typing import Any

import pytest
import torch
from texts_on_disk import texts, write_leaf, write_lines, write_reddit, write_table

from fl_lightning.data import ByKey, NextWord, TensorSamples, Tokens
from fl_lightning.data.next_word import sequences
from fl_lightning.data.vocabulary import PADDING, UNKNOWN, Vocabulary
from fl_lightning.errors import ConfigurationError

TEXTS = [
    {"author": "bo", "text": "To be, or not to be"},
    {"author": "al", "text": "to be is to do"},
    {"author": "bo", "text": "be"},
    {"author": "al", "text": "to do is to be"},
]


def task_of(data: NextWord) -> Any:
    return data.task


def parts(data: NextWord) -> tuple[TensorSamples, TensorSamples]:
    data.prepare_data()
    data.setup("fit")
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    return train, test


def words(data: NextWord, rows: torch.Tensor) -> list[list[str]]:
    return [[data.class_names[number] for number in row] for row in rows.tolist()]


def test_texts_become_sequences_and_each_word_but_the_first_is_a_target_once(tmp_path):
    write_lines(tmp_path / "train.jsonl", TEXTS)
    write_lines(tmp_path / "test.jsonl", TEXTS[:1])
    data = NextWord(ByKey(), path=str(tmp_path), num_words=3, max_words=4)
    train, _ = parts(data)
    assert data.class_names == ("<pad>", "<unk>", "to", "be", "do")  # six, five, two: before "is" by the alphabet
    inputs, targets = train.batch(data.clients[1])  # bo, whose single word has nothing to follow
    assert words(data, inputs) == [["to", "be", "<unk>", "<unk>"], ["<unk>", "to", "<pad>", "<pad>"]]
    assert words(data, targets) == [["be", "<pad>", "<pad>", "<pad>"], ["to", "be", "<pad>", "<pad>"]]
    assert (task_of(data).num_classes, data.outcome) == (5, Tokens(padding=0, perplexity=True))
    assert (inputs.dtype, targets.dtype) == (torch.int64, torch.int64)


def test_lines_may_begin_with_a_byte_order_mark(tmp_path):
    for name, encoding in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        write_lines(file := tmp_path / name / "train.jsonl", texts(authors=3, n=8))
        file.write_text(file.read_text(), encoding=encoding)
    plain, marked = (parts(NextWord(ByKey(), path=str(tmp_path / name), num_words=50)) for name in ("plain", "marked"))
    assert torch.equal(plain[0].inputs, marked[0].inputs)


def test_pieces_are_cut_behind_every_lth_word():
    made = list(sequences("a", list("abcdefg"), 3))
    assert [(x, y) for _, x, y in made] == [(["a", "b", "c"], ["b", "c", "d"]), (["d", "e", "f"], ["e", "f", "g"])]
    assert list(sequences("a", ["a"], 3)) == list(sequences("a", [], 3)) == []


def test_without_files_for_testing_the_last_texts_of_each_author_are_held_out(tmp_path):
    entries = texts(authors=3, n=8)
    write_table(tmp_path / "train.parquet", entries)
    data = NextWord(ByKey(), path=str(tmp_path), num_words=50, max_words=40, test_fraction=0.25)
    train, test = parts(data)
    assert (len(train), len(test)) == (18, 6)
    assert task_of(data).test_keys.tolist() == [0, 0, 1, 1, 2, 2]
    write_lines(tmp_path / "train.jsonl", entries)  # the same texts as lines
    again = NextWord(ByKey(), path=str(tmp_path), num_words=50, max_words=40, test_fraction=0.25)
    assert torch.equal(parts(again)[0].inputs, train.inputs)
    assert again.class_names == data.class_names


def test_reads_leafs_reddit(tmp_path):
    one = {
        "x": [[["<BOS>", "so", "good", "<UNK>"], ["bread", "<EOS>", "<PAD>", "<PAD>"]]],
        "y": [{"target_tokens": [["so", "good", "<UNK>", "bread"], ["<EOS>", "<PAD>", "<PAD>", "<PAD>"]], "score": 1}],
    }
    write_leaf(tmp_path, "train", {"ann": one})
    write_leaf(tmp_path, "test", {"ann": one, "stranger": one})
    data = NextWord(ByKey(), path=str(tmp_path), num_words=10, max_words=3)
    train, test = parts(data)
    inputs, targets = train.batch(torch.arange(3))
    assert words(data, inputs) == [["<BOS>", "so", "good"], ["<unk>", "<pad>", "<pad>"], ["bread", "<pad>", "<pad>"]]
    assert words(data, targets) == [["so", "good", "<pad>"], ["bread", "<pad>", "<pad>"], ["<EOS>", "<pad>", "<pad>"]]
    assert task_of(data).test_keys.tolist() == [0, 0, 0, -1, -1, -1]
    assert len(test) == 6


def test_every_author_of_leafs_is_a_client(tmp_path):
    data = NextWord(ByKey(), path=str(write_reddit(tmp_path, authors=4)), num_words=5)
    parts(data)
    assert len(data.clients) == 4


def test_a_vocabulary_without_padding_fills_up_with_unknown_tokens():
    assert Vocabulary(("a", "?"), unknown=1).rows([["a", "z"]], 3).tolist() == [[0, 1, 1]]
    assert (PADDING, UNKNOWN) == (0, 1)


LEAF = [
    ({"x": [["a", "b"]], "y": [{"target_tokens": [["b"]]}]}, "x of sample 0 must be a list of sequences of words"),
    ({"x": [[["a", "b"]]], "y": [{"target_tokens": [["b"]]}]}, "target_tokens in y as many of the same lengths"),
    ({"x": [[["a", 3]]], "y": [{"target_tokens": [["b", "c"]]}]}, "x of sample 0 must be"),
    ({"x": [[["a"]]], "y": [{}]}, "x of sample 0 must be"),
    ({"x": [[["a"]]], "y": [3]}, "y must hold objects"),
]


@pytest.mark.parametrize(("user", "message"), LEAF)
def test_damaged_files_of_leafs_are_refused(tmp_path, user, message):
    for split in ("train", "test"):
        write_leaf(tmp_path, split, {"ann": user})
    with pytest.raises(ConfigurationError, match=message):
        NextWord(ByKey(), path=str(tmp_path)).setup("fit")


def test_damaged_lines_are_refused(tmp_path):
    for line, message in (
        ("{", r"train.jsonl cannot be read"),
        ("[]", r"line 2: author is None and text None; both must be texts"),
        (json.dumps({"author": 3, "text": "a"}), "author is 3"),
        ("[" * 100_000, "cannot be read"),
    ):
        (tmp_path / "train.jsonl").write_text(json.dumps(TEXTS[0]) + "\n" + line)
        with pytest.raises(ConfigurationError, match=message):
            NextWord(ByKey(), path=str(tmp_path)).load()
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        NextWord(ByKey(), path=str(tmp_path)).load()


def test_what_cannot_work_is_refused(tmp_path):
    settings: Any = ({"num_words": 0}, {"max_words": 0}, {"test_fraction": 0.0})
    for wrong in settings:
        with pytest.raises(ConfigurationError, match=rf"data\.{next(iter(wrong))}"):
            NextWord(ByKey(), path="x", **wrong)
    with pytest.raises(ConfigurationError, match=r"neither LEAF's train/\*.json nor train.jsonl nor train.parquet"):
        NextWord(ByKey(), path=str(tmp_path)).prepare_data()
    write_lines(tmp_path / "train.jsonl", [{"author": name, "text": "what else"} for name in ("bo", "cy")])
    with pytest.raises(ConfigurationError, match=r"data\.test_fraction = 0\.1 of each author's texts is none in .*; raise it"):
        NextWord(ByKey(), path=str(tmp_path)).load()
    write_lines(tmp_path / "train.jsonl", TEXTS)
    write_lines(tmp_path / "test.jsonl", TEXTS)
    with pytest.raises(ConfigurationError, match=r"test_fraction = 0.5, but .* holds texts for testing"):
        NextWord(ByKey(), path=str(tmp_path), test_fraction=0.5).prepare_data()
    write_lines(tmp_path / "test.jsonl", [{"author": "bo", "text": "what else"}])
    with pytest.raises(ConfigurationError, match=r"the test texts in .* have no known word that follows another"):
        NextWord(ByKey(), path=str(tmp_path), num_words=2).load()
