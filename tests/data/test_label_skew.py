"""Label skew by Dirichlet distributions: every sample one owner, sizes as promised, shares as drawn, any number of clients."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.data import DirichletOverClasses, DirichletOverClients, Partition
from fl_lightning.data.label_counts import dealt_by, dirichlet_shares, fill_up
from fl_lightning.data.label_skew import take
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


def labels(n: int, num_classes: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, num_classes, (n,), generator=generator(seed, "labels"))


def dealt(partition: Partition, targets: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """(N, C) samples per client and class, after a look whether every sample has one owner."""
    parts = partition(targets, generator(seed, "p"))
    assert len(parts) == partition.num_clients
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(targets)))
    return torch.stack([targets[part].bincount(minlength=int(targets.max()) + 1) for part in parts])


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 300),
    num_clients=st.integers(1, 40),
    alpha=st.sampled_from([1e-6, 0.01, 0.5, 1.0, 100.0]),
    least=st.integers(1, 4),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_every_client_has_enough_and_every_sample_one_owner(n, num_clients, alpha, least, num_classes, seed):
    targets = labels(n, num_classes, seed)
    varying = DirichletOverClients(num_clients=num_clients, alpha=alpha, min_samples=least)
    if n < num_clients * least:
        with pytest.raises(ConfigurationError, match="fewer clients or more data"):
            varying(targets, generator(seed, "p"))
    else:
        assert int(dealt(varying, targets, seed).sum(1).min()) >= least
    fixed = DirichletOverClasses(num_clients=num_clients, alpha=alpha)
    if n < num_clients:
        with pytest.raises(ConfigurationError, match="fewer clients or more data"):
            fixed(targets, generator(seed, "p"))
    else:
        sizes = dealt(fixed, targets, seed).sum(1)
        assert sizes.tolist() == [n // num_clients + (i < n % num_clients) for i in range(num_clients)]


@pytest.mark.parametrize(
    "partition",
    [
        DirichletOverClients(num_clients=10_000, alpha=0.5),
        DirichletOverClients(num_clients=10_000, alpha=0.01),
        DirichletOverClasses(num_clients=10_000, alpha=0.5),
    ],
)
def test_ten_thousand_clients_are_filled(partition):
    assert int(dealt(partition, labels(50_000)).sum(1).min()) >= 1


def test_shares_over_clients_have_the_mean_and_variance_of_the_distribution():
    partition = DirichletOverClients(num_clients=4, alpha=0.5)
    targets = torch.zeros(10_000, dtype=torch.int64)
    shares = torch.stack([dealt(partition, targets, seed)[:, 0] for seed in range(400)]) / 10_000
    variance = 0.25 * 0.75 / (4 * 0.5 + 1)
    # Five standard errors of a mean and of a variance of bounded variates, 400 each.
    assert torch.allclose(shares.mean(0), torch.full((4,), 0.25), atol=5 * (variance / 400) ** 0.5)
    assert torch.allclose(shares.var(0), torch.full((4,), variance), atol=5 * (variance * 0.75 / 400) ** 0.5)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_clients_own_distributions_are_as_skewed_as_alpha_says(alpha):
    """The effective number of classes, 1 / sum of q^2, against another generator's Dirichlet."""
    partition = DirichletOverClasses(num_clients=300, alpha=alpha)
    prior, draws = torch.full((10,), 0.1, dtype=torch.float64), generator(0, "q")
    found = np.array([float(1 / partition._draw(prior, draws).square().sum()) for _ in range(4000)])
    reference = 1 / np.square(np.random.default_rng(0).dirichlet([alpha / 10] * 10, size=4000)).sum(1)
    error = 5 * np.hypot(reference.std(), found.std()) / 4000**0.5
    assert abs(found.mean() - reference.mean()) < error


def test_alpha_of_zero_gives_one_class_until_it_runs_out():
    counts = dealt(DirichletOverClasses(num_clients=20, alpha=0), torch.arange(1000) % 10)
    assert ((counts > 0).sum(1) == 1).sum() >= 10
    assert torch.equal(counts.sum(1), torch.full((20,), 50))


