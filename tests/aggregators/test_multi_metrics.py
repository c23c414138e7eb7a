import math
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracles import assert_equivariant, cosine, grouped, judged
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators.multi_metrics import MultiMetrics, manhattan_distances, scores
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

FIVE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [6.0, -6.0]])


def slow_features(rows: np.ndarray, length: str) -> np.ndarray:
    """Pair by pair."""
    n, found = len(rows), []
    for i in range(n):
        others = [rows[j] for j in range(n) if j != i]
        own = math.sqrt(math.fsum(rows[i] ** 2))
        if length == "norms":
            lengths = [abs(own - math.sqrt(math.fsum(row**2))) for row in others]
        else:
            lengths = [math.sqrt(math.fsum((rows[i] - row) ** 2)) for row in others]
        angles = [(1 - cosine(rows[i], row)) ** 2 for row in others]
        manhattan = [math.fsum(abs(rows[i] - row)) for row in others]
        found.append([math.fsum(angles), math.fsum(manhattan), math.fsum(lengths)])
    return np.array(found)


def slow_scores(features: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(np.cov(features, rowvar=False, ddof=1))
    return np.array([x @ inverse @ x for x in features])


def test_by_hand() -> None:
    features = MultiMetrics().features(UpdateShard.from_updates(FIVE))
    expected = [
        [1.182718, 16, 9.135563],
        [4.305573, 18, 9.135563],
        [1.174206, 15, 8.721349],
        [0.786896, 16, 9.543204],
        [4.467544, 47, 28.290844],
    ]
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-6)
    assert scores(features).tolist() == pytest.approx([93.3489, 67.7801, 50.4320, 54.7595, 74.2196], abs=1e-4)
    assert MultiMetrics()(FIVE).tolist() == [1, 1]
    assert judged(MultiMetrics(keep_fraction=0.6), FIVE) == [0, 1, 1, 1, 0]


def test_the_third_metric_decides_who_stays() -> None:
    rule = MultiMetrics(length="euclidean")
    features = rule.features(UpdateShard.from_updates(FIVE))
    assert features[:, 2].tolist() == pytest.approx([11.6387, 13.6338, 11.6023, 12.4765, 33.6944], abs=1e-4)
    assert scores(features).tolist() == pytest.approx([4.2368, 17.5846, 15.4604, 20.7290, 22.7110], abs=1e-4)
    assert rule(FIVE).tolist() == [1, 0]


def test_scores_are_not_those_of_centred_features() -> None:
    features = MultiMetrics().features(UpdateShard.from_updates(FIVE))
    centred = slow_scores(features.numpy()) - slow_scores((features - features.mean(0)).numpy())
    assert np.abs(centred).min() > 40
    assert slow_scores((features - features.mean(0)).numpy()) == pytest.approx([3.156, 3.143, 1.296, 1.208, 3.196], abs=1e-3)


@pytest.mark.parametrize("length", ["norms", "euclidean"])
@pytest.mark.parametrize(("n", "d"), [(5, 3), (7, 40), (12, 2500), (20, 40)])
def test_equals_its_definition(n: int, d: int, length: Any) -> None:
    updates = grouped(n, n // 5, d, seed=n)
    weights = torch.arange(1.0, n + 1)
    rows = updates.double().numpy()
    rule = MultiMetrics(length=length)
    features = rule.features(UpdateShard.from_updates(updates))
    np.testing.assert_allclose(features.numpy(), slow_features(rows, length), rtol=1e-9)
    found = slow_scores(slow_features(rows, length))
    np.testing.assert_allclose(scores(features).numpy(), found, rtol=1e-6)
    kept = sorted(np.argsort(found)[: math.floor(0.3 * n)].tolist()) or [int(found.argmin())]
    assert judged(rule, updates, weights) == [float(i in kept) for i in range(n)]
    for weighted, share in ((True, weights), (False, torch.ones(n))):
        expected = sum(float(share[i]) * rows[i] for i in kept) / float(share[kept].sum())
        result = MultiMetrics(length=length, weighted=weighted)(updates, weights)
        np.testing.assert_allclose(result.numpy(), expected, atol=(n + 3) * 2.0**-23 * np.abs(rows).max())


@pytest.mark.parametrize(
    ("n", "keep_fraction", "count"), [(3, 0.3, 1), (10, 0.3, 3), (20, 0.35, 7), (9, 1.0, 9), (5, 0.001, 1)]
)
def test_how_many_stay(n: int, keep_fraction: float, count: int) -> None:
    assert sum(judged(MultiMetrics(keep_fraction=keep_fraction), grouped(n, 1))) == count


def test_distances_between_pairs() -> None:
    updates = torch.tensor([[1.0, 2.0], [3e38, -3e38], [0.0, 2.0**-149]])
    found = manhattan_distances(UpdateShard.from_updates(updates))
    large = 2 * updates[1, 0].double().item()
    assert found.tolist() == [[0, large, 3 - 2.0**-149], [large, 0, large], [3 - 2.0**-149, large, 0]]
    assert manhattan_distances(UpdateShard.from_updates(torch.ones(1, 4))).tolist() == [[0]]


def test_of_clients_that_tie_the_first_stay() -> None:
    assert judged(MultiMetrics(keep_fraction=0.5), torch.ones(6, 4)) == [1, 1, 1, 0, 0, 0]
    row = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    assert judged(MultiMetrics(keep_fraction=0.5), row[[0, 1, 0, 1, 0, 1]]) == [1, 1, 1, 0, 0, 0]


def test_features_that_do_not_vary_count_nothing() -> None:
    assert scores(torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]).double()).tolist() == pytest.approx([1, 4, 9])
    twice = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]).double()
    assert scores(twice).tolist() == pytest.approx([1, 4, 9])
    assert scores(torch.ones(1, 3).double()).tolist() == [0]


@settings(deadline=None, max_examples=15)
@given(st.integers(5, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    assert_equivariant(MultiMetrics(weighted=False), grouped(n, n // 4, seed=seed), order, power)


def test_buffers_take_the_median() -> None:
    assert MultiMetrics().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]


def test_check() -> None:
    MultiMetrics().check(5)
    with pytest.raises(ConfigurationError, match=r"three features of 4 clients is singular .* takes 5; raise model\.cohort"):
        MultiMetrics().check(4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("keep_fraction", 0.0), ("keep_fraction", 1.1), ("keep_fraction", math.nan), ("length", "manhattan")],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"MultiMetrics\.{setting} must .*, got {value!r}"):
        MultiMetrics(**{setting: value})
