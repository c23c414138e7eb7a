"""Partitioners made for another library: what they are given, what is made of what they give, and what is refused."""

import importlib.util
from typing import Any

import datasets
import jsonargparse
import pytest
import torch

from fl_lightning import FederatedDataModule
from fl_lightning.data import Digits, FromFlower, MultiLabel, Regression, TensorSamples
from fl_lightning.data.show_data import show
from fl_lightning.errors import ConfigurationError
from fl_lightning.options.described import describe
from fl_lightning.seeding import generator

TARGETS, KEYS = torch.arange(30) % 3, torch.arange(30) // 10

real = pytest.mark.skipif(importlib.util.find_spec("flwr_datasets") is None, reason="flwr-datasets is not installed")


class OfColumn:
    """As partitioners are: clients by a column, told only once there is a data set, which may be set once."""

    def __init__(self, partition_by: str) -> None:
        self._partition_by = partition_by
        self._dataset: datasets.Dataset | None = None

    @property
    def dataset(self) -> Any:
        if self._dataset is None:
            raise AttributeError("dataset is not set")
        return self._dataset

    @dataset.setter
    def dataset(self, value: datasets.Dataset) -> None:
        if self._dataset is not None:
            raise ValueError("dataset is set")
        self._dataset = value

    @property
    def num_partitions(self) -> int:
        return len(self.dataset.unique(self._partition_by))

    def load_partition(self, partition_id: int) -> Any:
        column = self.dataset[self._partition_by]
        return self.dataset.select([i for i, value in enumerate(column) if value == partition_id])


class Columns(OfColumn):
    """Deals out columns, as vertical partitioners do."""

    def load_partition(self, partition_id: int) -> Any:
        return self.dataset.select_columns(["label"])


def dealt(partitioner: Any, keys: torch.Tensor | None = KEYS) -> list[list[int]]:
    parts = FromFlower(partitioner=partitioner)(TARGETS, generator(0, "p"), keys)
    assert all(part.dtype == torch.int64 for part in parts)
    return [part.tolist() for part in parts]


def test_clients_are_the_positions_of_their_rows_and_the_partitioner_stays_as_it_was():
    partitioner = OfColumn("label")
    expected = [list(range(label, 30, 3)) for label in range(3)]
    assert dealt(partitioner) == dealt(partitioner, None) == expected
    assert partitioner._dataset is None
    assert dealt(OfColumn("key")) == [list(range(10 * key, 10 * key + 10)) for key in range(3)]
    assert FromFlower(partitioner=partitioner).num_clients is None


def test_it_deals_out_a_task_and_is_told_in_records():
    data = Digits(FromFlower(partitioner=OfColumn("label")))
    data.setup("fit")
    assert len(data.clients) == 10
    assert int(data.sizes.sum()) == len(data.train)
    told = describe(data.partition)["init_args"]["partitioner"]
    assert (told["class_path"], told["init_args"]) == (f"{OfColumn.__module__}.OfColumn", {"partition_by": "label"})


def test_in_a_configuration_a_partitioner_is_a_class_with_its_settings():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FederatedDataModule, "data")
    own = {"class_path": f"{__name__}.OfColumn", "init_args": {"partition_by": "label"}}
    partition = {"class_path": "FromFlower", "init_args": {"partitioner": own}}
    made = parser.instantiate(parser.parse_object({"data": {"class_path": "Digits", "init_args": {"partition": partition}}}))
    assert made.data.partition.partitioner._partition_by == "label"


def test_what_cannot_be_dealt_out_is_refused():
    assigned = OfColumn("label")
    assigned.dataset = datasets.Dataset.from_dict({"label": [0]})
    never: Any = OfColumn("label")
    for partitioner, message in (
        (
            OfColumn("fine"),
            r"partitioner \(OfColumn\) cannot deal out 30 samples with the columns position, label, key: .*fine",
        ),
        (assigned, "dataset is set"),
        (Columns("label"), r"gives client 0 the columns label; clients must have rows with all columns"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            dealt(partitioner)
    for wrong, message in (
        (object(), "got object without dataset and num_partitions and load_partition"),
        (OfColumn, "got the class OfColumn"),
        (lambda *_: [never], "got function without dataset"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            FromFlower(partitioner=wrong)  # pyrefly: ignore[bad-argument-type]


class Halves:
    """Looks at no column."""

    dataset: Any = None
    num_partitions = 2

    def load_partition(self, partition_id: int) -> Any:
        assert partition_id == 0 or "label" not in self.dataset.column_names
        return self.dataset.select(range(partition_id, len(self.dataset), 2))


@pytest.mark.parametrize(
    ("targets", "outcome"), [(torch.rand(30), Regression()), ((torch.rand(30, 4) > 0.5).float(), MultiLabel())]
)
def test_numbers_and_several_labels_are_no_classes_to_deal_by(targets, outcome):
    def given(partitioner: Any) -> FederatedDataModule:
        samples = TensorSamples(torch.zeros(30, 2), targets, outcome=outcome)
        data = FederatedDataModule.from_datasets(samples, samples, partition=FromFlower(partitioner=partitioner))
        data.setup("fit")
        return data

    assert given(Halves()).sizes.tolist() == [15, 15]
    by_both: Any = OfColumn("label")
    by_both._partition_by = ["key", "label"]
    for partitioner in (OfColumn("label"), by_both):
        with pytest.raises(ConfigurationError, match=r"data\.partition is FromFlower, which deals by class, but the task asks"):
            given(partitioner)


def test_classes_of_its_clients_are_shown(tmp_path, capsys):
    data = Digits(FromFlower(partitioner=OfColumn("label")))
    data.setup("fit")
    show(data, str(tmp_path / "dealt.svg"))
    assert "classes that a client lacks" in capsys.readouterr().out
    assert "share of the client's samples" in (tmp_path / "dealt.svg").read_text()


@real
@pytest.mark.parametrize(
    ("name", "settings", "sizes"),
    [
        ("IidPartitioner", {"num_partitions": 3}, [10, 10, 10]),
        ("LinearPartitioner", {"num_partitions": 3}, [5, 10, 15]),
        ("NaturalIdPartitioner", {"partition_by": "key"}, [10, 10, 10]),
        ("DirichletPartitioner", {"num_partitions": 3, "partition_by": "label", "alpha": 1.0, "min_partition_size": 2}, None),
        ("ShardPartitioner", {"num_partitions": 3, "partition_by": "label", "num_shards_per_partition": 2}, [10, 10, 10]),
    ],
)
def test_partitioners_of_the_library_itself(name, settings, sizes):
    import flwr_datasets.partitioner  # pyrefly: ignore[missing-import]

    parts = dealt(getattr(flwr_datasets.partitioner, name)(**settings))
    assert sorted(i for part in parts for i in part) == list(range(30))
    assert parts == dealt(getattr(flwr_datasets.partitioner, name)(**settings))
    assert sizes is None or [len(part) for part in parts] == sizes


@real
def test_those_that_deal_out_columns_are_refused():
    from flwr_datasets.partitioner import VerticalEvenPartitioner  # pyrefly: ignore[missing-import]

    with pytest.raises(ConfigurationError, match="clients must have rows with all columns"):
        dealt(VerticalEvenPartitioner(num_partitions=2))
