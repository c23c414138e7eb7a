"""Few classes per client: shards of the sorted data, and a given number of classes, against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data import ClassesPerClient, Shards
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


def labels(n: int, num_classes: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, num_classes, (n,), generator=generator(seed, "labels"))


def assert_every_index_once(parts: list[torch.Tensor], n: int) -> None:
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 200),
    num_clients=st.integers(1, 20),
    k=st.integers(1, 5),
    classes=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_shards_are_stretches_of_the_sorted_data(n, num_clients, k, classes, seed):
    targets, partition = labels(n, classes, seed), Shards(num_clients=num_clients, shards_per_client=k)
    if n < k * num_clients:
        with pytest.raises(ConfigurationError, match="fewer clients or more data"):
            partition(targets, generator(seed, "p"))
        return
    parts = partition(targets, generator(seed, "p"))
    assert_every_index_once(parts, n)
    least = k * (n // (k * num_clients))
    assert all(least <= len(part) <= least + k for part in parts)
    straddled = len(targets.unique()) - 1  # a shard begins another class at most as often as classes change
    assert sum(len(targets[part].unique()) for part in parts) <= k * num_clients + straddled


def test_shards_are_those_of_the_paper():
    """600 MNIST-like samples: 100 clients hold two shards of 300 / 100 samples each, most of them of two classes."""
    targets = torch.arange(600) % 10
    parts = Shards(num_clients=100)(targets, generator(0, "p"))
    held = torch.tensor([len(targets[part].unique()) for part in parts])
    assert {len(part) for part in parts} == {6}
    assert held.max() == 2  # shards of 3 divide a class of 60
    assert (held == 2).sum() > 70  # nine of ten pairs of shards, up to five standard errors
    assert not torch.equal(parts[0], parts[0].sort().values)


@settings(deadline=None, max_examples=40)
@given(num_clients=st.integers(1, 30), k=st.integers(1, 10), classes=st.integers(1, 10), seed=st.integers(0, 9))
def test_clients_hold_k_classes_and_share_them_evenly(num_clients, k, classes, seed):
    targets = torch.arange(40 * classes) % classes
    partition = ClassesPerClient(num_clients=num_clients, classes_per_client=k)
    if not k <= classes <= k * num_clients:
        with pytest.raises(ConfigurationError, match=rf"classes_per_client is {k}, but .* have {classes} classes"):
            partition(targets, generator(seed, "p"))
        return
    parts = partition(targets, generator(seed, "p"))
    assert_every_index_once(parts, len(targets))
    held = torch.stack([targets[part].bincount(minlength=classes) for part in parts])
    assert ((held > 0).sum(1) == k).all()
    for column in held.T:
        owned = column[column > 0]
        assert int(owned.max() - owned.min()) <= 1


def test_classes_are_drawn():
    targets = labels(2000)
    one, other = (ClassesPerClient(num_clients=20)(targets, generator(seed, "p")) for seed in (0, 1))
    assert [set(targets[part].tolist()) for part in one] != [set(targets[part].tolist()) for part in other]


@pytest.mark.parametrize("partition", [Shards(num_clients=10_000), ClassesPerClient(num_clients=10_000)])
def test_ten_thousand_clients_are_filled(partition):
    parts = partition(labels(50_000), generator(0, "p"))
    assert_every_index_once(parts, 50_000)
    assert min(map(len, parts)) >= 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shards(shards_per_client=0), "shards_per_client must be at least 1, got 0"),
        (lambda: ClassesPerClient(classes_per_client=0), "classes_per_client must be at least 1, got 0"),
        (
            lambda: ClassesPerClient(num_clients=3, classes_per_client=4)(labels(90, 3), generator(0, "p")),
            r"have 3 classes, which 3 clients .*use a number from 1 to 3$",
        ),
        (
            lambda: ClassesPerClient(num_clients=3, classes_per_client=1)(labels(90, 5), generator(0, "p")),
            "use a number from 2 to 5 or more clients",
        ),
        (
            lambda: ClassesPerClient(num_clients=20, classes_per_client=2)(torch.tensor([0] * 99 + [1]), generator(0, "p")),
            "class 1 has 1 samples for the 20 of 20 clients that hold it",
        ),
    ],
)
def test_what_cannot_be_filled_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
