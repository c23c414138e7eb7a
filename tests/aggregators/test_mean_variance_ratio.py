import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_oracles import aggregated, assert_is, columns_of, hostile_updates, number_trimmed, trimmed_average

from fl_lightning.aggregators.mean_variance_ratio import MeanVarianceRatio
from fl_lightning.aggregators.trimmed_mean import TrimmedMean
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard


def ratio_of(column: list[float], kind: str) -> float:
    """From exact fractions."""
    n = len(column)
    exact = [Fraction(value) for value in column]
    mean = sum(exact, Fraction(0)) / n
    variance = sum(((value - mean) ** 2 for value in exact), Fraction(0)) / max(1, n - 1)
    if variance == 0:
        return math.inf if mean else 0.0
    snr = mean * mean / variance
    if kind == "snr":
        return float(snr)
    return math.sqrt(snr * n) if kind == "tstat" else float(abs(mean) / variance)


@pytest.mark.parametrize(
    ("ratio", "value"),
    [("snr", 15 / 4), ("tstat", math.sqrt(15)), ("raw", 1.5)],  # mean 2.5, variance 5/3, N = 4
)
def test_ratio_by_hand(ratio, value: float) -> None:
    column = [1.0, 2.0, 3.0, 4.0]
    assert aggregated(MeanVarianceRatio(ratio=ratio, threshold=value * 0.999), [column]) == [2.5]
    assert aggregated(MeanVarianceRatio(ratio=ratio, threshold=value * 1.001), [column]) == [0]


def test_threshold_itself_does_not_pass() -> None:
    column = [1.0, 3.0]  # mean 2, variance 2
    assert aggregated(MeanVarianceRatio(threshold=2.0), [column]) == [0]
    assert aggregated(MeanVarianceRatio(threshold=1.999), [column]) == [2]
    assert aggregated(MeanVarianceRatio(ratio="raw", threshold=1.0), [column]) == [0]


@pytest.mark.parametrize("ratio", ["snr", "tstat", "raw"])
@pytest.mark.parametrize("value", [3.0, -0.1, 1e30, 1e-45])
def test_no_variance(ratio, value: float) -> None:
    rule = MeanVarianceRatio(ratio=ratio, threshold=1e9)
    for n in (1, 3, 20):
        kept, masked = aggregated(rule, [[value] * n, [0.0] * n])
        assert kept == pytest.approx(value, rel=1e-6)
        assert masked == 0


def test_one_loud_client_suppresses_a_coordinate() -> None:
    assert aggregated(MeanVarianceRatio(), [[1.0] * 20]) == [1]
    assert aggregated(MeanVarianceRatio(), [[1.0] * 19 + [1e30]]) == [0]  # snr -> 1/20 < .066
    assert aggregated(MeanVarianceRatio(threshold=0.049), [[1.0] * 19 + [1e30]]) == [1]  # trimmed all the same


def test_default_threshold_passes_about_a_quarter_of_noise() -> None:
    noise = torch.randn(20, 100_000, generator=torch.Generator().manual_seed(0))
    kept = MeanVarianceRatio().mask(UpdateShard.from_updates(noise)).float().mean()
    assert kept == pytest.approx(0.264, abs=0.006)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
@pytest.mark.parametrize(("ratio", "threshold"), [("snr", 0.066), ("snr", 1.0), ("tstat", 1.15), ("raw", 3.0), ("raw", 1e-28)])
def test_equals_its_definition(n: int, ratio, threshold: float) -> None:
    updates = hostile_updates(n)
    rule = MeanVarianceRatio(ratio=ratio, threshold=threshold, alpha=0.2)
    expected = []
    for column in columns_of(updates.numpy()):
        keep = ratio_of(column, ratio) > threshold
        expected.append(trimmed_average(column, number_trimmed(n, 0.2)) if keep else (0.0, 0.0))
    assert_is(rule(updates), expected)
    shard = UpdateShard.from_updates(updates)
    mask = rule.mask(shard)
    assert torch.equal(rule(shard), rule(updates))
    assert shard.kept is not None
    assert torch.equal(shard.kept, mask)
    assert mask.tolist() == [ratio_of(column, ratio) > threshold for column in columns_of(updates.numpy())]


def test_tstat_is_snr_times_n() -> None:
    shard = UpdateShard.from_updates(torch.randn(16, 2000, generator=torch.Generator().manual_seed(0)))
    one, other = MeanVarianceRatio(threshold=0.1), MeanVarianceRatio(ratio="tstat", threshold=math.sqrt(1.6))
    assert torch.equal(one.mask(shard), other.mask(shard))
    assert 0.1 < one.mask(shard).float().mean() < 0.9


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=8), st.permutations(range(8)), st.integers(-30, 30))
def test_properties(column: list[int], order: list[int], power: int) -> None:
    rule, values = MeanVarianceRatio(), [float(value) for value in column]
    (found,) = aggregated(rule, [values])
    assert found == 0 or min(values) <= found <= max(values)
    assert aggregated(rule, [[-value for value in values]]) == [-found]
    assert aggregated(rule, [[value * 2.0**power for value in values]]) == [found * 2.0**power]
    assert aggregated(rule, [[values[i] for i in order if i < len(values)]]) == [found]


def test_bits_do_not_depend_on_the_width() -> None:
    updates = torch.randn(9, 1003, generator=torch.Generator().manual_seed(0))
    whole = MeanVarianceRatio()(updates)
    assert torch.equal(whole, torch.cat([MeanVarianceRatio()(part) for part in updates.split([1, 17, 300, 685], dim=1)]))


def test_buffers_pass_no_mask() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[1.0], [-1.0], [1.5], [-1.2]]))
    assert MeanVarianceRatio()(shard).tolist() == [0]
    assert torch.equal(MeanVarianceRatio().aggregate_buffers(shard), TrimmedMean()(shard))


def test_check() -> None:
    MeanVarianceRatio().check(3)
    with pytest.raises(ConfigurationError, match="MeanVarianceRatio: 1 client has no variance, it takes 2; raise"):
        MeanVarianceRatio(alpha=0).check(1)
    with pytest.raises(ConfigurationError, match=r"MeanVarianceRatio: alpha = 0\.25 trims b = .* = 1 from each tail of 2"):
        MeanVarianceRatio().check(2)


def test_settings_outside_their_ranges_are_refused() -> None:
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match=f"threshold must be at least 0 and finite, got {value}"):
            MeanVarianceRatio(threshold=value)
    with pytest.raises(ConfigurationError, match="default for 'snr' alone; give one for 'raw'"):
        MeanVarianceRatio(ratio="raw")
    with pytest.raises(ConfigurationError, match="got 'mean'"):
        MeanVarianceRatio(ratio="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"got 0\.5"):
        MeanVarianceRatio(alpha=0.5)
