"""Root sets: drawn as asked, and out of reach of clients and attackers."""

import pytest
import torch

from fl_lightning import FederatedDataModule
from fl_lightning.data import IID, ByKey, RootSet, TensorSamples
from fl_lightning.errors import ConfigurationError

TARGETS = torch.arange(100) % 5


def draw(root: RootSet, seed: int = 0) -> torch.Tensor:
    return root.draw(TARGETS, torch.Generator().manual_seed(seed))


def test_the_root_set_is_drawn_without_repeats():
    drawn = draw(RootSet(samples=30))
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == 30
    assert not torch.equal(drawn, draw(RootSet(samples=30), seed=1))


@pytest.mark.parametrize(("bias", "count"), [(0.0, 0), (0.5, 10), (0.33, 7), (1.0, 20)])
def test_a_biased_root_set_holds_its_share_of_the_class(bias, count):
    drawn = draw(RootSet(samples=20, biased_class=3, bias=bias))
    assert len(drawn.unique()) == 20
    assert int((TARGETS[drawn] == 3).sum()) == count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": "5"}, "data.root.samples must be a whole number, got '5' of type str; give an int"),
        ({"bias": None}, "data.root.bias must be a number, got None"),
        ({"biased_class": 1.5}, "data.root.biased_class must be a whole number, got 1.5"),
        ({"samples": 0}, "data.root.samples must be at least 1, got 0"),
        ({"bias": 1.5}, r"data.root.bias must lie in \[0, 1\], got 1.5"),
        ({"samples": 100}, "data.root.samples is 100, but there are 100 training samples"),
        ({"samples": 30, "biased_class": 3, "bias": 1.0}, "wants 30 samples of class 3 and 0 of others, but .* has 20 and 80"),
    ],
)
def test_what_cannot_be_drawn_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        draw(RootSet(**settings))


def test_clients_and_attackers_never_see_the_root_set():
    inputs = torch.arange(100.0)[:, None]
    train, test = TensorSamples(inputs, TARGETS), TensorSamples(inputs[:10] + 1000, TARGETS[:10])
    data = FederatedDataModule.from_datasets(
        train, test, partition=ByKey(), keys=torch.arange(100) // 10, root=RootSet(samples=20)
    )
    data.setup("fit")
    assert isinstance(data.root_samples, TensorSamples)
    assert isinstance(data.train, TensorSamples)
    root = set(data.root_samples.inputs.flatten().tolist())
    assert len(root) == 20
    pool = data.train.inputs.flatten().tolist()
    assert sorted([*root, *pool]) == list(range(100))
    assert torch.equal(data.root_samples.targets, (data.root_samples.inputs.flatten() % 5).long())
    for client in range(len(data.clients)):
        samples = data.client(client)
        assert isinstance(samples, TensorSamples)
        of_client = samples.inputs.flatten()
        assert len({int(value) // 10 for value in of_client}) == 1  # keys went along
        assert not root & set(of_client.tolist())


def test_the_partition_of_the_others_depends_on_the_seed_alone():
    def clients(seed: int) -> list[list[int]]:
        samples = TensorSamples(torch.zeros(100, 1), TARGETS)
        data = FederatedDataModule.from_datasets(
            samples, samples, partition=IID(num_clients=4), root=RootSet(samples=20), seed=seed
        )
        data.setup("fit")
        return [indices.tolist() for indices in data.clients]

    assert clients(0) == clients(0) != clients(1)
