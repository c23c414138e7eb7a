"""What partitions may give: any list of positions, mask or mapping; what cannot be dealt out is refused by client."""

import logging
import random
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from fl_lightning import ConfigurationError, FederatedDataModule
from fl_lightning.data import IID, ByKey, FullCopies, RootSet
from fl_lightning.seeding import global_draws

N = 6


def dealt(partition: Any, **settings: Any) -> list[list[int]]:
    train = TensorDataset(torch.zeros(N, 1), torch.arange(N) % 2)
    data = FederatedDataModule.from_datasets(train, train, partition=partition, **settings)
    data.setup("fit")
    assert all(part.dtype == torch.int64 and part.device.type == "cpu" for part in data.clients)
    assert data.sizes.tolist() == [len(part) for part in data.clients]
    return [part.tolist() for part in data.clients]


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 1], [2, 3, 4, 5]],
        ((0, 1), (2, 3, 4, 5)),
        [np.array([0, 1], dtype=np.int32), range(2, 6)],
        [{1, 0}, torch.tensor([2, 3, 4, 5], dtype=torch.uint8)],
        {1: [2, 3, 4, 5], 0: [0, 1]},
        [[True, True, False, False, False, False], torch.tensor([False, False, True, True, True, True])],
        [np.array([0, 1], dtype=object), (i for i in (2, 3, 4, 5))],
    ],
)
def test_any_lists_of_positions_are_taken(parts):
    expected = [[0, 1], [2, 3, 4, 5]]
    if not any(hasattr(part, "__next__") for part in (parts.values() if isinstance(parts, dict) else parts)):
        assert dealt(parts) == expected
    assert dealt(lambda targets, generator, keys: parts) == expected


def test_a_generator_of_clients_is_taken():
    def deal(targets: torch.Tensor, generator: torch.Generator, keys: Any) -> Any:
        yield [0]
        yield from torch.arange(1, len(targets)).split(2)

    assert dealt(deal) == [[0], [1, 2], [3, 4], [5]]


def test_clients_may_share_samples(caplog):
    with caplog.at_level(logging.WARNING):
        assert dealt([[0, 1, 2], [2, 1]]) == [[0, 1, 2], [2, 1]]
        assert dealt(FullCopies(num_clients=3)) == [list(range(N))] * 3
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        assert dealt([[0, 1], [2, 2]]) == [[0, 1], [2, 2]]
    assert "client 1 some samples several times" in caplog.text


@pytest.mark.parametrize("keys", [[7, 7, 3, 3, 3, 9], np.array([7, 7, 3, 3, 3, 9]), ["b", "b", "a", "a", "a", "c"]])
def test_keys_may_be_lists_and_texts(keys):
    assert dealt(ByKey(), keys=keys) == [[2, 3, 4], [0, 1], [5]]


def table(**columns: Any) -> Any:
    return datasets.Dataset.from_dict({"x": torch.randn(N, 3).tolist(), "label": [i % 2 for i in range(N)], **columns})


@pytest.mark.parametrize("form", [None, "torch"])
@pytest.mark.parametrize("column", [["b", "b", "a", "a", "a", "c"], [7, 7, 3, 3, 3, 9]])
def test_keys_may_be_a_column_of_a_hub_data_set(form, column):
    train = table(who=column).with_format(form)
    for keys in ("who", train["who"]):
        data = FederatedDataModule.from_datasets(train, table(), partition=ByKey(), keys=keys)
        data.setup("fit")
        assert [sorted(part.tolist()) for part in data.clients][1:] == ([[0, 1], [5]])
        assert data.sizes.tolist() == [3, 2, 1]


