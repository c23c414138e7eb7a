"""The Pachinko allocation: every sample one owner, chances as the definition has them, exhausted classes as a slow loop."""

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data import Pachinko, pachinko
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


def cifar100(each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes and coarse classes of so many images of each of 100 classes, where a coarse class's are not neighbours."""
    targets = torch.arange(100 * each) % 100
    return targets, targets % 20


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 200),
    num_clients=st.integers(1, 30),
    alpha=st.sampled_from([1e-6, 0.1, 10.0]),
    beta=st.sampled_from([1e-6, 0.1, 10.0]),
    coarse=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_sample_has_one_owner_and_clients_are_of_one_size(n, num_clients, alpha, beta, coarse, seed):
    targets = 3 * torch.randint(0, 12, (n,), generator=generator(seed, "labels"))  # some classes do not occur
    partition, keys = Pachinko(num_clients=num_clients, alpha=alpha, beta=beta), targets % (3 * coarse)
    if n < num_clients:
        with pytest.raises(ConfigurationError, match="fewer clients or more data"):
            partition(targets, generator(seed, "p"), keys)
        return
    parts = partition(targets, generator(seed, "p"), keys)
    assert [len(part) for part in parts] == [n // num_clients + (i < n % num_clients) for i in range(num_clients)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n))


def test_with_the_defaults_it_is_the_training_half_of_fed_cifar_100():
    targets, keys = cifar100(500)
    parts = Pachinko()(targets, generator(0, "p"), keys)
    assert [len(part) for part in parts] == [100] * 500
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(50_000))
    coarse = torch.tensor([len(keys[part].unique()) for part in parts])
    assert coarse[:100].float().mean() < 8  # of 20; a client's own are a few


