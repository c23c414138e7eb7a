import math
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracles import assert_equivariant, cosine, grouped, judged, middle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_lightning.aggregators.rflbat import RFLBAT, principal_components, within
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

FIVE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [10.0, 10.0]])


def components(updates: Tensor) -> np.ndarray:
    """By a singular value decomposition of the centred updates."""
    rows = updates.double().numpy()
    left, values, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return left[:, :2] * values[:2]


def distance_matrix(points: np.ndarray) -> np.ndarray:
    return np.array([[np.linalg.norm(a - b) for b in points] for a in points])


def slow_filter(points: np.ndarray, members: list[int], factor: float) -> list[int]:
    sums = [math.fsum(float(np.linalg.norm(points[i] - points[j])) for j in members) for i in members]
    return [i for i, total in zip(members, sums, strict=True) if total < factor * middle(sums)]


def slow_choice(rows: np.ndarray, clusters: list[list[int]]) -> list[int]:
    def score(members: list[int]) -> float:
        return middle([math.fsum(cosine(rows[i], rows[j]) for j in members) / len(members) for i in members])

    return min(clusters, key=score)


def backdoored(n: int, f: int, d: int = 80, seed: int = 0) -> Tensor:
    """n diverse updates, the first f of them close to another direction, and the last one very far away."""
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, d, generator=draws) + 0.5
    updates[:f] = 8 * torch.randn(d, generator=draws) + 0.1 * torch.randn(f, d, generator=draws)
    updates[-1] = 400 * torch.randn(d, generator=draws)
    return updates


def test_filter_by_hand() -> None:
    points = FIVE.double()
    sums = (points[:, None] - points).norm(dim=-1).sum(1)
    assert sums.tolist() == pytest.approx([17.5563, 16.8678, 16.8678, 16.1421, 53.7773], abs=1e-4)
    assert within(points, 10).all()
    assert within(points, 3).tolist() == [True] * 4 + [False]
    assert within(points, 3.19).all()  # 53.7773 is 3.188 times the median
    assert within(points[:1], 2).tolist() == [True]
    assert within(torch.ones(4, 2).double(), 2).all()


def test_by_hand() -> None:
    updates = torch.tensor([[3.0, 1.0], [3.0, -1.0], [2.0, 2.0], [2.0, -2.0], [-9.0, 0.0], [-9.1, 0.0]])
    assert judged(RFLBAT(), updates) == [1, 1, 1, 1, 0, 0]  # the two are alike to the last, the four are not
    assert RFLBAT()(updates).tolist() == [2.5, 0]
    assert judged(RFLBAT(max_clusters=1), updates) == [1] * 6


