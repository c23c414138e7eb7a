"""A little is enough: the shift, its largest hidden size, and that it hides."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import EPSILON, INF, NAN, attacked, bits, drawn, hostile_honest, last, submitted

from fl_lightning.attacks import ALIE
from fl_lightning.attacks.alie import largest_hidden_shift
from fl_lightning.errors import ConfigurationError


@pytest.mark.parametrize("z", [0.0, 0.3, 1.5, -2.0, 100.0])
@pytest.mark.parametrize("n", [2, 3, 8, 13])
def test_equals_its_definition(n, z):
    honest = hostile_honest(n)
    found = submitted(ALIE(z=z), honest, f=3)
    for column, values in zip(found, honest.double().numpy().T, strict=True):
        mean = math.fsum(values) / n
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        expected = mean - z * deviation
        assert abs(column - expected) <= EPSILON * abs(expected) + 1e-14 * (1 + abs(z)) * np.abs(values).max() + 2.0**-149


def test_by_hand():
    honest = torch.tensor([[1.0, 0.0, -4.0], [2.0, 0.0, 0.0], [6.0, 0.0, 4.0]])  # mean 3, 0, 0; variance 7, 0, 16
    assert submitted(ALIE(z=2.0), honest).tolist() == pytest.approx([3 - 2 * math.sqrt(7), 0, -8])
    assert submitted(ALIE(z=-0.5), honest).tolist() == pytest.approx([3 + 0.5 * math.sqrt(7), 0, 2])


def test_the_authors_deviation_is_the_biased_one():
    honest = hostile_honest(5)
    found = submitted(ALIE(z=1.5, biased=True), honest, f=3)
    values = honest.double().numpy()
    np.testing.assert_allclose(
        found, values.mean(0) - 1.5 * values.std(0), rtol=1e-5, atol=1e-6 * float(np.abs(values[:, :90]).max())
    )
    assert submitted(ALIE(z=2.0, biased=True), torch.tensor([[1.0], [3.0]])).item() == pytest.approx(0.0)  # 2 - 2 * 1


QUANTILES = {  # from a table of the normal distribution: z with Phi(z) = p
    (50, 20): 0.8416,  # s = 26 - 20 = 6, p = 24/30 = .8
    (50, 14): 0.4307,  # s = 12, p = 24/36
    (50, 12): 0.3360,  # s = 14, p = 24/38
    (20, 10): 1.2816,  # s = 1, p = 9/10
    (20, 8): 0.6745,  # s = 3, p = 9/12
    (20, 5): 0.2533,  # s = 6, p = 9/15
    (20, 4): 0.1573,  # s = 7, p = 9/16
    (9, 4): 0.8416,  # s = 1, p = 4/5
    (8, 4): 0.6745,  # s = 1, p = 3/4
    (10, 2): 0.0,  # s = 4, p = 4/8
    (10, 1): 0.0,  # s = 5, p = 4/9
    (3, 1): 0.0,  # s = 1, p = 1/2
    (2, 1): 0.0,  # s = 1, p = 0
    (1, 1): 0.0,
    (10, 6): 0.0,  # s = 0
    (10, 9): 0.0,
    (10, 10): 0.0,
}


@pytest.mark.parametrize(("n", "f"), QUANTILES)
def test_largest_hidden_shift_by_hand(n, f):
    assert largest_hidden_shift(n, f) == pytest.approx(QUANTILES[n, f], abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_a_majority_of_attackers_and_of_what_lies_beyond_the_shift(n, data):
    f = data.draw(st.integers(0, n))
    z = largest_hidden_shift(n, f)
    assert z >= 0
    beyond = (n - f) * (1 - (1 + math.erf(z / math.sqrt(2))) / 2)  # honest clients expected beyond it
    if z > 0:
        assert f + beyond == pytest.approx(n // 2 + 1)
    else:
        assert f + (n - f) / 2 <= n // 2 + 1 or f >= n // 2 + 1


@pytest.mark.parametrize(("n", "f"), [(20, 5), (9, 4), (10, 2), (10, 7)])
def test_the_shift_is_that_of_the_round_where_none_is_given(n, f):
    honest = drawn(n - f, 3000)
    expected = submitted(ALIE(z=largest_hidden_shift(n, f)), honest, f=f)
    assert np.array_equal(submitted(ALIE(), honest, f=f), expected)
    colluding = attacked(ALIE(knowledge="colluders"), drawn(n, 3000), last(n, f), rehearsed=honest)
    assert np.array_equal(colluding[-1].double().numpy(), expected)


def test_without_spread_there_is_no_shift():
    one = drawn(1, 200) * 1e3
    for n in (1, 3, 10):
        assert bits(torch.from_numpy(submitted(ALIE(z=5.0), one.expand(n, 200))).float()) == bits(one[0])
    assert not submitted(ALIE(z=5.0), torch.zeros(4, 10)).any()


@settings(deadline=None, max_examples=60)
@given(st.integers(3, 30), st.integers(0, 1000))
def test_half_a_deviation_hides_among_honest_updates(n, seed):
    """Some honest value lies sqrt((n - 1) / n) deviations from the mean or farther."""
    honest = drawn(n, 20, seed)
    found = submitted(ALIE(z=0.5), honest)
    for column, values in zip(found, honest.double().numpy().T, strict=True):
        mean = statistics.fmean(values)
        assert mean - max(abs(value - mean) for value in values) < column < mean


def test_bad_honest_updates_do_not_count_and_large_ones_do_not_overflow():
    honest = torch.tensor([[1.0], [3.0], [INF], [NAN]])
    assert submitted(ALIE(z=1.0), honest).tolist() == pytest.approx([2 - math.sqrt(2)])
    loud = torch.tensor([[1e30], [-1e30], [0.0]])
    assert submitted(ALIE(z=1.0), loud).tolist() == pytest.approx([-1e30])


@pytest.mark.parametrize("z", [NAN, INF, -INF])
def test_a_shift_that_is_no_number_is_refused(z):
    with pytest.raises(ConfigurationError, match=rf"ALIE\.z must be a finite number of standard deviations, got {z}"):
        ALIE(z=z)
