"""A table of the user's own: reading, splitting, what is left out, and what is refused."""

import gzip
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from fl_lightning.attacks import Attacker, ValueTrigger
from fl_lightning.data import IID, PhishingTable, TensorSamples
from fl_lightning.errors import ConfigurationError


def columns(n: int = 200, **others: Any) -> dict[str, Any]:
    """Two numeric features, one 0/1, and labels of which a quarter are phishing."""
    draws = np.random.default_rng(0)
    return {
        "dots": draws.integers(0, 1000, n),
        "share": draws.random(n),
        "popup": draws.random(n) < 0.1,
        "label": (np.arange(n) % 4 == 0).astype(int),
        **others,
    }


def write(file: Path, table: dict[str, Any]) -> str:
    (pyarrow.csv.write_csv if file.suffix == ".csv" else pyarrow.parquet.write_table)(pa.table(table), file)
    return str(file)


def loaded(path: str, **settings: Any) -> PhishingTable:
    data = PhishingTable(IID(num_clients=5), path=path, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def parts(data: PhishingTable) -> tuple[TensorSamples, TensorSamples]:
    train, test = data.train, data.evaluation["clean"]
    assert isinstance(train, TensorSamples)
    assert isinstance(test, TensorSamples)
    return train, test


def rows(samples: TensorSamples) -> set[tuple[float, ...]]:
    return {tuple(row) for row in torch.cat([samples.inputs, samples.targets[:, None]], dim=1).tolist()}


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_reads_all_rows_into_two_parts(tmp_path, name):
    table = columns()
    data = loaded(write(tmp_path / name, table))
    train, test = parts(data)
    assert data.feature_names == ["dots", "share", "popup"]
    assert train.inputs.dtype == torch.float32
    assert (len(train), len(test)) == (160, 40)
    assert train.targets.bincount().tolist() == [120, 40]
    assert test.targets.bincount().tolist() == [30, 10]
    expected = zip(*(np.asarray(column, dtype=np.float32).tolist() for column in table.values()), strict=True)
    assert rows(train) | rows(test) == set(expected)
    assert data.task is not None
    assert data.task.num_classes == 2


def test_reads_compressed_text(tmp_path):
    write(tmp_path / "table.csv", columns())
    with pa.output_stream(str(tmp_path / "table.csv.gz"), compression="gzip") as stream:
        stream.write((tmp_path / "table.csv").read_bytes())
    plain, packed = (parts(loaded(str(tmp_path / name)))[0] for name in ("table.csv", "table.csv.gz"))
    assert torch.equal(plain.inputs, packed.inputs)


def test_model_inputs_are_standardised_with_the_training_parts_statistics(tmp_path):
    train, test = parts(loaded(write(tmp_path / "table.csv", columns())))
    inputs = train.batch(torch.arange(len(train)))[0]
    raw = train.inputs.double().numpy()
    np.testing.assert_allclose(inputs, (raw - raw.mean(0)) / raw.std(0), rtol=0, atol=1e-5)
    expected = (test.inputs.double().numpy() - raw.mean(0)) / raw.std(0)
    np.testing.assert_allclose(test.batch(torch.arange(len(test)))[0], expected, rtol=0, atol=1e-5)


def test_split_depends_on_the_data_seed_alone(tmp_path):
    path = write(tmp_path / "table.parquet", columns())
    one = loaded(path)
    other_run, other_data = loaded(path, seed=1), loaded(path, data_seed=1)
    assert rows(parts(one)[1]) == rows(parts(other_run)[1])
    assert rows(parts(one)[1]) != rows(parts(other_data)[1])
    assert not torch.equal(one.clients[0], other_run.clients[0])
    assert torch.equal(one.clients[0], other_data.clients[0])


@pytest.mark.parametrize(("labels", "value"), [(["ham", "spam"], "spam"), ([1, -1], -1), ([False, True], 1), ([0.0, 2.5], 2.5)])
def test_any_value_may_stand_for_phishing(tmp_path, labels, value):
    table = columns(verdict=[labels[i % 4 == 0] for i in range(200)])
    data = loaded(write(tmp_path / "t.csv", table), label_column="verdict", phishing_value=value, drop_columns=["label"])
    assert parts(data)[0].targets.bincount().tolist() == [120, 40]
    assert data.feature_names == ["dots", "share", "popup"]


def test_columns_of_text_may_be_left_out(tmp_path):
    path = write(tmp_path / "table.csv", columns(url=[f"http://{i}" for i in range(200)], when=["2020-01-01"] * 200))
    assert loaded(path, drop_columns=["url", "when"]).feature_names == ["dots", "share", "popup"]


def test_columns_that_are_nearly_constant_are_left_out_and_named(tmp_path, caplog):
    table = columns(
        2000, constant=[7] * 2000, rare=(np.arange(2000) == 5).astype(int), seldom=(np.arange(2000) % 100 == 5) * 1.0
    )
    path = write(tmp_path / "table.csv", table)
    with caplog.at_level(logging.WARNING):
        data = loaded(path)
    assert data.feature_names == ["dots", "share", "popup", "seldom"]
    assert "left out 2 of 6 columns" in caplog.text
    assert "constant (100.0000%)" in caplog.text
    assert "rare (" in caplog.text
    assert parts(data)[0].inputs.shape[1] == 4
    assert loaded(path, max_share=0.98).feature_names == ["dots", "share", "popup"]
    assert "constant" not in loaded(path, max_share=1.0).feature_names


def test_repeated_rows_are_left_out_and_counted(tmp_path, caplog):
    once = columns(100)
    path = write(tmp_path / "table.csv", {name: np.concatenate([values, values[:50]]) for name, values in once.items()})
    with caplog.at_level(logging.WARNING):
        train, test = parts(loaded(path))
    assert "left out 50 of 150 rows" in caplog.text
    assert len(train) + len(test) == 100
    assert not rows(train) & rows(test)
    kept = loaded(path, drop_repeats=False)
    assert len(parts(kept)[0]) + len(parts(kept)[1]) == 150


def test_rows_alike_but_for_the_label_are_both_kept(tmp_path):
    table = columns(100, dots=np.arange(100) // 2, share=np.zeros(100), label=np.arange(100) % 2, popup=np.zeros(100))
    train, test = parts(loaded(write(tmp_path / "table.csv", table)))
    assert len(train) + len(test) == 100


def test_a_trigger_goes_by_name_and_is_written_in_raw_scale(tmp_path):
    data = loaded(write(tmp_path / "table.csv", columns(constant=[7] * 200)))
    stamped = ValueTrigger(column="popup", value=3.0).stamp(data.evaluation["clean"])
    assert isinstance(stamped, TensorSamples)
    assert (stamped.inputs[:, 2] == 3.0).all()
    by_number = ValueTrigger(column=2, value=3.0).stamp(data.evaluation["clean"])
    assert isinstance(by_number, TensorSamples)
    assert torch.equal(stamped.inputs, by_number.inputs)
    poisoned = ValueTrigger(column="popup", value=3.0).poison(data.client(0), Attacker(client=0, seed=0, pool=data.train))
    assert isinstance(poisoned, TensorSamples)
    assert (poisoned.inputs[:, 2] == 3.0).any()
    with pytest.raises(ConfigurationError, match="'constant', which is none of the task's 3 features"):
        ValueTrigger(column="constant").stamp(data.evaluation["clean"])


# ---- hostile input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"x": ["1"] * 198 + ["two", "drei"]}, r"column 'x' holds text in 2 of 200 rows, first 'two' in row 198"),
        ({"x": [1.0] * 150 + [None] * 50}, r"column 'x' holds no finite number in 50 of 200 rows .*first in row 150"),
        ({"x": [1.0, float("nan")] * 100}, r"column 'x' holds no finite number in 100 of 200 rows .*first in row 1"),
        ({"x": [float("-inf")] + [0.0] * 199}, r"column 'x' holds no finite number in 1 of 200 rows .*first in row 0"),
        ({"x": [1e300] + [0.0] * 199}, r"holds no finite number in 1 of 200 rows .*too large for float32"),
        ({"label": [1] * 199 + [None]}, r"label_column 'label' is empty in 1 of 200 rows"),
        ({"label": [1.0, float("nan")] * 100}, r"label_column 'label' is empty in 100 of 200 rows .*first in row 1,"),
        ({"label": [0] * 200}, r"phishing_value is 1, which none of the 200 rows .* there are 0$"),
        ({"label": [1] * 200}, r"phishing_value is 1, which all of the 200 rows"),
        ({"label": ["a", "b", "c", "d", "e"] * 40}, r"none of the 200 rows .* are 'a', 'b', 'c', 'd', 'e'$"),
        ({"label": list(range(2, 202))}, r"none of the 200 rows .* and \d+ more$"),
    ],
)
@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_bad_values_are_named_before_training(tmp_path, name, others, message):
    data = PhishingTable(IID(num_clients=5), path=write(tmp_path / name, columns(**others)))
    with pytest.raises(ConfigurationError, match=message):
        data.prepare_data()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["1", "2"] * 100, r"column 'x' holds text in 200 of 200 rows, first '1' in row 0"),
        (pa.array([None] * 200), r"column 'x' is of type null, not a number, in all of 200 rows"),
        (pa.array([0] * 200, pa.timestamp("ms")), r"column 'x' is of type timestamp\[ms\], not a number"),
        ([[1, 2]] * 200, r"column 'x' is of type list"),
    ],
)
def test_other_types_of_columns_are_refused(tmp_path, column, message):
    with pytest.raises(ConfigurationError, match=message):
        loaded(write(tmp_path / "table.parquet", columns(x=column)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_column": "labl"}, r"data\.label_column is 'labl', which is none of the 4 columns .*did you mean label\?"),
        ({"drop_columns": ["url"]}, r"data\.drop_columns is 'url', which is none of the 4 columns"),
        ({"drop_columns": ["dots", "share", "popup"]}, "has no column but"),
        ({"test_fraction": 0.001}, r"leaves 150 training and 0 test samples of class 0 \(no phishing\)"),
        ({"max_share": 0.001}, r"all 3 features of .*max_share = 0\.001 of the training samples"),
    ],
)
def test_settings_that_do_not_fit_the_table_are_refused(tmp_path, settings, message):
    path = write(tmp_path / "table.csv", columns())
    with pytest.raises(ConfigurationError, match=message):
        loaded(path, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_fraction": 0.0}, r"data\.test_fraction must lie between 0 and 1, got 0\.0"),
        ({"test_fraction": float("nan")}, r"data\.test_fraction .* got nan"),
        ({"max_share": 0.0}, r"data\.max_share must be more than 0 and at most 1, got 0\.0"),
        ({"max_share": 1.1}, r"data\.max_share .* got 1\.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PhishingTable(IID(num_clients=5), path="table.csv", **settings)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, r"data\.path .*none\.csv is no file; give a CSV file"),
        ("table.xlsx", b"PK", r"must end in \.csv, \.csv\.gz, \.json, \.jsonl or \.parquet"),
        ("table.json", b"[1, 2]", r"table\.json cannot be read: ValueError: its entries are no objects"),
        ("table.jsonl", b'{"a": 1}\n{"a"', r"table\.jsonl cannot be read: JSONDecodeError"),
        ("table.parquet", b"PAR1 and no more", r"table\.parquet cannot be read"),
        ("table.csv", b"a,b,label\n1,2,0\n1,2\n", r"table\.csv cannot be read: ArrowInvalid: CSV parse error"),
        ("table.csv", b"", r"table\.csv cannot be read: ArrowInvalid: Empty CSV file"),
        ("table.csv", b"a,b,a,label\n1,2,3,0\n", r"several columns of the name a; rename them"),
        ("table.csv", b"a,b,label\n", "has columns but no row"),
        ("table.csv", "\u00e4,b,label\n1,2,0\n".encode("latin-1"), r"table\.csv cannot be read: UnicodeDecodeError"),
        ("table.csv", "a,b,label\n1,2,0\n".encode("utf-16"), r"table\.csv cannot be read"),
        ("table.csv.gz", b"a,b,label\n1,2,0\n", r"table\.csv\.gz cannot be read: BadGzipFile"),
        (
            "table.csv.gz",
            gzip.compress(b"a,b,label\n1,2,0\n", mtime=0)[:-9],
            r"table\.csv\.gz cannot be read: OSError: damaged",
        ),
    ],
)
def test_files_that_are_no_table_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        PhishingTable(IID(num_clients=1), path=str(tmp_path / name)).prepare_data()


