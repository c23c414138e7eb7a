"""Partitions: every index has its owner, sizes keep their bounds, and nothing but the generator is random."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data import (
    ClassesPerClient,
    DirichletOverClasses,
    DirichletOverClients,
    DirichletSizes,
    LogNormalSizes,
    PowerLawSizes,
    Shards,
)
from fl_lightning.data.partition import IID, ByKey, Dirichlet, FullCopies, PackedKeys, Partition, cut
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


def labels(n: int, num_classes: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, num_classes, (n,), generator=generator(seed, "labels"))


def assert_every_index_once(parts: list[torch.Tensor], n: int) -> None:
    assert all(part.dtype == torch.int64 for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n))


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 200), num_clients=st.integers(1, 30), seed=st.integers(0, 5))
def test_iid_deals_every_index_once_and_evenly(n: int, num_clients: int, seed: int) -> None:
    partition = IID(num_clients=num_clients)
    if n < num_clients:
        with pytest.raises(ConfigurationError, match="fewer clients"):
            partition(labels(n), generator(seed, "p"))
        return
    parts = partition(labels(n), generator(seed, "p"))
    sizes = [len(part) for part in parts]
    assert len(parts) == num_clients == partition.num_clients
    assert max(sizes) - min(sizes) <= 1
    assert_every_index_once(parts, n)


@settings(deadline=None, max_examples=40)
@given(
    num_clients=st.integers(1, 12),
    per_client=st.integers(30, 60),
    alpha=st.sampled_from([0.5, 1.0, 10.0]),
    min_samples=st.integers(1, 10),
    num_classes=st.integers(5, 10),
    seed=st.integers(0, 100),
)
def test_dirichlet_deals_every_index_once_and_enough_to_all(
    num_clients: int, per_client: int, alpha: float, min_samples: int, num_classes: int, seed: int
) -> None:
    targets = labels(num_clients * per_client, num_classes, seed)
    partition = Dirichlet(num_clients=num_clients, alpha=alpha, min_samples=min_samples, max_draws=2000)
    parts = partition(targets, generator(seed, "p"))
    assert len(parts) == num_clients
    assert min(len(part) for part in parts) >= min_samples
    assert_every_index_once(parts, len(targets))


def test_dirichlet_passes_an_even_share_with_the_last_class_only() -> None:
    targets = labels(20_000)
    parts = Dirichlet(num_clients=40, alpha=0.3)(targets, generator(0, "p"))
    passed = 0
    for part in parts:
        held = targets[part].bincount(minlength=10)
        last = int(held.nonzero().max())  # classes are dealt in ascending order
        assert int(held[:last].sum()) < 20_000 / 40
        passed += len(part) > 20_000 / 40
    assert passed > 0  # or the cap would not have been put to the test


def test_dirichlet_without_skew_is_nearly_even_and_with_skew_is_not() -> None:
    targets = labels(10_000)

    def largest_class_share(alpha: float) -> float:
        parts = Dirichlet(num_clients=10, alpha=alpha)(targets, generator(0, "p"))
        return sum(float(targets[part].bincount().max()) / len(part) for part in parts) / len(parts)

    assert largest_class_share(1000.0) < 0.15
    assert largest_class_share(0.1) > 0.35


def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution() -> None:
    # One class only, so that no client is full before it is dealt: sizes / n is one draw of Dir(alpha).
    partition = Dirichlet(num_clients=4, alpha=0.5, min_samples=1, max_draws=1)
    classes, draws = [torch.arange(10_000)], generator(0, "p")
    shares = torch.stack([partition._draw(classes, 10_000, draws)[1] for _ in range(2000)]) / 10_000
    assert torch.allclose(shares.mean(0), torch.full((4,), 0.25), atol=0.02)
    assert torch.allclose(shares.var(0), torch.full((4,), 0.25 * 0.75 / (4 * 0.5 + 1)), atol=0.008)


def test_dirichlet_shuffles_each_client() -> None:
    targets = torch.arange(1000) % 10
    for part in Dirichlet(num_clients=5)(targets, generator(0, "p")):
        assert not torch.equal(part, part.sort().values)
        by_class = targets[part]
        assert not torch.equal(by_class, by_class.sort().values)


def test_dirichlet_takes_a_random_part_of_each_class() -> None:
    owner = torch.empty(1000, dtype=torch.int64)
    targets = torch.arange(1000) % 10
    for client, part in enumerate(Dirichlet(num_clients=5)(targets, generator(0, "p"))):
        owner[part] = client
    of_class = owner[targets == 0]
    assert not torch.equal(of_class, of_class.sort().values)  # or the first client would hold the first images


def test_dirichlet_gives_up_with_numbers_and_a_remedy() -> None:
    partition = Dirichlet(num_clients=20, alpha=0.01, min_samples=20, max_draws=3)
    with pytest.raises(ConfigurationError, match=r"min_samples is 20, but in 3 draws .* larger alpha \(now 0.01\)"):
        partition(labels(1000), generator(0, "p"))


def test_dirichlet_skips_classes_that_do_not_occur() -> None:
    targets = labels(300, 2) * 7  # classes 0 and 7 only
    assert_every_index_once(Dirichlet(num_clients=3, min_samples=1)(targets, generator(0, "p")), 300)


def test_cut_is_at_floored_cumulative_shares() -> None:
    counts = cut(10, torch.tensor([1.0, 2.0, 5.0, 1.0], dtype=torch.float64), torch.tensor([True, True, False, True]))
    assert counts.tolist() == [2, 5, 0, 3]  # ends at 2.5, 7.5, 7.5, 10


def test_deal_shares_alike_where_all_mass_is_on_full_clients() -> None:
    counts = cut(9, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), torch.tensor([True, True, False]))
    assert counts.tolist() == [4, 5, 0]


def test_deal_gives_nothing_to_a_full_last_client_whatever_the_rounding() -> None:
    is_open = torch.tensor([True] * 99 + [False])
    for seed in range(50):
        counts = cut(5000, torch.rand(100, generator=generator(seed, "s"), dtype=torch.float64), is_open)
        assert counts[-1] == 0
        assert counts.sum() == 5000


def test_full_copies_give_everyone_everything() -> None:
    parts = FullCopies(num_clients=3)(labels(7), generator(0, "p"))
    assert [part.tolist() for part in parts] == [list(range(7))] * 3


def test_by_key_makes_one_client_per_key() -> None:
    keys = torch.tensor([30, 10, 30, 20, 10])
    parts = ByKey()(labels(5), generator(0, "p"), keys)
    assert [part.tolist() for part in parts] == [[1, 4], [3], [0, 2]]
    assert ByKey().num_clients is None


def test_by_key_needs_a_key_per_sample() -> None:
    with pytest.raises(ConfigurationError, match="without keys"):
        ByKey()(labels(5), generator(0, "p"))
    with pytest.raises(ConfigurationError, match="got 4 for 5"):
        ByKey()(labels(5), generator(0, "p"), torch.arange(4))


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), num_clients=st.integers(1, 12), seed=st.integers(0, 100))
def test_packed_keys_deals_whole_groups_almost_evenly(sizes: list[int], num_clients: int, seed: int) -> None:
    keys = torch.repeat_interleave(7 * torch.arange(len(sizes)) - 3, torch.tensor(sizes))
    keys = keys[torch.randperm(len(keys), generator=generator(seed, "order"))]
    partition = PackedKeys(num_clients=num_clients)
    if len(sizes) < num_clients:
        with pytest.raises(ConfigurationError, match=f"have only {len(sizes)} distinct keys"):
            partition(labels(len(keys)), generator(seed, "p"), keys)
        return
    parts = partition(labels(len(keys)), generator(seed, "p"), keys)
    assert len(parts) == num_clients == partition.num_clients
    assert_every_index_once(parts, len(keys))
    held = [set(keys[part].tolist()) for part in parts]
    assert sum(map(len, held)) == len(sizes)  # no group is in two clients
    assert all(held)
    assert max(map(len, parts)) - min(map(len, parts)) <= max(sizes)


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 50), min_size=5, max_size=20, unique=True), num_clients=st.integers(1, 5))
def test_packed_keys_gives_the_largest_group_left_to_the_smallest_client(sizes: list[int], num_clients: int) -> None:
    # No two groups are of one size, so nothing is left to chance but which of two equal clients is served first.
    keys = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    loads = [0] * num_clients
    for size in sorted(sizes, reverse=True):
        loads[loads.index(min(loads))] += size
    parts = PackedKeys(num_clients=num_clients)(labels(len(keys)), generator(0, "p"), keys)
    assert sorted(map(len, parts)) == sorted(loads)


def test_packed_keys_needs_a_key_per_sample() -> None:
    with pytest.raises(ConfigurationError, match="is PackedKeys, but these data come without keys"):
        PackedKeys(num_clients=2)(labels(5), generator(0, "p"))
    with pytest.raises(ConfigurationError, match="got 4 for 5"):
        PackedKeys(num_clients=2)(labels(5), generator(0, "p"), torch.arange(4))


def test_packed_keys_packs_equal_groups_by_chance() -> None:
    keys = torch.arange(60) // 3

    def packed(seed: int) -> list[list[int]]:
        return [part.tolist() for part in PackedKeys(num_clients=4)(labels(60), generator(seed, "p"), keys)]

    assert packed(0) == packed(0)
    assert packed(0) != packed(1)
    assert [len(part) for part in packed(0)] == [15] * 4


@pytest.mark.parametrize("partition", [IID(num_clients=7), Dirichlet(num_clients=7)], ids=["iid", "dirichlet"])
def test_the_generator_decides(partition: Partition) -> None:
    targets = labels(700)

    def split(seed: int) -> list[list[int]]:
        return [part.tolist() for part in partition(targets, generator(seed, "p"))]

    torch.manual_seed(1)
    first = split(0)
    torch.manual_seed(2)
    assert split(0) == first
    assert split(1) != first


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IID(num_clients=0), "num_clients must be at least 1, got 0"),
        (lambda: FullCopies(num_clients=0), "num_clients must be at least 1, got 0"),
        (lambda: PackedKeys(num_clients=0), "num_clients must be at least 1, got 0"),
        (lambda: Dirichlet(num_clients=-1), "num_clients must be at least 1, got -1"),
        (lambda: Dirichlet(alpha=0.0), "alpha must be finite and greater than 0, got 0.0"),
        (lambda: Dirichlet(alpha=float("nan")), "alpha must be finite"),
        (lambda: Dirichlet(min_samples=0), "min_samples must be at least 1, got 0"),
        (lambda: Dirichlet(max_draws=0), "max_draws must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


COUNTED = [
    IID,
    FullCopies,
    PackedKeys,
    Dirichlet,
    DirichletOverClients,
    DirichletOverClasses,
    DirichletSizes,
    LogNormalSizes,
    PowerLawSizes,
    Shards,
    ClassesPerClient,
]


@pytest.mark.parametrize("value", ["4", None, 4.0, [4], True, float("nan")])
@pytest.mark.parametrize("kind", COUNTED)
def test_a_number_of_clients_of_another_type_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"data\.partition\.num_clients must be a whole number, got .*; give an int"
    ) as found:
        kind(num_clients=value)
    assert repr(value) in str(found.value)


@pytest.mark.parametrize("kind", COUNTED)
def test_numpys_whole_numbers_are_taken(kind: Any) -> None:
    assert type(kind(num_clients=np.int64(4)).num_clients) is int


@pytest.mark.parametrize("value", ["1", None, [1.0], True, 1j])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (Dirichlet, "alpha"),
        (DirichletOverClients, "alpha"),
        (DirichletOverClasses, "alpha"),
        (DirichletSizes, "beta"),
        (LogNormalSizes, "sigma"),
        (PowerLawSizes, "exponent"),
    ],
)
def test_a_skew_of_another_type_is_refused(kind: Any, field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"data\.partition\.{field} must be a number, got .*; give a float"):
        kind(**{field: value})
    assert type(getattr(kind(**{field: np.float32(0.5)}), field)) is float


@pytest.mark.parametrize(
    "partition",
    [IID(num_clients=1), FullCopies(num_clients=1), Dirichlet(num_clients=1), ByKey(), PackedKeys(num_clients=1)],
)
def test_no_samples_are_refused(partition: Partition) -> None:
    with pytest.raises(ConfigurationError, match="more data"):
        partition(labels(0), generator(0, "p"), labels(0))


def test_too_few_samples_for_the_minimum_are_refused_without_a_draw() -> None:
    with pytest.raises(ConfigurationError, match="takes 1000"):
        Dirichlet(num_clients=100, min_samples=10)(labels(999), generator(0, "p"))
