"""What evaluation reads depends on nothing but the batch's number, and leaves the data as they were."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import CLASSES, FEATURES, fit, tiny_federation, tiny_tensors
from torch.utils.data import Dataset, Subset, default_collate

from fl_lightning import FederatedDataModule
from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks import BackdoorMetrics
from fl_lightning.data import IID, MapSamples, TensorSamples
from fl_lightning.data.module import EvaluationBatches
from fl_lightning.data.steady_reading import SteadyReading, is_fixed
from fl_lightning.seeding import global_draws
from fl_lightning.updates.agreement import digests

GLOBAL = np.random.default_rng(5)


class Data(Dataset[Any]):
    """Inputs that are drawn, or counted, in one of many ways."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(5)
        self.torch_rng = torch.Generator().manual_seed(3)
        self.later: Any = None
        self.n = 0
        self.seen: list[int] = []
        self.cache: dict[int, float] = {}

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([float(self.draw(self, index))]), index % 2


def count(data: Data, index: int) -> float:
    data.n += 1
    data.seen.append(index)
    return data.n + len(data.seen)


def make_later(data: Data, index: int) -> float:
    data.later = data.later or np.random.default_rng(5)
    return data.later.random()


def remember(data: Data, index: int) -> float:
    return data.cache.setdefault(index, float(index))


class Noisy:
    """A function that joins samples, counts, and draws from a generator of its own."""

    def __init__(self) -> None:
        self.n, self.rng = 0, np.random.default_rng(1)

    def __call__(self, samples: list[Any]) -> Any:
        self.n += 1
        inputs, classes = default_collate(samples)
        return inputs + self.n + self.rng.random(), classes


def read(samples: Any, world: int) -> list[Any]:
    """The batches of all ranks in order, of a second evaluation."""
    loaders = [EvaluationBatches(samples, 2, rank, world, seed=1) for rank in range(world)]
    found = [[item for item in loader if item is not None] for _ in range(2) for loader in loaders][world:]
    return [found[number % world][number // world][0][0].flatten().tolist() for number in range(5)]


@pytest.mark.parametrize(
    "draw",
    [
        lambda data, index: data.rng.random(),
        lambda data, index: torch.rand(1, generator=data.torch_rng),
        lambda data, index: GLOBAL.random(),
        lambda data, index: torch.randn(1) + np.random.rand() + random.random(),  # noqa: NPY002
        count,
        make_later,
    ],
)
@pytest.mark.parametrize("collate_fn", [default_collate, Noisy()])
def test_batches_do_not_depend_on_ranks_or_earlier_ones(draw, collate_fn):
    data = Data(draw)
    samples = MapSamples(data, torch.arange(10) % 2, collate_fn=collate_fn)
    before, ahead = (data.n, len(data.seen), data.rng.bit_generator.state), global_draws()
    alone = read(samples, 1)
    assert read(samples, 2) == alone == read(samples, 3)
    assert (data.n, len(data.seen), data.rng.bit_generator.state) == before
    assert global_draws() == ahead


def test_batches_differ_in_what_they_draw():
    batches = read(MapSamples(Data(lambda data, index: torch.rand(1)), torch.arange(10) % 2), 1)
    assert len({tuple(batch) for batch in batches}) == 5


def test_what_is_read_once_and_remembered_stays_so():
    data = Data(remember)
    read(MapSamples(data, torch.arange(10) % 2), 1)
    assert data.cache.keys() == set(range(10))


def test_tensors_need_no_care():
    plain = TensorSamples(torch.zeros(4, 1), torch.zeros(4).long(), prepare=torch.relu)
    assert SteadyReading(plain, 0, 0).kept is None
    assert not is_fixed(TensorSamples(torch.zeros(4, 1), torch.zeros(4).long(), prepare=lambda x: x + torch.rand(1)))


class Counting(Dataset[Any]):
    """Training and test samples in one, with inputs that depend on how often it has been read, and draws of its own."""

    def __init__(self) -> None:
        self.held = tiny_tensors(60)
        self.n, self.rng = 0, np.random.default_rng(5)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        self.n += 1
        noise = torch.randn(FEATURES) + self.rng.random() + random.random()
        return self.held.inputs[index] * (1 + 0.01 * self.n) + noise, int(self.held.targets[index])


class Remembers:
    """A function that joins samples by how often it has been called."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, samples: list[Any]) -> Any:
        self.calls.append(1)
        inputs, classes = default_collate(samples)
        return inputs + 0.1 * len(self.calls), classes


def ended(world: int) -> tuple[str, dict[str, float]]:
    """The weights and measures that a run over such data ends with."""
    both = Counting()
    data = FederatedDataModule.from_datasets(
        Subset(both, range(40)),
        Subset(both, range(40, 60)),
        partition=IID(num_clients=9),
        collate_fn=Remembers(),
        eval_batch_size=3,
        num_classes=CLASSES,
    )
    federation = tiny_federation(aggregator=FedAvg(), attacks=[])
    trainer = fit(federation, data, devices=world, rounds=2, callbacks=[BackdoorMetrics()])
    measured = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return str({name: found.hex() for name, found in digests(federation.client).items()}), measured


def test_weights_and_measures_do_not_depend_on_ranks_whatever_reading_changes():
    alone = ended(1)
    assert alone[1]
    assert on_ranks(2, ended, 2) == [alone, alone]