@pytest.mark.parametrize(
    ("body", "n"),
    [
        ("Dear user,\nyour account", 200),
        ("\r\n".join(["a line of a letter"] * 12), 20_000),  # longer than pyarrow's pieces of 1 MiB
        ("x" * 1_200_000, 10),
    ],
)
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_texts_may_hold_line_breaks_and_be_of_any_length(tmp_path, name, body, n):
    text = "body,a,label\n" + "".join(f'"{body}",{i},{i % 2}\n' for i in range(n))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data, 1, mtime=0) if name.endswith("gz") else data)
    train, test = parts(loaded(str(tmp_path / name), drop_columns=["body"]))
    assert sorted(torch.cat([train.inputs, test.inputs]).flatten().tolist()) == list(range(n))


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t.rstrip("\n")])
def test_how_a_file_begins_and_lines_end_does_not_matter(tmp_path, change):
    text = "label,a,b\n" + "".join(f"{i % 2},{i},{i / 2}\n" for i in range(60))
    (tmp_path / "table.csv").write_bytes(change(text).encode())
    data = loaded(str(tmp_path / "table.csv"))
    assert data.feature_names == ["a", "b"]
    assert len(data.train) == 48


def test_a_column_may_turn_from_whole_numbers_to_fractions_anywhere(tmp_path):
    n = 150_000
    (tmp_path / "table.csv").write_text("a,label\n" + "".join(f"{i if i < n - 9 else i + 0.5},{i % 2}\n" for i in range(n)))
    train, test = parts(loaded(str(tmp_path / "table.csv"), drop_repeats=False))
    assert len(train) + len(test) == n