def test_keys_that_are_no_column_are_refused():
    with pytest.raises(ConfigurationError, match=r"keys is 'writer', but the data have the columns x, label, who"):
        FederatedDataModule.from_datasets(table(who=[0] * N), table(), partition=ByKey(), keys="writer")
    with pytest.raises(ConfigurationError, match=r"keys is 'who', .* data are TensorDataset, no data set of Hugging"):
        dealt(ByKey(), keys="who")
    with pytest.raises(ConfigurationError, match=r"test_keys is 'whose', but the data have the columns x, label"):
        FederatedDataModule.from_datasets(table(who=[0] * N), table(), partition=ByKey(), keys="who", test_keys="whose")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0, 6]], r"client 0 the sample 6, but the 6 training samples are 0 to 5"),
        ([[0], [-1]], "client 1 the sample -1"),
        ([[0], []], r"1 of 2 clients without a sample \(client 1 first\)"),
        ([[0], [False] * 6], "1 of 2 clients without a sample"),
        ([[0], [True]], "client 1 a mask of 1 for 6 training samples"),
        ([[0.0, 1.0]], r"client 0 positions of torch\.float64, the first is 0\.0"),
        ([["a"]], "client 0 a list that is no list of whole numbers"),
        ([[[0, 1]]], r"client 0 samples in a shape of \(1, 2\)"),
        ([0, 1, 2], r"client 0 (a int|samples in a shape of)"),
        ([[[0], [1, 2]]], "client 0 a list that is no list of whole numbers"),
        ([], "gives no client at all"),
        ({1: [0], 2: [1]}, r"mapping of the clients 1, 2; they must be 0 to 1"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(parts, message):
    for partition in (parts, lambda targets, generator, keys: parts):
        with pytest.raises(ConfigurationError, match=message) as refused:
            dealt(partition)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (10, r"must be a partition such as IID\(num_clients=10\), got 10"),
        (IID, r"such as IID\(num_clients=10\), got the class IID"),
        (None, "got None"),
        (lambda targets: [[0]], r"is called with \(targets, generator, keys\)"),
        (lambda targets, generator, keys: None, "gives NoneType, not a list with the samples of each client"),
        (lambda targets, generator, keys: torch.tensor(3), "gives Tensor, not a list"),
        (lambda targets, generator, keys: [targets[9]], "cannot deal out 6 samples: IndexError"),
        (lambda targets, generator, keys: (targets[i] for i in [9]), "cannot deal out 6 samples: IndexError"),
    ],
)
def test_what_is_no_partition_is_refused(partition, message):
    with pytest.raises(ConfigurationError, match=message):
        dealt(partition)


@pytest.mark.parametrize(
    ("keys", "message"),
    [([0.5] * N, "keys must be one whole number or text"), ([[1]] * N, "keys must be one"), ([1], "got 1 for 6 samples")],
)
def test_keys_that_are_none_are_refused(keys, message):
    with pytest.raises(ConfigurationError, match=message):
        dealt(ByKey(), keys=keys)


def test_positions_and_a_root_set_exclude_each_other():
    with pytest.raises(ConfigurationError, match=r"positions, which data\.root would shift"):
        dealt([[0]], root=RootSet(samples=1))
    assert len(dealt(lambda targets, generator, keys: [range(len(targets))], root=RootSet(samples=2))[0]) == 4


@pytest.mark.parametrize("draw", [torch.randperm, np.random.permutation, lambda n: random.sample(range(n), n)])
def test_a_function_that_draws_from_global_generators_deals_by_the_seed(draw):
    def deal(targets: torch.Tensor, generator: torch.Generator, keys: Any) -> Any:
        return np.array_split(np.asarray(draw(len(targets))), 2)

    before = global_draws()
    found = [dealt(deal, seed=seed) for seed in range(8)]
    assert global_draws() == before
    torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002  whatever was drawn before
    assert found == [dealt(deal, seed=seed) for seed in range(8)]
    assert any(parts != found[0] for parts in found)


def test_a_function_may_write_into_what_it_is_given():
    def deal(targets: torch.Tensor, generator: torch.Generator, keys: torch.Tensor) -> Any:
        targets.zero_(), keys.zero_()
        return [[0, 1, 2], [3, 4, 5]]

    train = TensorDataset(torch.zeros(N, 1), torch.arange(N) % 2)
    data: Any = FederatedDataModule.from_datasets(train, train, partition=deal, keys=torch.arange(N))
    data.setup("fit")
    assert data.train.targets.tolist() == [0, 1] * 3
    assert data.task.keys.tolist() == list(range(N))
