"""Counts of classes per client, against plain Python."""

from collections import Counter

import pytest
import torch

from fl_lightning.data import DirichletOverClients, FullCopies
from fl_lightning.data import dealt as dealing
from fl_lightning.data import skew as skews
from fl_lightning.data.skew import Skew

TARGETS = torch.randint(5, (400,), generator=torch.Generator().manual_seed(1))


def dealt(num_clients: int = 30) -> list[torch.Tensor]:
    partition = DirichletOverClients(num_clients=num_clients, alpha=0.3, min_samples=1)
    return partition(TARGETS, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("at_once", [1, 50, 2**24])
def test_counts_are_those_of_each_client(monkeypatch, at_once):
    monkeypatch.setattr(dealing, "AT_ONCE", at_once)
    clients = dealt()
    found = Skew.of(clients, TARGETS, 6)
    assert found.counts is not None
    assert found.sizes.tolist() == [len(part) for part in clients]
    for part, counts, lacking in zip(clients, found.counts.tolist(), found.lacking.tolist(), strict=True):
        expected = Counter(TARGETS[part].tolist())
        assert counts == [expected[label] for label in range(6)]
        assert lacking == 6 - len(expected)
    assert found.missing == [5]


def test_effective_classes_are_those_of_their_definition():
    clients = [torch.tensor([0, 1, 2, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([0, 1, 4]), torch.tensor([4])]
    targets = torch.tensor([0, 1, 2, 3, 1])
    found = Skew.of(clients, targets, 4)
    # Shares 1/4 four times; nobody; 1/3 and 2/3; one class alone.
    torch.testing.assert_close(found.effective_classes, torch.tensor([4.0, 9 / 5, 1.0], dtype=torch.float64))
    assert found.sizes.tolist() == [4, 0, 3, 1]


def test_clients_that_share_a_tensor_are_counted_once(monkeypatch):
    seen = []
    monkeypatch.setattr(skews, "class_counts", lambda group, *rest: seen.append(len(group)) or torch.zeros(len(group), 5))
    clients = FullCopies(num_clients=1000)(TARGETS, torch.Generator())
    found = Skew.of(clients, TARGETS, 5)
    assert seen == [1]
    assert found.counts is not None
    assert found.counts.shape == (1000, 5)


@pytest.mark.parametrize(("targets", "num_classes"), [(torch.zeros(400, dtype=torch.int64), 1), (TARGETS.float(), 5)])
def test_a_task_without_classes_has_sizes_alone(targets, num_classes):
    found = Skew.of(dealt(), targets, num_classes)
    assert found.counts is None
    assert int(found.sizes.sum()) == 400