def test_the_smallest_cosine_wins_not_the_largest_cluster() -> None:
    draws = torch.Generator().manual_seed(0)
    diverse = torch.randn(5, 60, generator=draws) + 0.5
    alike = torch.randn(7, 60, generator=draws) - 20
    assert judged(RFLBAT(), torch.cat([alike, diverse])) == [0] * 7 + [1] * 5


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_components_are_those_of_a_singular_value_decomposition(n: int) -> None:
    for updates in (grouped(n, n // 3), 1e30 * grouped(n, n // 3), 5 + grouped(n, n // 3, d=3000)):
        found = principal_components(UpdateShard.from_updates(updates).gram()).numpy()
        slack = 1e-6 * distance_matrix(components(updates)).max()
        np.testing.assert_allclose(distance_matrix(found), distance_matrix(components(updates)), atol=slack)


@pytest.mark.parametrize("n", [20, 30])
def test_equals_its_definition(n: int) -> None:
    """Attackers and the rest lie so far apart that there is one way to cluster them."""
    for seed in range(3):
        updates, f = backdoored(n, n // 4, seed=seed), n // 4
        points, rows = components(updates), updates.double().numpy()
        near = slow_filter(points, list(range(n)), 10.0)
        assert near == list(range(n - 1))
        # Without the far one the points still lie in the plane of all.
        chosen = slow_choice(rows, [near[:f], near[f:]])
        assert chosen == near[f:]
        kept = slow_filter(points, chosen, 4.0)
        rule = RFLBAT(max_clusters=2)
        found = rule.kept(torch.from_numpy(planted_apart(points, f)), cosines_of(rows), torch.Generator().manual_seed(0))
        assert found.nonzero().flatten().tolist() == kept
        expected = rows[kept].mean(0)
        shard = UpdateShard.from_updates(updates)
        everyone = RFLBAT(max_clusters=1)(shard)
        assert shard.verdict is not None
        one = shard.verdict.nonzero().flatten().tolist()
        assert one == slow_filter(points, near, 4.0)
        np.testing.assert_allclose(everyone.numpy(), rows[one].mean(0), atol=(n + 3) * 2.0**-23 * np.abs(rows).max())
        assert np.abs(everyone.numpy() - expected).max() > 0.1


def planted_apart(points: np.ndarray, f: int) -> np.ndarray:
    """The same points, the first f of them moved away together."""
    moved = points.copy()
    width = distance_matrix(points[f:-1]).max()
    moved[:f] += 1.5 * width - points[:f].mean(0) + points[f:-1].mean(0)
    return moved


def cosines_of(rows: np.ndarray) -> Tensor:
    return torch.tensor([[cosine(a, b) for b in rows] for a in rows])


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, 60, generator=draws) + 1
    updates[: n // 3] = 0.05 * updates[: n // 3] + 60 * torch.randn(60, generator=draws)
    assert_equivariant(RFLBAT(), updates, order, power)


def test_equal_and_zero_updates_all_stay() -> None:
    row = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    assert judged(RFLBAT(), row.expand(9, 300)) == [1] * 9
    assert judged(RFLBAT(), torch.zeros(5, 300)) == [1] * 5
    assert judged(RFLBAT(), row) == [1]
    assert judged(RFLBAT(), torch.zeros(4, 0)) == [1] * 4


def test_a_single_attacker_is_left_out() -> None:
    updates = torch.randn(12, 60, generator=torch.Generator().manual_seed(3)) + 1
    updates[0] = -30
    assert judged(RFLBAT(), updates)[0] == 0


def test_the_second_filter_is_the_stricter_one() -> None:
    """The last of eight has 7 times a distance; the others have that once, and the small ones among them."""
    updates = torch.eye(8, 30) + 5 * torch.eye(1, 30)
    updates[-1, 29] = 60
    points = components(updates)
    sums = distance_matrix(points).sum(1)
    assert 4 * middle(sums.tolist()) < sums[-1] < 10 * middle(sums.tolist())
    assert judged(RFLBAT(max_clusters=1), updates) == [1] * 7 + [0]
    assert judged(RFLBAT(max_clusters=1, second_factor=10.0), updates) == [1] * 8
    assert judged(RFLBAT(max_clusters=1, first_factor=4.0, second_factor=10.0), updates) == [1] * 7 + [0]


def test_draws_are_of_the_round() -> None:
    shard = UpdateShard.from_updates(FIVE)
    first = torch.rand(3, generator=shard.generator("RFLBAT"))
    shard.round_number = 1
    assert not torch.equal(first, torch.rand(3, generator=shard.generator("RFLBAT")))


def test_buffers_take_the_median() -> None:
    assert RFLBAT().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]


def test_check() -> None:
    RFLBAT().check(3)
    with pytest.raises(ConfigurationError, match=r"of 2 clients none lies farther off .* takes 3; raise model\.cohort"):
        RFLBAT().check(2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("first_factor", 1.0),
        ("second_factor", 0.5),
        ("first_factor", math.inf),
        ("second_factor", math.nan),
        ("max_clusters", 0),
        ("references", 0),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"RFLBAT\.{setting} must .*, got {value}"):
        RFLBAT(**{setting: value})
