"""Shakespeare: LEAF's JSON and the Hub's Parquet, symbols, which samples are held out, and what is refused."""

import json
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from texts_on_disk import shakespeare_table, windows, write_leaf, write_shakespeare

from fl_lightning.data import ByKey, PackedKeys, Shakespeare, TensorSamples, Tokens
from fl_lightning.data.shakespeare import SYMBOLS, VOCABULARY, every_window, symbols
from fl_lightning.errors import ConfigurationError


def task_of(data: Shakespeare) -> Any:
    return data.task


def parts(data: Shakespeare) -> tuple[TensorSamples, TensorSamples]:
    data.prepare_data()
    data.setup("fit")
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    return train, test


def text(rows: torch.Tensor) -> str:
    return "".join(VOCABULARY.tokens[row] for row in rows.tolist())


def test_there_are_eighty_symbols_in_the_order_of_their_codes_and_one_for_others():
    assert len(SYMBOLS) == 80
    assert list(SYMBOLS) == sorted(set(SYMBOLS))
    assert symbols(["a}\n", "é{\u2019"], 3, "here").tolist() == [[53, 79, 0], [80, 80, 80]]
    assert symbols(["\x7f\U0001f600"], 2, "here").tolist() == [[80, 80]]
    assert len(VOCABULARY.tokens) == 81


def test_reads_leafs_files_and_every_role_is_a_client(tmp_path):
    data = Shakespeare(ByKey(), path=str(write_shakespeare(tmp_path, roles=3, train=9, test=4)))
    train, test = parts(data)
    assert data.sizes.tolist() == [9, 9, 9]
    assert len(test) == 12
    inputs, targets = train.batch(torch.arange(27))
    assert (inputs.dtype, targets.dtype, inputs.shape) == (torch.int64, torch.int64, (27, 80))
    x, y = windows(1, 9)
    assert [text(row) for row in inputs[9:18]] == x
    assert [VOCABULARY.tokens[int(label)] for label in targets[9:18]] == y
    assert task_of(data).test_keys.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_at_every_position_each_symbol_is_a_target_once(tmp_path):
    data = Shakespeare(ByKey(), path=str(write_shakespeare(tmp_path, roles=2, train=170, test=3)), positions="every")
    train, test = parts(data)
    assert data.outcome == Tokens()
    assert (len(train), len(test)) == (6, 2)  # windows 0, 80 and 160 of each role
    inputs, targets = train.batch(data.clients[1])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    x, y = windows(1, 170)
    assert "".join(map(text, targets)) == (x[0] + x[80] + x[160])[1:] + y[160]


def test_the_last_samples_of_each_role_are_held_out_of_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(shakespeare_table({"LEAR": 20, "FOOL": 1}), tmp_path / "data" / "train-00000-of-00002.parquet")
    pq.write_table(shakespeare_table({"KENT": 8}), tmp_path / "data" / "train-00001-of-00002.parquet")
    data = Shakespeare(ByKey(), path=str(tmp_path), test_fraction=0.25)
    _, test = parts(data)
    assert data.sizes.tolist() == [1, 6, 15]  # fool, Kent, Lear
    x, _ = windows(0, 20)
    assert [text(row) for row in test.batch(torch.arange(5))[0]] == x[15:]
    assert task_of(data).test_keys.tolist() == [2] * 5 + [1] * 2
    usual = Shakespeare(ByKey(), path=str(tmp_path), min_samples=2)
    assert [len(part) for part in parts(usual)] == [18 + 7, 3]
    assert usual.sizes.tolist() == [7, 18]


def test_roles_are_packed_whole(tmp_path):
    data = Shakespeare(PackedKeys(num_clients=2), path=str(write_shakespeare(tmp_path, roles=4, train=5, test=1)))
    parts(data)
    assert data.sizes.tolist() == [10, 10]