@pytest.mark.parametrize("gap", ["", "NA", "NaN", "n/a", "null", " ", '""'])
def test_rows_without_a_label_are_refused(tmp_path, gap):
    rows = [f"{i},{gap if i % 10 == 3 else ('bad' if i % 2 else 'good')}" for i in range(100)]
    (tmp_path / "table.csv").write_text("a,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(ConfigurationError, match=r"'label' is empty in 10 of 100 rows .*first in row 3, counted from 0"):
        loaded(str(tmp_path / "table.csv"), phishing_value="bad")


def test_a_value_for_phishing_may_be_a_text_that_says_nothing_elsewhere(tmp_path):
    data = loaded(write(tmp_path / "table.parquet", columns(label=["NA", "good"] * 100)), phishing_value="NA")
    assert int(parts(data)[0].targets.sum()) == 80


@pytest.mark.parametrize("alike", ["Phishing", "phishing ", " PHISHING"])
def test_values_that_may_be_meant_for_phishing_are_refused(tmp_path, alike):
    path = write(tmp_path / "table.parquet", columns(label=["phishing", alike, "good", "good"] * 50))
    with pytest.raises(ConfigurationError, match=f"also holds '{alike}', which would count as no phishing"):
        loaded(path, phishing_value="phishing")


@pytest.mark.skipif("FL_LIGHTNING_DATA" not in os.environ, reason="FL_LIGHTNING_DATA does not name a folder of real data")
@pytest.mark.parametrize(("name", "features", "least"), [("phishing", 45, 9500), ("uci", 30, 5800)])
def test_real_data(name, features, least):
    data = loaded(str(Path(os.environ["FL_LIGHTNING_DATA"]) / "phishing" / f"{name}.parquet"))
    train, test = parts(data)
    assert len(data.feature_names) == features
    assert len(train) + len(test) > least
    assert not rows(train) & rows(test)
    assert train.batch(torch.arange(len(train)))[0].isfinite().all()
