import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.cohort import CohortSampler, assign_owners
from fl_lightning.errors import ConfigurationError

SIZES = torch.arange(100) % 37 + 1


def test_fixed_share_has_exactly_the_share_in_every_round():
    sampler = CohortSampler(clients_per_round=20, malicious_fraction=0.2)
    known = set(sampler.malicious_clients(5, 100).tolist())
    assert len(known) == 20
    for t in range(30):
        cohort = sampler.draw(5, t, SIZES)
        assert len(cohort) == 20
        assert int(cohort.malicious.sum()) == 4
        assert set(cohort.clients[cohort.malicious].tolist()) <= known
        assert not known & set(cohort.clients[~cohort.malicious].tolist())
        assert cohort.clients.tolist() == sorted(set(cohort.clients.tolist()))
        assert torch.equal(cohort.weights, SIZES[cohort.clients].float())


def test_a_share_that_is_not_whole_is_right_on_average():
    sampler = CohortSampler(clients_per_round=15, malicious_fraction=0.1)
    counts = [int(sampler.draw(0, t, SIZES).malicious.sum()) for t in range(400)]
    assert set(counts) == {1, 2}
    assert abs(sum(counts) / 400 - 1.5) < 0.1


def test_random_pool_is_hypergeometric():
    """With 20 of 100 malicious and 20 sampled, more than five malicious have probability .173."""
    sampler = CohortSampler(clients_per_round=20, malicious_fraction=0.2, participation="random_pool")
    counts = torch.tensor([int(sampler.draw(0, t, SIZES).malicious.sum()) for t in range(2000)])
    assert abs(float(counts.float().mean()) - 4) < 0.15
    assert abs(float((counts > 5).float().mean()) - 0.173) < 0.03


def test_rounds_and_seeds_differ_and_repeat():
    sampler = CohortSampler()
    first = sampler.draw(0, 0, SIZES).clients
    assert torch.equal(first, sampler.draw(0, 0, SIZES).clients)
    assert not torch.equal(first, sampler.draw(0, 1, SIZES).clients)
    assert not torch.equal(first, sampler.draw(1, 0, SIZES).clients)
    assert not torch.equal(sampler.malicious_clients(0, 100), sampler.malicious_clients(1, 100))


def test_attackers_are_numbered_once_for_the_experiment():
    sampler = CohortSampler(clients_per_round=20, malicious_fraction=0.2)
    malicious = sampler.malicious_clients(5, 100)
    for t in range(5):
        cohort = sampler.draw(5, t, SIZES)
        assert torch.equal(cohort.malicious, cohort.attackers >= 0)
        assert torch.equal(malicious[cohort.attackers[cohort.malicious]], cohort.clients[cohort.malicious])


def test_a_fixed_frequency_puts_attackers_into_every_so_many_rounds():
    sampler = CohortSampler(participation="fixed_frequency", interval=3, attackers=2, start_round=1)
    counts = [int(sampler.draw(0, t, SIZES).malicious.sum()) for t in range(9)]
    assert counts == [0, 2, 0, 0, 2, 0, 0, 2, 0]
    malicious = set(sampler.malicious_clients(0, 100).tolist())
    away = sampler.draw(0, 2, SIZES).clients.tolist()
    assert len(away) == 20
    assert not malicious & set(away)
    assert sampler.malicious_per_round == 2


def test_a_single_shot_lets_each_attacker_take_part_once():
    sampler = CohortSampler(participation="single_shot", rounds=(1, 3, 3))
    malicious = sampler.malicious_clients(0, 100).tolist()
    seen = []
    for t in range(6):
        cohort = sampler.draw(0, t, SIZES)
        seen.append(cohort.clients[cohort.malicious].tolist())
        assert len(cohort) == 20
    assert seen == [[], [malicious[0]], [], malicious[1:3], [], []]
    assert sampler.malicious_per_round == 2


@pytest.mark.parametrize("participation", ["fixed_share", "random_pool"])
def test_before_the_start_round_malicious_clients_take_part_as_benign_ones(participation):
    late = CohortSampler(participation=participation, start_round=2)
    always = CohortSampler(participation=participation)
    for t in range(4):
        assert torch.equal(late.draw(0, t, SIZES).clients, always.draw(0, t, SIZES).clients)
        assert bool(late.draw(0, t, SIZES).malicious.any()) == (t >= 2)


