"""Quantity skew: sizes as the three laws say, every sample one owner, and nobody below the least."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data import DirichletSizes, LogNormalSizes, PowerLawSizes
from fl_lightning.data.quantity_skew import whole_sizes
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

LAWS = [DirichletSizes, LogNormalSizes, PowerLawSizes]


def sizes(partition, n: int, seed: int = 0) -> list[int]:
    parts = partition(torch.zeros(n, dtype=torch.int64), generator(seed, "p"))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(n))
    return [len(part) for part in parts]


@settings(deadline=None, max_examples=40)
@given(law=st.sampled_from(LAWS), num_clients=st.integers(1, 30), n=st.integers(1, 200), least=st.integers(1, 5))
def test_every_sample_has_one_owner_and_everyone_enough(law, num_clients, n, least):
    partition = law(num_clients=num_clients, min_samples=least)
    if n < num_clients * least:
        with pytest.raises(ConfigurationError, match="fewer clients or more data"):
            sizes(partition, n)
        return
    found = sizes(partition, n)
    assert len(found) == num_clients
    assert min(found) >= least


@pytest.mark.parametrize("law", LAWS)
def test_ten_thousand_clients_are_filled(law):
    assert min(sizes(law(num_clients=10_000), 50_000)) == 1


def test_shares_of_a_power_law():
    found = sizes(PowerLawSizes(num_clients=5), 10_000)
    expected = 10_000 / np.arange(1, 6) / (1 / np.arange(1, 6)).sum()
    assert np.abs(sorted(found, reverse=True) - expected).max() < 1
    assert found != sorted(found, reverse=True)  # ranks are drawn
    assert sizes(PowerLawSizes(num_clients=3, exponent=0), 9) == [3, 3, 3]


def test_shares_of_a_log_normal_law():
    found = np.array(sizes(LogNormalSizes(num_clients=2000, sigma=1.0), 10**6))
    logs = np.log(found[found > 1])
    assert abs(logs.std() - 1) < 5 / (2 * 2000) ** 0.5
    assert sizes(LogNormalSizes(num_clients=4, sigma=0), 10) == [3, 3, 2, 2]


def test_shares_of_a_dirichlet_law():
    found = np.array([sizes(DirichletSizes(num_clients=4, beta=0.5), 10_000, seed) for seed in range(400)]) / 10_000
    variance = 0.25 * 0.75 / (4 * 0.5 + 1)
    assert np.abs(found.mean(0) - 0.25).max() < 5 * (variance / 400) ** 0.5
    assert np.abs(found.var(0) - variance).max() < 5 * (variance * 0.75 / 400) ** 0.5


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 200), st.integers(0, 5))
def test_whole_sizes_are_the_nearest_that_keep_the_least(weights, extra, least):
    """Against setting to the least, one after the other, whoever falls below."""
    if not sum(weights) > 0:
        weights = [1.0] * len(weights)
    shares = np.array(weights) / sum(weights)
    n = len(shares) * least + extra
    found = whole_sizes(n, torch.tensor(shares, dtype=torch.float64), least).numpy()
    assert found.sum() == n
    assert found.min() >= least
    fixed: set[int] = set()
    while True:
        free = [i for i in range(len(shares)) if i not in fixed]
        mass, left = shares[free].sum(), n - least * len(fixed)
        exact = {i: shares[i] * left / mass if mass > 0 else left / len(free) for i in free}
        below = {i for i in free if exact[i] < least}
        if not below:
            break
        fixed |= below
    assert all(found[i] == least or abs(found[i] - least) <= 1 for i in fixed)
    assert all(abs(found[i] - exact[i]) < 1 + 1e-9 for i in free)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DirichletSizes(beta=0), r"data\.partition\.beta must be finite and greater than 0, got 0"),
        (lambda: LogNormalSizes(sigma=-1), "sigma must be finite and at least 0, got -1"),
        (lambda: LogNormalSizes(sigma=float("inf")), "sigma must be finite"),
        (lambda: PowerLawSizes(exponent=float("nan")), "exponent must be finite"),
        (lambda: PowerLawSizes(min_samples=0), "min_samples must be at least 1"),
        (lambda: DirichletSizes(num_clients=0), "num_clients must be at least 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
