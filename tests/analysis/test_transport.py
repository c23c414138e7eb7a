import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning import ConfigurationError
from fl_lightning.analysis.transport import Cloud, costs, proposition6


def cloud(seed, n=5, inputs=2, d=3):
    draws = np.random.default_rng(seed)
    return Cloud(draws.normal(size=(n, inputs)), draws.integers(2, size=n), draws.normal(size=(n, d)))


def test_the_assignment_is_the_best_of_all():
    one, other = cloud(0), cloud(1)
    cost = costs(one, other, 0.7)
    for i, j in itertools.product(range(5), range(5)):
        apart = np.linalg.norm(one.inputs[i] - other.inputs[j]) + 0.7 * (one.labels[i] != other.labels[j])
        assert cost[i, j] == pytest.approx(apart)
    best = min(sum(cost[i, j] for i, j in enumerate(order)) / 5 for order in itertools.permutations(range(5)))
    assert proposition6(one, other, label_cost=0.7).wasserstein == pytest.approx(best)


@given(st.integers(0, 10_000), st.floats(0.01, 10))
def test_the_proposition_holds_on_its_samples(seed, label_cost):
    found = proposition6(cloud(seed), cloud(seed + 1), label_cost=label_cost)
    assert found.difference <= found.lipschitz * found.wasserstein * (1 + 1e-9)
    assert found.gamma >= found.bound - 1e-9


def test_a_label_alone_makes_a_difference():
    """The same input under two labels: without the label in the cost no constant would do."""
    one = Cloud(np.zeros((1, 1)), np.array([0]), np.array([[1.0]]))
    other = Cloud(np.zeros((1, 1)), np.array([1]), np.array([[-1.0]]))
    found = proposition6(one, other, label_cost=0.5)
    assert (found.wasserstein, found.lipschitz, found.difference) == (0.5, 4.0, 2.0)


def test_mistakes():
    with pytest.raises(ConfigurationError, match="equally many of both, got 5 and 4"):
        proposition6(cloud(0), cloud(1, n=4))
    with pytest.raises(ConfigurationError, match="label_cost must be more than 0"):
        proposition6(cloud(0), cloud(1), label_cost=0.0)
