import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_oracles import Estimate, aggregated, assert_is, average, columns_of, hostile_updates, sum_of_signs, votes

from fl_lightning.aggregators.fedavg import FedAvg
from fl_lightning.aggregators.rlr import RLR
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

TWO_ATTACKERS_OF_SEVEN = [0.30, 0.20, 0.10, -0.15, -0.20, -1.00, -1.20]


def test_a_majority_of_one_in_seven_is_turned() -> None:
    assert aggregated(RLR(threshold=4), [TWO_ATTACKERS_OF_SEVEN]) == pytest.approx([0.278571], abs=1e-6)
    assert aggregated(RLR(threshold=1), [TWO_ATTACKERS_OF_SEVEN]) == pytest.approx([-0.278571], abs=1e-6)


@pytest.mark.parametrize(("positive", "sign"), [(14, 1), (13, -1), (6, 1), (7, -1)])  # |S| = 8, 6, 8, 6 of 20
def test_threshold_counts_votes(positive: int, sign: int) -> None:
    mean = (2 * positive - 20) / 20
    for rule in (RLR(threshold=8), RLR(num_malicious=4)):
        assert aggregated(rule, [votes(positive, 20 - positive)]) == pytest.approx([sign * mean])


def test_threshold_zero_turns_nothing() -> None:
    updates, weights = hostile_updates(9), torch.arange(1.0, 10)
    assert torch.equal(RLR(threshold=0)(updates, weights), FedAvg()(updates, weights))
    assert torch.equal(RLR(num_malicious=0)(updates, weights), FedAvg()(updates, weights))


@pytest.mark.parametrize("n", [4, 7, 20])
@pytest.mark.parametrize("theta", [1, 3, 4])
def test_equals_its_definition(n: int, theta: int) -> None:
    updates, weights = hostile_updates(n), [float(1 + i % 3) for i in range(n)]
    expected: list[Estimate] = []
    for column in columns_of(updates.numpy()):
        value, bound = average(column, [weight / math.fsum(weights) for weight in weights])
        expected.append((value if abs(sum_of_signs(column)) >= theta else -value, bound))
    assert_is(RLR(threshold=theta)(updates, torch.tensor(weights)), expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-9, 9), min_size=3, max_size=9), st.permutations(range(9)), st.integers(-20, 20))
def test_properties(column: list[int], order: list[int], power: int) -> None:
    rule, values = RLR(threshold=2), [float(value) for value in column]
    (found,) = aggregated(rule, [values])
    assert abs(found) <= max(abs(value) for value in values) * (1 + 1e-6)
    assert aggregated(rule, [[-value for value in values]]) == [-found]
    assert aggregated(rule, [[value * 2.0**power for value in values]]) == [found * 2.0**power]
    permuted = [values[i] for i in order if i < len(values)]
    assert aggregated(rule, [permuted]) == pytest.approx([found], abs=1e-5)


def test_f_comes_from_the_argument_then_from_the_cohort() -> None:
    rule = RLR()
    with pytest.raises(ConfigurationError, match=r"give RLR\(num_malicious=...\)"):
        rule(torch.ones(3, 1))
    rule.expect(3)
    assert rule.theta() == 6
    for given_first in (RLR(num_malicious=2), RLR(threshold=4)):
        given_first.expect(3)
        assert given_first.theta() == 4


@pytest.mark.parametrize(("n", "expected"), [(1, 1.0), (2, 1.5), (3, 2.0)])
def test_exclusions_lower_the_threshold_and_say_so(n: int, expected: float, caplog: pytest.LogCaptureFixture) -> None:
    updates = torch.tensor([[1.0], [2.0], [3.0], [math.nan], [math.inf]])[[*range(n), 3, 4]]
    with caplog.at_level(logging.WARNING):
        assert RLR(threshold=4)(updates).tolist() == [expected]  # unanimous, so not turned
    _, record = caplog.records  # after that of the rows that are left out
    assert record.getMessage() == f"{n} clients cannot give 4 votes; lowering the threshold to {n}"


def test_check() -> None:
    RLR(threshold=8).check(8)
    RLR(num_malicious=4).check(8)
    with pytest.raises(
        ConfigurationError, match=r"7 clients cannot give the 8 votes asked for \(threshold\).*set threshold to 7"
    ):
        RLR(threshold=8).check(7)
    with pytest.raises(ConfigurationError, match=r"7 clients cannot give the 8 votes asked for \(2 \* 4 malicious clients\)"):
        RLR(num_malicious=4).check(7)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="threshold is a number of votes, at least 0, got -1"):
        RLR(threshold=-1)
    with pytest.raises(ConfigurationError, match="num_malicious must be at least 0, got -2"):
        RLR(num_malicious=-2)
    with pytest.raises(ConfigurationError, match="threshold = 4 leaves num_malicious = 2 without a use"):
        RLR(threshold=4, num_malicious=2)


def test_buffers_take_the_weighted_mean() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[1.0], [-5.0]]), torch.tensor([3.0, 1.0]))
    assert RLR(threshold=2).aggregate_buffers(shard).tolist() == [-0.5]