def test_two_samples_of_a_client_share_classes_as_often_as_the_distributions_say():
    """P(same coarse) = (a + 1) / (20 a + 1), P(same fine, given that) = (b + 1) / (5 b + 1), by Dirichlet's second moments."""
    families = [torch.arange(100)[torch.arange(100) % 20 == key] for key in range(20)]
    partition, draws, n = Pachinko(alpha=0.1, beta=10.0), generator(0, "two"), 2000
    coarse = fine = 0
    for _ in range(n):
        counts = partition._draw(torch.full((100,), 10**6), families, 2, draws)
        fine += int(counts.max()) == 2
        coarse += max(int(counts[family].sum()) for family in families) == 2
    for found, p in ((coarse, 1.1 / 3), (fine, 1.1 / 3 * 11 / 51)):
        assert abs(found / n - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1e-6  # the latter as nothing is put back


LEFT, Q, OWN = (1, 3, 2), (0.8, 0.2), ((0.9, 0.1), (1.0,))
FAMILIES = ((0, 1), (2,))


def outcomes(hierarchical: bool) -> dict[tuple[int, ...], float]:
    """The exact chances of what three draws leave, sample by sample; not hierarchical: q is renormalised over all classes."""

    @cache
    def chances(left: tuple[int, ...]) -> dict[int, float]:
        flat = {c: Q[f] * OWN[f][i] for f, family in enumerate(FAMILIES) for i, c in enumerate(family) if left[c]}
        if not hierarchical:
            return {c: p / sum(flat.values()) for c, p in flat.items()}
        found = {}
        open_ = [f for f, family in enumerate(FAMILIES) if any(left[c] for c in family)]
        for f in open_:
            inside = {c: OWN[f][i] for i, c in enumerate(FAMILIES[f]) if left[c]}
            for c, p in inside.items():
                found[c] = Q[f] / sum(Q[g] for g in open_) * p / sum(inside.values())
        return found

    states: dict[tuple[int, ...], float] = {LEFT: 1.0}
    for _ in range(3):
        after: dict[tuple[int, ...], float] = {}
        for left, p in states.items():
            for c, chance in chances(left).items():
                key = tuple(k - (i == c) for i, k in enumerate(left))
                after[key] = after.get(key, 0.0) + p * chance
        states = after
    return states


def test_what_is_exhausted_goes_to_its_own_family_and_chances_are_exact(monkeypatch):
    partition, draws, n = Pachinko(alpha=1.0, beta=2.0), generator(0, "exact"), 4000
    fixed = {(1.0, 2): Q, (2.0, 2): OWN[0], (2.0, 1): OWN[1]}  # by concentration and length
    monkeypatch.setattr(
        pachinko, "dirichlet_shares", lambda c, _: torch.tensor(fixed[float(c[0]), len(c)], dtype=torch.float64)
    )
    families, seen = [torch.tensor(family) for family in FAMILIES], Counter()
    for _ in range(n):
        left = torch.tensor(LEFT)
        counts = partition._draw(left, families, 3, draws)
        assert torch.equal(left + counts, torch.tensor(LEFT))
        seen[tuple(left.tolist())] += 1
    exact, flat = outcomes(hierarchical=True), outcomes(hierarchical=False)
    assert set(seen) <= set(exact)
    bounds = {outcome: 5 * (p * (1 - p) / n) ** 0.5 for outcome, p in exact.items()}
    assert all(abs(seen[outcome] / n - p) <= bounds[outcome] for outcome, p in exact.items())
    assert any(abs(flat[outcome] - p) > 2 * bounds[outcome] for outcome, p in exact.items())  # which the test can tell


def slowly(targets: np.ndarray, num_clients: int, draws: np.random.Generator) -> np.ndarray:
    """(N, C) samples per client and class of three coarse classes of two, one sample at a time."""
    left, counts = np.bincount(targets), np.zeros((num_clients, 6), dtype=int)
    for client in range(num_clients):
        q, own = draws.dirichlet([0.5] * 3), draws.dirichlet([2.0] * 2, size=3)
        for _ in range(len(targets) // num_clients):
            open_ = np.array([left[[f, f + 3]].sum() > 0 for f in range(3)])
            family = draws.choice(3, p=q * open_ / (q * open_).sum())
            inside = own[family] * (left[[family, family + 3]] > 0)
            label = family + 3 * draws.choice(2, p=inside / inside.sum())
            left[label] -= 1
            counts[client, label] += 1
    return counts


def test_whole_splits_are_as_those_of_a_loop_over_samples():
    """Per client, the mean number of its largest class and of its largest coarse class."""
    targets, draws, slow, n = torch.arange(60) % 6, generator(0, "whole"), np.random.default_rng(0), 150
    partition = Pachinko(num_clients=5, alpha=0.5, beta=2.0)
    fast = [[targets[part].bincount(minlength=6).numpy() for part in partition(targets, draws, targets % 3)] for _ in range(n)]
    found, reference = np.array(fast), np.array([slowly(targets.numpy(), 5, slow) for _ in range(n)])
    assert (found.sum(1) == reference.sum(1)).all()
    for largest in (lambda held: held.max(2), lambda held: (held[..., :3] + held[..., 3:]).max(2)):
        one, other = largest(found), largest(reference)
        error = 5 * np.hypot(one.std(0), other.std(0)) / n**0.5
        assert (abs(one.mean(0) - other.mean(0)) <= error).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pachinko(alpha=0), r"data\.partition\.alpha must be finite and greater than 0, got 0; 0\.1 is usual"),
        (lambda: Pachinko(beta=float("inf")), r"data\.partition\.beta must be finite"),
        (lambda: Pachinko(num_clients=0), "num_clients must be at least 1"),
        (lambda: Pachinko()(torch.zeros(9).long(), generator(0, "p")), "Pachinko, but these data come without keys"),
        (
            lambda: Pachinko(num_clients=2)(torch.tensor([4, 4, 7]), generator(0, "p"), torch.tensor([0, 1, 1])),
            r"class 4 has samples of the keys 0 and 1; use data with a hierarchy",
        ),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
