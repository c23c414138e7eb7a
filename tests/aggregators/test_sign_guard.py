import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracles import assert_equivariant, cosine, judged, lower_middle, middle
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TinyClient, tiny_data
from torch import Tensor

from fl_lightning import CohortSampler, Simulation
from fl_lightning.aggregators.sign_guard import SignGuard
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

FIVE = torch.tensor(
    [[1.0, 1.0, -1.0, 0.0], [2.0, 1.0, -1.0, 0.0], [1.0, 2.0, -2.0, 0.0], [-1.0, -1.0, 1.0, 1.0], [40.0, 40.0, -40.0, 0.0]]
)


def attacked(n: int, f: int, d: int = 400, seed: int = 0) -> Tensor:
    """n updates with three positive entries to one negative, the first f of them turned round, the second last one long."""
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, d, generator=draws) + 0.7
    updates[:f] *= -1
    updates[-2] *= 20
    return updates


def slow_shares(rows: np.ndarray) -> list[list[float]]:
    """Of positive, zero and negative entries, each divided by the largest of its kind."""
    kinds = [[(row > 0).mean(), (row == 0).mean(), (row < 0).mean()] for row in rows]
    return [[kind[c] / (max(other[c] for other in kinds) + 1e-8) for c in range(3)] for kind in kinds]


def mean_shift(points: np.ndarray, bandwidth: float) -> list[int]:
    """From every point to the mean of those within the bandwidth, until it rests; modes nearer than a bandwidth are one."""
    modes: list[tuple[int, np.ndarray]] = []
    for start in points:
        mean = start
        for _ in range(300):
            near = points[np.linalg.norm(points - mean, axis=1) <= bandwidth]
            before, mean = mean, near.mean(0)
            if np.linalg.norm(mean - before) <= 1e-3 * bandwidth:
                break
        modes.append((len(near), mean))
    found: list[np.ndarray] = []
    for _, mode in sorted(modes, key=lambda one: -one[0]):
        if all(np.linalg.norm(mode - other) > bandwidth for other in found):
            found.append(mode)
    distances = [[float(np.linalg.norm(point - mode)) for mode in found] for point in points]
    return [int(np.argmin(row)) if min(row) <= bandwidth else -1 for row in distances]


def mean_distance_to_nearest_half(points: np.ndarray) -> float:
    count = max(1, len(points) // 2)
    return float(np.mean([sorted(np.linalg.norm(points - point, axis=1))[count - 1] for point in points]))


def slow_rule(rows: np.ndarray, features: np.ndarray) -> np.ndarray:
    norms = [math.sqrt(math.fsum(row**2)) for row in rows]
    most = lower_middle(norms)
    labels = mean_shift(features, mean_distance_to_nearest_half(features))
    largest = max(sorted(set(labels) - {-1}), key=labels.count)
    kept = [i for i, norm in enumerate(norms) if 0.1 * most < norm < 3 * most and labels[i] == largest]
    return np.array([rows[i] * min(1, most / norms[i]) for i in kept]).mean(0)


def test_by_hand() -> None:
    rule, shard = SignGuard(fraction=1.0), UpdateShard.from_updates(FIVE)
    expected = [[1, 1, 0.5], [1, 1, 0.5], [1, 1, 0.5], [1, 0, 1], [1, 1, 0.5]]
    np.testing.assert_allclose(rule.sign_features(shard).numpy(), expected, atol=1e-7)
    assert mean_distance_to_nearest_half(np.array(expected)) == pytest.approx(0.223607, abs=1e-6)
    assert rule(FIVE).tolist() == pytest.approx([1.272166, 1.210998, -1.210998, 0], abs=1e-6)
    assert judged(rule, FIVE) == pytest.approx([1, 1, math.sqrt(6) / 3, 0, 0])
    assert judged(SignGuard(fraction=1.0, clustering="dbscan"), FIVE) == pytest.approx([1, 1, math.sqrt(6) / 3, 0, 0])


def test_norms_must_lie_strictly_within_bounds() -> None:
    updates = torch.tensor([[1.0], [2.0], [2.0], [2.0], [6.0], [0.25], [5.9], [0.3]])
    assert [verdict > 0 for verdict in judged(SignGuard(lower=0.125), updates)] == [
        True,
        True,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    bounds = SignGuard(lower=0.0, upper=1.5)
    assert [verdict > 0 for verdict in judged(bounds, updates)] == [True] * 4 + [False, True, False, True]


@pytest.mark.parametrize(("n", "f"), [(5, 1), (9, 2), (20, 4), (30, 9)])
def test_equals_its_definition(n: int, f: int) -> None:
    updates = attacked(n, f, seed=n)
    rows = updates.double().numpy()
    found = SignGuard(fraction=1.0)(updates, torch.arange(1.0, n + 1))
    expected = slow_rule(rows, np.array(slow_shares(rows)))
    np.testing.assert_allclose(found.numpy(), expected, atol=(n + 3) * 2.0**-23 * np.abs(rows).max())
    verdict = judged(SignGuard(fraction=1.0), updates)
    assert verdict[:f] == [0] * f
    assert verdict[-2] == 0
    assert sum(value > 0 for value in verdict) >= n // 2


def similar(kind: str, rows: np.ndarray, last: np.ndarray | None) -> list[float]:
    """The fourth feature."""
    n = len(rows)

    def compared(i: int, other: np.ndarray) -> float:
        return cosine(rows[i], other) if kind == "cosine" else math.sqrt(math.fsum((rows[i] - other) ** 2))

    if last is None:
        values = [middle([compared(i, rows[j]) for j in range(n) if j != i]) for i in range(n)]
    else:
        values = [compared(i, last) for i in range(n)]
    most = lower_middle(values)
    if kind == "cosine":
        return [min(max(value, 0.0), most) / (5 * most) for value in values]
    return [0.2 if value > 1.1 * most else 0.0 for value in values]


def test_the_cosine_is_cut_at_zero_and_at_the_lower_median() -> None:
    rule, shard = (
        SignGuard(similarity="cosine", warmup_rounds=0),
        UpdateShard.from_updates(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [-1.0, 0.0]])),
    )
    rule.recall("last", shard).copy_(torch.tensor([2.0, 0.0]))
    assert rule.similarity_feature(shard).tolist() == pytest.approx([0.2, 0.2, 0.2, 0.0], abs=1e-7)
    rule.recall("last", shard).copy_(torch.tensor([-2.0, 0.0]))  # m = -.8: all are alike
    assert rule.similarity_feature(shard).tolist() == pytest.approx([0.2] * 4, abs=1e-7)