def test_without_malicious_clients_there_are_none_in_any_mode():
    for sampler in (
        CohortSampler(malicious_fraction=0.0),
        CohortSampler(malicious_fraction=0.0, participation="fixed_frequency"),
        CohortSampler(malicious_fraction=0.0, participation="single_shot", rounds=(0,)),
    ):
        sampler.check(100)
        cohort = sampler.draw(0, 0, SIZES)
        assert len(cohort) == 20
        assert not cohort.malicious.any()
        assert sampler.malicious_per_round == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 8))
def test_owners_share_the_samples_evenly(sizes, world):
    owner = assign_owners(torch.tensor(sizes), world)
    loads = [sum(s for s, o in zip(sizes, owner.tolist(), strict=True) if o == rank) for rank in range(world)]
    assert sum(loads) == sum(sizes)
    # Greedy assignment never leaves a rank above the mean by more than one client.
    assert max(loads) <= sum(sizes) / world + max(sizes)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"clients_per_round": 0}, "clients_per_round must be at least 1, got 0"),
        ({"clients_per_round": "5"}, "cohort.clients_per_round must be a whole number, got '5' of type str; give an int"),
        ({"clients_per_round": None}, "clients_per_round must be a whole number, got None"),
        ({"clients_per_round": 5.0}, "clients_per_round must be a whole number, got 5.0"),
        ({"malicious_fraction": "0.1"}, "malicious_fraction must be a number, got '0.1' of type str; give a float"),
        ({"start_round": None}, "start_round must be a whole number, got None"),
        ({"interval": 2.5}, "interval must be a whole number, got 2.5"),
        ({"attackers": [1]}, "attackers must be a whole number"),
        ({"participation": "single_shot", "rounds": 3}, "cohort.rounds must be a list of whole numbers, got 3"),
        ({"participation": "single_shot", "rounds": None}, "cohort.rounds must be a list of whole numbers, got None"),
        ({"participation": "single_shot", "rounds": ["3"]}, "each of model.cohort.rounds must be a whole number, got '3'"),
        ({"malicious_fraction": 1.0}, "malicious_fraction must lie in"),
        ({"malicious_fraction": -0.1}, "malicious_fraction must lie in"),
        ({"participation": "fixed"}, "participation must be one of fixed_share, random_pool, fixed_frequency, single_shot, "),
        ({"start_round": -1}, "start_round counts from 0, got -1"),
        ({"participation": "fixed_frequency", "interval": 0}, "interval must be at least 1, got 0"),
        ({"attackers": 2}, "attackers is for participation fixed_frequency, not fixed_share"),
        ({"rounds": (3,)}, "rounds names the rounds of the attack under participation single_shot, and only there"),
        ({"participation": "single_shot"}, "rounds names the rounds of the attack under participation single_shot"),
        ({"participation": "single_shot", "rounds": (3,), "start_round": 4}, r"rounds = \[3\]: not in the attack's window"),
    ],
)
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises(ConfigurationError, match=message):
        CohortSampler(**settings_)


def test_numbers_of_numpy_are_taken():
    sampler = CohortSampler(np.int64(5), np.float64(0.2), participation="single_shot", rounds=np.array([1, 2]))  # type: ignore[arg-type]
    assert sampler == CohortSampler(5, 0.2, participation="single_shot", rounds=(1, 2))
    assert type(sampler.clients_per_round) is int


def test_too_few_clients_are_refused_with_their_numbers():
    with pytest.raises(ConfigurationError, match="clients_per_round = 20, but the data are dealt out to 19"):
        CohortSampler(clients_per_round=20).check(19)
    # 3 clients at .2 make one malicious, but a round of 3 may ask for one: fine; 40% of 5 in a round of 5 is two of two.
    CohortSampler(clients_per_round=3, malicious_fraction=0.2).check(5)
    with pytest.raises(ConfigurationError, match="makes 0 malicious"):
        CohortSampler(clients_per_round=2, malicious_fraction=0.1).check(4)
