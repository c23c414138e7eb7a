"""Tables of Hugging Face's library that do not fit into memory: read by rows that a batch asks for, and never whole."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from fl_lightning import FederatedDataModule
from fl_lightning.data import IID, MapSamples, table
from fl_lightning.errors import ConfigurationError

N = 200
X = torch.arange(N * 3, dtype=torch.float32).view(N, 3)


@pytest.fixture
def on_disk(tmp_path: Path) -> datasets.Dataset:
    """A Parquet file of N rows, memory-mapped."""
    columns = {"x": X.tolist(), "label": [i % 4 for i in range(N)]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    return datasets.Dataset.from_parquet(str(tmp_path / "t.parquet"), cache_dir=str(tmp_path / "cache"))  # pyrefly: ignore


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory into which no table fits; reading one whole fails."""
    monkeypatch.setattr("fl_lightning.data.given.HELD_BYTES", 100)
    monkeypatch.setattr(table, "read_columns", lambda rows: pytest.fail("all rows are read"))


def dealt(train: Any) -> FederatedDataModule:
    data = FederatedDataModule.from_datasets(train, train.select(range(20)), partition=IID(num_clients=5))
    data.setup("fit")
    return data


ORDERS = {
    "as they are": lambda rows: rows,
    "shuffled": lambda rows: rows.shuffle(seed=0),
    "some": lambda rows: rows.select(range(0, N, 3)),
    "torch": lambda rows: rows.with_format("torch"),
}


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("order", ORDERS)
def test_batches_are_those_of_a_table_in_memory(on_disk, order, monkeypatch):
    rows = ORDERS[order](on_disk)
    far = dealt(rows)
    assert isinstance(far.train, MapSamples)
    assert isinstance(far.train.dataset, datasets.Dataset)
    monkeypatch.undo()
    near = dealt(rows)
    assert isinstance(near.train, MapSamples)
    assert isinstance(near.train.dataset, table.Rows)
    chosen = torch.tensor([5, 0, 5, 7])
    for client in range(5):
        one, other = far.client(client).batch(chosen), near.client(client).batch(chosen)
        assert torch.equal(one["x"], other["x"])
        assert torch.equal(one["label"], other["label"])
        assert torch.equal(one["label"], far.train.targets[far.clients[client][chosen]])


@pytest.mark.usefixtures("small_memory")
def test_a_batch_is_one_reading(on_disk, monkeypatch):
    samples = dealt(on_disk).train
    asked: list[int] = []
    whole = datasets.Dataset.__getitems__
    monkeypatch.setattr(datasets.Dataset, "__getitems__", lambda self, keys: asked.append(len(keys)) or whole(self, keys))
    samples.batch(torch.arange(50))
    assert asked == [50]


def test_transforms_are_called_for_one_sample_at_a_time(on_disk):
    seen = []

    def look(batch: dict[str, list[Any]]) -> dict[str, Any]:
        seen.append(len(batch["label"]))
        return {"x": [torch.tensor(row) for row in batch["x"]], "label": batch["label"]}

    MapSamples(on_disk.with_transform(look), torch.zeros(N, dtype=torch.int64)).batch(torch.arange(10))
    assert set(seen) == {1}


def test_a_selection_takes_its_share_of_the_file(on_disk):
    whole = table.bytes_of(on_disk)
    assert whole >= X.nbytes
    assert table.bytes_of(on_disk.select(range(0, N, 4))) == whole // 4


@pytest.mark.parametrize("at_once", [1, 7, 1000])
@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_read_piece_by_piece(on_disk, order, at_once, monkeypatch):
    monkeypatch.setattr(table, "AT_ONCE", at_once)
    rows = ORDERS[order](on_disk).with_format("torch")
    found, expected = table.read_columns(rows), dict(rows[:])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert table.arrow_column(rows, "label").to_pylist() == expected["label"].tolist()


@pytest.mark.parametrize("at_once", [1, 2, 3, 1000])
def test_columns_of_other_kinds_piece_by_piece(at_once, monkeypatch):
    monkeypatch.setattr(table, "AT_ONCE", at_once)
    columns = {"word": ["a", "b", "c", "d"], "ragged": [[1, 2], [3, 4], [5], [6, 7]], "n": [1.5, 2.5, 3.5, 4.5]}
    rows = datasets.Dataset.from_dict(columns)
    found = table.read_columns(rows.with_format("torch"))
    assert list(found["word"]) == columns["word"]
    assert [row.tolist() for row in found["ragged"]] == columns["ragged"]
    assert found["n"].tolist() == columns["n"]
    assert isinstance(found["n"], torch.Tensor)
    as_numpy = table.read_columns(rows.with_format("numpy"))
    np.testing.assert_array_equal(as_numpy["n"], columns["n"])


def test_a_gap_is_named_by_its_row_in_the_selection():
    rows = datasets.Dataset.from_dict({"x": [1.0, 2.0, None, 4.0], "label": [0, 1, 0, 1]})
    with pytest.raises(ConfigurationError, match=r"column 'x' of the training data is empty in 1 of 3 rows, first in row 1"):
        dealt_small(rows.select([3, 2, 0]))
    dealt_small(rows.select([3, 1, 0]))  # the gap is in a row that is not selected


def dealt_small(rows: Any) -> FederatedDataModule:
    test: Any = datasets.Dataset.from_dict({"x": [1.0, 2.0], "label": [0, 1]})
    return FederatedDataModule.from_datasets(rows, test, partition=IID(num_clients=2))