def test_a_distance_is_compared_with_the_lower_median() -> None:
    rule = SignGuard(similarity="distance", warmup_rounds=0)
    shard = UpdateShard.from_updates(torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 2.4], [1.0, 9.0]]))
    rule.recall("last", shard).copy_(torch.tensor([1.0, 0.0]))
    assert rule.similarity_feature(shard).tolist() == pytest.approx([0.0, 0.0, 0.2, 0.2])


@pytest.mark.parametrize("kind", ["cosine", "distance"])
def test_similarity_is_to_the_last_result(kind: Any) -> None:
    for warmup_rounds in (0, 2):
        rule = SignGuard(fraction=1.0, similarity=kind, warmup_rounds=warmup_rounds)
        last = None
        for t in range(4):
            updates = attacked(12, 3, seed=t)
            rows = updates.double().numpy()
            shard = UpdateShard.from_updates(updates)
            shard.round_number = t
            feature = similar(kind, rows, last if t >= warmup_rounds else None)
            np.testing.assert_allclose(rule.similarity_feature(shard).numpy(), feature, rtol=1e-9, atol=1e-12)
            found = rule(shard)
            expected = slow_rule(rows, np.concatenate([slow_shares(rows), np.array(feature)[:, None]], axis=1))
            np.testing.assert_allclose(found.numpy(), expected, atol=15 * 2.0**-23 * np.abs(rows).max())
            last = found.double().numpy()
            assert torch.equal(rule.memory["last"], found)
        rule.forget()
        assert not rule.memory
    assert not SignGuard().memory


def test_similarity_sees_what_signs_do_not() -> None:
    """An attacker with the signs of all others in other places."""
    draws = torch.Generator().manual_seed(0)
    direction = torch.ones(400)
    direction[:100] = -1
    updates = (1 + 0.3 * torch.rand(9, 400, generator=draws)) * direction
    updates[0] = updates[0].flip(0)
    assert judged(SignGuard(fraction=1.0), updates)[0] > 0
    for kind in ("cosine", "distance"):
        assert judged(SignGuard(fraction=1.0, similarity=kind), updates)[0] == 0
        rule = SignGuard(fraction=1.0, similarity=kind, warmup_rounds=0)
        rule(updates[1:])
        assert judged(rule, updates)[0] == 0