def test_the_prior_may_be_that_of_the_data():
    targets = torch.tensor([0] * 900 + [1] * 100)
    uniform, data = (
        dealt(DirichletOverClasses(num_clients=10, alpha=1e6, prior=prior), targets)[0, 1]  # pyrefly: ignore[bad-argument-type]
        for prior in ("uniform", "data")
    )
    assert uniform > 30  # of 100 samples: about 50
    assert data < 25  # about 10


def test_draws_without_replacement_are_those_of_one_sample_at_a_time():
    """`take` until all is dealt out, against drawing sample by sample from the renormalised q."""
    q = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)

    def at_once(draws: torch.Generator) -> torch.Tensor:
        left, found, wanted = torch.tensor([2, 3, 9]), torch.zeros(3, dtype=torch.int64), 6
        while wanted:
            drawn = take(left, q, wanted, draws)
            found, wanted = found + drawn, wanted - int(drawn.sum())
        assert torch.equal(left + found, torch.tensor([2, 3, 9]))
        return found

    def slowly(draws: np.random.Generator) -> np.ndarray:
        left = np.array([2, 3, 9])
        for _ in range(6):
            chances = q.numpy() * (left > 0)
            left[draws.choice(3, p=chances / chances.sum())] -= 1
        return np.array([2, 3, 9]) - left

    draws, slow = generator(0, "take"), np.random.default_rng(0)
    fast = torch.stack([at_once(draws) for _ in range(2000)]).double()
    reference = np.stack([slowly(slow) for _ in range(2000)])
    error = 5 * np.hypot(fast.std(0).numpy(), reference.std(0)) / 2000**0.5
    assert (abs(fast.mean(0).numpy() - reference.mean(0)) <= error).all()


def test_what_q_has_nothing_on_is_taken_as_it_is_left():
    left = torch.tensor([0, 5, 5])
    q = torch.tensor([1.0, 0, 0], dtype=torch.float64)
    drawn = take(left, q, 10, generator(0, "t"))
    assert drawn[0] == 0
    assert int(drawn.sum()) > 0
    assert torch.equal(left + drawn, torch.tensor([0, 5, 5]))


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 0.01, 1.0, 1e6])
def test_shares_are_finite_for_any_alpha(alpha):
    shares = dirichlet_shares(torch.full((1000,), alpha, dtype=torch.float64), generator(0, "s"))
    assert shares.isfinite().all()
    assert abs(float(shares.sum()) - 1) < 1e-12
    assert alpha > 1e-3 or float(shares.max()) > 0.9


def test_the_largest_client_gives_of_its_largest_class():
    counts = torch.tensor([[5, 1], [0, 0], [2, 2]])
    assert fill_up(counts, 2) == 2
    assert counts.tolist() == [[3, 1], [2, 0], [2, 2]]
    assert fill_up(counts, 2) == 0


def test_clients_get_random_samples_in_random_order():
    targets = torch.arange(600) % 2
    counts = torch.tensor([[100, 0], [50, 150], [100, 100]])
    parts = dealt_by(targets, counts, generator(0, "d"))
    for part, row in zip(parts, counts, strict=True):
        assert torch.equal(targets[part].bincount(minlength=2), row)
        assert not torch.equal(part, part.sort().values)
    assert len(torch.cat(parts).unique()) == 500
    assert float(parts[0].double().mean()) > 200  # not the first samples of the class


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DirichletOverClients(alpha=0), r"data\.partition\.alpha must be finite and greater than 0, got 0"),
        (lambda: DirichletOverClients(alpha=float("nan")), "alpha must be finite"),
        (lambda: DirichletOverClients(min_samples=0), "min_samples must be at least 1"),
        (lambda: DirichletOverClients(num_clients=0), "num_clients must be at least 1"),
        (lambda: DirichletOverClasses(alpha=-1), "alpha must be finite and at least 0, got -1; 1 is usual"),
        (lambda: DirichletOverClasses(prior="own"), "prior must be uniform or data, got 'own'"),  # pyrefly: ignore
    ],
)
def test_settings_out_of_bounds_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
