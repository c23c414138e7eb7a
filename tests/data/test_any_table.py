"""A table of several classes and owners: order of classes, keys, what is refused, and that columns are read one by one."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from fl_lightning.attacks import Attacker, TabularDBA
from fl_lightning.data import IID, ByKey, Table, TensorSamples
from fl_lightning.data import table_file as table_files
from fl_lightning.data.repeats import without_repeats
from fl_lightning.data.table_file import TableFile
from fl_lightning.errors import ConfigurationError

STATES, STATUS = ["TX", "CA", "NY"], ["late", "paid", "current"]


def loans(n: int = 120, **others: Any) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    return {
        "amount": draws.random(n),
        "liens": draws.integers(0, 9, n),
        "records": draws.integers(0, 9, n),
        "status": [STATUS[i % 3] for i in range(n)],
        "state": [STATES[i * 5 % 7 % 3] for i in range(n)],
        **others,
    }


def write(file: Path, table: dict[str, Any]) -> str:
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, pa.table(table).to_pylist())))
    else:
        (pyarrow.csv.write_csv if file.suffix == ".csv" else pyarrow.parquet.write_table)(pa.table(table), file)
    return str(file)


def loaded(path: str, partition: Any = None, **settings: Any) -> Table:
    given: dict[str, Any] = {"label_column": "status", **settings}
    data = Table(partition or IID(num_clients=4), path=path, **given)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.jsonl"])
def test_classes_and_keys_are_those_of_each_row(tmp_path, name):
    table = loans()
    data = loaded(write(tmp_path / name, table), ByKey(), key_column="state")
    assert data.class_names == ("current", "late", "paid")
    assert data.feature_names == ["amount", "liens", "records"]
    by_amount = {np.float32(a): (s, k) for a, s, k in zip(table["amount"], table["status"], table["state"], strict=True)}
    assert isinstance(data.train, TensorSamples)
    assert len(data.clients) == 3
    for state, part in zip(sorted(STATES), data.clients, strict=True):
        for amount, label in zip(data.train.inputs[part, 0].numpy(), data.train.targets[part].tolist(), strict=True):
            assert by_amount[amount] == (data.class_names[label], state)
    assert data.task is not None
    assert data.task.test.targets.bincount().tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("labels", "classes", "names", "numbers"),
    [
        (["b", "a", "c"], None, ("a", "b", "c"), [1, 0, 2]),
        (["b", "a", "c"], ["c", "b", "a"], ("c", "b", "a"), [1, 2, 0]),
        ([10, 9, -1], None, ("-1", "9", "10"), [2, 1, 0]),
        ([0.5, 2.0, 1.0], [1, 2, 0.5], ("1", "2", "0.5"), [2, 1, 0]),
        ([True, False, True], None, ("False", "True"), [1, 0, 1]),
    ],
)
def test_the_order_of_classes(tmp_path, labels, classes, names, numbers):
    path = write(tmp_path / "t.parquet", loans(status=[labels[i % 3] for i in range(120)]))
    data = Table(IID(num_clients=4), path=path, label_column="status", classes=classes, drop_columns=["state"])
    targets, found = data._targets(TableFile(path))
    assert found == names
    assert targets[:3].tolist() == numbers


def test_parts_of_a_trigger_go_by_name(tmp_path):
    data = loaded(write(tmp_path / "t.csv", loans()), drop_columns=["state"])
    attack = TabularDBA(columns=["liens", "records"], values=[50.0, 60.0], source_label=2, target_label=0)
    attack.validate(3)
    stamped = attack.stamp(data.evaluation["clean"])
    assert isinstance(stamped, TensorSamples)
    assert stamped.inputs[:, 1:].unique(dim=0).tolist() == [[50.0, 60.0]]
    poisoned = attack.poison(data.client(0), Attacker(client=0, seed=0, pool=data.train, index=1))
    assert isinstance(poisoned, TensorSamples)
    assert (poisoned.inputs[:, 2] == 60).any()
    assert not (poisoned.inputs[:, 1] == 50).any()


def test_keys_stay_with_their_rows_when_repeats_go(tmp_path, caplog):
    once = loans()
    path = write(tmp_path / "t.parquet", {name: [*values[:60], *values[:30], *values[60:]] for name, values in once.items()})
    with caplog.at_level(logging.WARNING):
        twice = loaded(path, ByKey(), key_column="state")
    assert "left out 30 of 150 rows" in caplog.text
    plain = loaded(write(tmp_path / "once.parquet", once), ByKey(), key_column="state")
    assert [part.tolist() for part in twice.clients] == [part.tolist() for part in plain.clients]


def test_parquet_is_read_column_by_column(tmp_path, monkeypatch):
    read = []
    whole = table_files.read_columns
    monkeypatch.setattr(table_files, "read_columns", lambda file, path, names: read.append(names) or whole(file, path, names))
    path = write(tmp_path / "t.parquet", loans())
    Table(ByKey(), path=path, label_column="status", key_column="state").setup("fit")
    assert read == [["amount"], ["liens"], ["records"], ["status"], ["state"]]


# ---- repeated rows -----------------------------------------------------------------------------------------------------


def test_first_rows_are_those_of_a_plain_search():
    draws = torch.Generator().manual_seed(0)
    features = torch.randint(-1, 2, (300, 3), generator=draws).float() * 0.5
    features[features == 0] *= -1  # some minus zeros
    targets = torch.randint(2, (300,), generator=draws)
    seen, expected = set(), []
    for i, row in enumerate(torch.cat([features, targets[:, None]], dim=1).tolist()):
        if tuple(row) not in seen:
            expected.append(i)
        seen.add(tuple(row))
    assert without_repeats(features, targets).tolist() == expected
    assert 0 < len(expected) < 60


def test_rows_of_one_digest_are_told_apart(monkeypatch):
    monkeypatch.setattr("fl_lightning.data.repeats.row_digests", lambda features, targets: torch.zeros(len(targets)).long())
    features = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])
    assert without_repeats(features, torch.zeros(3, dtype=torch.int64)).tolist() == [0, 1]


def lines_of(file: Path, n: int = 60, **fields: Any) -> str:
    """An object per line: a number, a class of two, and these fields, each a function of the row or a value."""
    made = [{"x": i * i % 71, "y": "uv"[i % 2], **{k: v(i) if callable(v) else v for k, v in fields.items()}} for i in range(n)]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in made), encoding="utf-8")
    return str(file)


def test_a_line_of_json_ends_where_the_file_says_so(tmp_path):
    path = lines_of(tmp_path / "t.jsonl", who=lambda i: "pq"[i % 2] + "\u2028\x85")
    data = loaded(path, ByKey(), label_column="y", key_column="who", drop_repeats=False)
    assert len(data.clients) == 2
    (tmp_path / "t.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "t.jsonl").read_bytes())  # as other programs begin a file
    assert loaded(path, label_column="y", drop_columns=["who"]).feature_names == ["x"]


def test_values_of_a_category_are_read_as_themselves(tmp_path):
    table = {k: pa.array(v).dictionary_encode() if k in ("status", "state", "liens") else v for k, v in loans().items()}
    one = loaded(write(tmp_path / "a.parquet", table), ByKey(), key_column="state")
    other = loaded(write(tmp_path / "b.parquet", loans()), ByKey(), key_column="state")
    assert (one.class_names, one.feature_names) == (other.class_names, other.feature_names)
    assert isinstance(one.train, TensorSamples)
    assert isinstance(other.train, TensorSamples)
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.train.targets, other.train.targets)


def test_zero_is_one_class_whatever_its_sign(tmp_path):
    path = write(tmp_path / "t.parquet", loans(status=[0.0, -0.0, 1.0] * 40))
    data = loaded(path, drop_columns=["state"])
    assert data.task is not None
    assert torch.cat([data.train.targets, data.task.test.targets]).bincount().tolist() == [80, 40]


def test_large_numbers_that_float32_tells_apart_are_features(tmp_path):
    path = write(tmp_path / "t.parquet", loans(records=[10**9 + 10**6 * i for i in range(120)], liens=[2**40 + 1] * 120))
    assert loaded(path, drop_columns=["state"]).feature_names == ["amount", "records"]


# ---- hostile input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "settings", "message"),
    [
        (
            {},
            {"key_column": "stat"},
            r"data\.key_column is 'stat', which is none of the 5 .*did you mean state",
        ),
        ({}, {"key_column": "status"}, r"key_column and data\.label_column are both 'status'"),
        ({}, {"classes": ["paid", "late"]}, r"also holds 'current', in 40 of 120 rows; name these too"),
        ({}, {"classes": [*STATUS, "gone"]}, r"leaves 0 training and 0 test samples of class 3 \(gone\)"),
        ({}, {"label_column": "amount", "drop_columns": ["state", "status"]}, "holds 120 different values in 120 rows, which"),
        ({"status": ["paid"] * 120}, {}, r"holds 1 different values in 120 rows, which are no classes: 'paid'; name another"),
        ({"status": ["paid", None, "late"] * 40}, {}, r"label_column 'status' is empty in 40 of 120 rows .*first in row 1,"),
        ({"state": ["TX", "n/a"] * 60}, {"key_column": "state"}, r"key_column 'state' is empty in 60 of 120 rows"),
        ({"state": [[1]] * 120}, {"key_column": "state"}, r"key_column 'state' of .* is of type list"),
        ({}, {}, r"column 'state' holds text in 120 of 120 rows"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, others, settings, message):
    drop = ["state"] if others or settings else []
    with pytest.raises(ConfigurationError, match=message):
        loaded(write(tmp_path / "t.parquet", loans(**others)), **{"drop_columns": drop, **settings})


def test_blanks_in_the_name_of_a_column_are_seen(tmp_path):
    (tmp_path / "t.csv").write_text("a, status\n1,paid\n2,late\n")
    with pytest.raises(ConfigurationError, match=r"is 'status', which is none of the 2 columns .*; did you mean ' status'\?"):
        loaded(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"z": lambda i: 1 if i else "a"}, "the values of 'z' are not of one type, or too large for 64 bits"),
        ({"z": lambda i: 10**30 + i}, "the values of 'z' are not of one type, or too large for 64 bits"),
        ({"y": lambda i: i % 2 == 0 or 7}, "the values of 'y' are not of one type"),
        ({"z": lambda i: 1_700_000_000 + i}, r"'z' holds 60 different numbers, of which float32.* leaves 1, .*; subtract that"),
    ],
)
def test_fields_that_are_no_columns_are_refused_by_name(tmp_path, fields, message):
    with pytest.raises(ConfigurationError, match=message):
        loaded(lines_of(tmp_path / "t.jsonl", **fields), label_column="y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "it is nested too deep"),
        ('{"x": 1, "x": 2, "y": 3}', "an entry has several fields of the name x;"),
    ],
)
def test_json_that_nobody_means_is_refused(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigurationError, match=rf"t\.json cannot be read: .*{message}"):
        TableFile(tmp_path / "t.json")


@pytest.mark.parametrize("classes", ["ab", ["a"], ["a", "b", "a"], [], [["a"], ["b"]], 3])
def test_classes_that_are_no_list_are_refused(classes):
    with pytest.raises(ConfigurationError, match=r"data\.classes must list two values or more of the label, none twice"):
        Table(IID(num_clients=2), path="t.csv", classes=classes)