def test_a_window_is_contiguous_or_scattered() -> None:
    d = 5000
    shard = UpdateShard.from_updates(torch.zeros(2, d))
    window = SignGuard().looked_at(shard).nonzero().flatten()
    assert len(window) == 500
    assert window.diff().eq(1).all()
    scattered = SignGuard(window="scattered").looked_at(shard).nonzero().flatten()
    assert torch.bincount(scattered // 1024, minlength=5).tolist() == [102] * 4 + [90]
    firsts = set()
    for t in range(20):
        shard.round_number = t
        firsts.add(int(SignGuard().looked_at(shard).nonzero()[0]))
        assert int(SignGuard().looked_at(shard).sum()) == 500
    assert len(firsts) > 15
    assert SignGuard().looked_at(UpdateShard.from_updates(torch.zeros(2, 3))).sum() == 1
    assert SignGuard(fraction=1.0).looked_at(shard).all()


def test_only_signs_within_the_window_count() -> None:
    for window in ("contiguous", "scattered"):
        rule = SignGuard(fraction=0.3, window=window)
        updates = attacked(8, 2, d=3000)
        chosen = rule.looked_at(UpdateShard.from_updates(updates))
        features = rule.sign_features(UpdateShard.from_updates(updates))
        np.testing.assert_allclose(features.numpy(), slow_shares(updates[:, chosen].numpy()), rtol=1e-12)
        outside = torch.where(chosen, updates, -7.0)
        assert torch.equal(rule.sign_features(UpdateShard.from_updates(outside)), features)


def test_where_nobody_passes_the_update_is_zero(caplog: pytest.LogCaptureFixture) -> None:
    apart = torch.tensor([[1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [-1.0, -1.0]])
    rule = SignGuard(fraction=1.0, clustering="dbscan", similarity="cosine")
    assert not rule(apart).any()
    assert caplog.records[-1].getMessage() == "SignGuard: none of 4 clients is left, so the update is zero"
    assert judged(rule, apart) == [0] * 4
    assert judged(SignGuard(), torch.zeros(5, 30)) == [0] * 5  # none is longer than a tenth of nothing


@pytest.mark.parametrize("similarity", [None, "cosine", "distance"])
def test_equal_updates_all_pass(similarity: Any) -> None:
    row = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    rule = SignGuard(similarity=similarity, warmup_rounds=0)
    for _ in range(2):
        assert judged(rule, row.expand(9, 3000)) == [1] * 9
        assert judged(rule, row) == [1]


@pytest.mark.parametrize("bandwidth", [1e-3, 1e-6, 1e-9, 1e-11, 1e-13])
def test_features_however_close_are_clustered(bandwidth: float) -> None:
    points = torch.ones(9, 4).double()
    points[:, 3] += bandwidth * torch.arange(9)
    found = SignGuard().largest_cluster(points, torch.Generator().manual_seed(0))
    assert found.sum() >= 4


@settings(deadline=None, max_examples=8)
@given(st.integers(5, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    updates = attacked(n, n // 4, seed=seed)
    for similarity in (None, "cosine"):
        assert_equivariant(SignGuard(fraction=0.5, similarity=similarity), updates, order, power)


@pytest.mark.parametrize("similarity", ["cosine", "distance"])
def test_a_resumed_run_remembers_the_last_result(similarity: Any, tmp_path: Path) -> None:
    def trained(folder: str, rounds: int, warmup_rounds: int = 1, resume: bool = False) -> str:
        run = Simulation(
            TinyClient,
            SignGuard(similarity=similarity, warmup_rounds=warmup_rounds, fraction=0.5),
            tiny_data(),
            cohort=CohortSampler(clients_per_round=8),
            folder=tmp_path / folder,
            rounds=rounds,
            seed=0,
            accelerator="cpu",
            logger=False,
        )
        return run.run(resume=resume).record["weights_sha256"]

    expected = trained("whole", 4)
    trained("parts", 2)
    assert trained("parts", 4, resume=True) == expected
    assert trained("from others", 4, warmup_rounds=9) != expected


def test_buffers_take_the_median() -> None:
    assert SignGuard().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]


def test_check() -> None:
    SignGuard().check(4)
    with pytest.raises(ConfigurationError, match=r"3 clients are too few to find a cluster among, it takes 4; raise model\.c"):
        SignGuard().check(3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lower", -0.1),
        ("lower", 1.0),
        ("upper", 1.0),
        ("upper", math.inf),
        ("fraction", 0.0),
        ("fraction", 1.1),
        ("window", "random"),
        ("clustering", "k_means"),
        ("similarity", "norm"),
        ("eps", 0.0),
        ("min_samples", 0),
        ("warmup_rounds", -1),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"SignGuard\.{setting} must .*, got {value!r}"):
        SignGuard(**{setting: value})