def test_windows_are_chosen_role_by_role():
    roles = ["b"] * 81 + ["a"] * 2 + ["b"] * 80
    assert np.flatnonzero(every_window(roles)).tolist() == [0, 80, 81, 162]


def one_role(x, y):
    return {"role": {"x": x, "y": y}}


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (one_role(["a" * 79], ["b"]), r"user 'role', x: sample 0 has 79 characters, but there must be 80"),
        (one_role(["a" * 80], ["bc"]), r"user 'role', y: sample 0 has 2 characters, but there must be 1"),
        (one_role(["a" * 80], [3]), "y must hold texts"),
        (one_role([5], ["b"]), r"x: sample 0 has 5, but there must be 80"),
        ({}, "hold no samples"),
    ],
)
def test_damaged_files_of_leafs_are_refused(tmp_path, users, message):
    write_leaf(tmp_path, "train", users)
    write_leaf(tmp_path, "test", one_role(["a" * 80], ["b"]))
    with pytest.raises(ConfigurationError, match=message):
        Shakespeare(ByKey(), path=str(tmp_path)).setup("fit")


def test_what_cannot_work_is_refused(tmp_path):
    settings: Any = ({"positions": "all"}, {"min_samples": 0}, {"test_fraction": 1.0})
    for wrong in settings:
        with pytest.raises(ConfigurationError, match=rf"data\.{next(iter(wrong))}"):
            Shakespeare(ByKey(), **wrong)
    with pytest.raises(ConfigurationError, match=r"holds no train.parquet"):
        Shakespeare(ByKey(), path=str(tmp_path)).prepare_data()
    pq.write_table(shakespeare_table({"LEAR": 2}).rename_columns(["role", "x", "y"]), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match=r"has the columns .*role.*; it must have character_id, x and y|must have"):
        Shakespeare(ByKey(), path=str(tmp_path)).load()
    pq.write_table(shakespeare_table({"LEAR": 2}), tmp_path / "train.parquet")
    with pytest.raises(ConfigurationError, match=r"no role has samples enough to hold one out"):
        Shakespeare(ByKey(), path=str(tmp_path)).load()
    with pytest.raises(ConfigurationError, match=r"min_samples is 50, but no role has more than 1 samples"):
        Shakespeare(ByKey(), path=str(tmp_path), min_samples=50, test_fraction=0.5).load()
    write_shakespeare(tmp_path / "leaf", roles=1)
    with pytest.raises(ConfigurationError, match=r"test_fraction = 0.5, but LEAF's files .* are split already"):
        Shakespeare(ByKey(), path=str(tmp_path / "leaf"), test_fraction=0.5).prepare_data()
    (tmp_path / "leaf" / "test" / "all_data_niid_0_keep_0.json").unlink()
    with pytest.raises(ConfigurationError, match=r"holds no test/\*.json"):
        Shakespeare(ByKey(), path=str(tmp_path / "leaf")).prepare_data()


def test_the_hub_is_asked_for_the_one_split_that_there_is(monkeypatch):
    asked = []

    def table(name, split):
        asked.append((name, split))
        return shakespeare_table({"LEAR": 20})

    monkeypatch.setattr("fl_lightning.data.shakespeare.hub_table", table)
    assert [len(part) for part in parts(Shakespeare(ByKey()))] == [18, 2]
    assert asked == [("flwrlabs/shakespeare", "train")] * 2


def test_leafs_files_may_hold_users_without_samples(tmp_path):
    write_leaf(tmp_path, "train", one_role(["a" * 80], ["b"]) | {"silent": {"x": [], "y": []}})
    write_leaf(tmp_path, "test", one_role(["a" * 80], ["b"]) | {"stranger": {"x": ["c" * 80], "y": ["d"]}})
    data = Shakespeare(ByKey(), path=str(tmp_path))
    assert [len(part) for part in parts(data)] == [1, 1]  # one that only the test files know takes no part
    assert json.loads((tmp_path / "test" / "all_data_niid_0_keep_0.json").read_text())["users"] == ["role", "stranger"]
