from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning import ConfigurationError, FederatedDataModule
from fl_lightning.data import IID, ByKey, FullCopies, Partition, TensorSamples
from fl_lightning.data.module import EvaluationBatches, OneStep


def samples(n: int = 30, classes: int = 3) -> TensorSamples:
    return TensorSamples(torch.arange(float(n)), torch.arange(n) % classes)


def module(partition: Partition | None = None, **kwargs) -> Any:
    data = FederatedDataModule.from_datasets(samples(), samples(7), partition=partition or IID(num_clients=4), **kwargs)
    data.setup("fit")
    return data


class Uneven(Partition):
    def __call__(self, targets, generator, keys=None):
        return [torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([2])]


def test_clients_hold_what_the_partition_dealt():
    data = module()
    assert data.sizes.tolist() == [8, 8, 7, 7]
    held = torch.cat([data.client(i).inputs for i in range(4)])
    assert sorted(held.tolist()) == list(range(30))


def test_partition_is_drawn_from_the_seed_alone():
    one, same, other = module(seed=1), module(seed=1), module(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.clients, same.clients, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.clients, other.clients, strict=True))


def test_setup_runs_once():
    data = module()
    before = data.clients
    data.setup("validate")
    assert data.clients is before


def test_keys_reach_the_partition():
    data = module(ByKey(), keys=torch.arange(30) // 10)
    assert [data.client(i).inputs.tolist() for i in range(3)] == [list(range(s, s + 10)) for s in (0, 10, 20)]


def test_full_copies_share_one_tensor():
    data = module(FullCopies(num_clients=5))
    assert data.client(0) is data.client(4) is data.train


def test_map_style_data_are_wrapped():
    pairs: Any = [(torch.tensor([float(i)]), i % 2) for i in range(12)]
    data: Any = FederatedDataModule.from_datasets(pairs, pairs, partition=IID(num_clients=3))
    data.setup("fit")
    assert data.task.num_classes == 2
    assert data.client(0).batch(torch.tensor([0, 1]))[0].shape == (2, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: module(Uneven()), r"1 of 3 clients without a sample \(client 1 first\)"),
        (lambda: module(num_classes=2), r"training data hold labels from 0 to 2, but the task has 2 classes \(0 to 1\)"),
        (lambda: module(eval_batch_size=0), "eval_batch_size must be at least 1, got 0"),
        (lambda: module(ByKey()), "ByKey"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_negative_labels_are_refused():
    bad = TensorSamples(torch.zeros(3), torch.tensor([0, -1, 1]))
    data = FederatedDataModule.from_datasets(samples(), bad, partition=IID(num_clients=2))
    with pytest.raises(ConfigurationError, match="test data hold labels from -1"):
        data.setup("fit")


def test_training_has_one_step():
    assert len(OneStep()) == len(list(OneStep())) == 1


@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 6))
def test_every_sample_is_evaluated_once_on_any_number_of_ranks(n, batch_size, world):
    loaders = [EvaluationBatches(samples(n), batch_size, rank, world) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1  # as many steps on every rank
    items = [list(loader) for loader in loaders]
    assert all(len(found) == len(loader) for found, loader in zip(items, loaders, strict=True))
    seen = [item for found in items for item in found if item is not None]
    values = torch.cat([inputs for (inputs, _), _ in seen])
    assert sorted(values.tolist()) == list(range(n))
    assert all(torch.equal(batch[1], targets) for batch, targets in seen)
    alone = [item[0][0].tolist() for item in EvaluationBatches(samples(n), batch_size, 0, 1) if item is not None]
    assert sorted(alone) == sorted(batch[0].tolist() for batch, _ in seen)  # boundaries do not depend on ranks
