import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_oracles import EPSILON, SMALLEST, hostile_updates
from torch import Tensor

from fl_lightning.aggregators.bucketing import Bucketing
from fl_lightning.aggregators.fl_trust import FLTrust
from fl_lightning.aggregators.median import Median
from fl_lightning.aggregators.nearest_neighbor_mixing import NearestNeighborMixing
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

NOTHING = "FLTrust: no update points the way of the server's own, so the update is zero"


def length(vector: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in vector))


def trusts(updates: np.ndarray, root: np.ndarray) -> list[float]:
    """The t_i as they are printed."""
    g0 = root.astype(np.float64).tolist()
    trust = []
    for row in updates.astype(np.float64).tolist():
        lengths = length(row) * length(g0)
        cosine = math.fsum(a * b for a, b in zip(row, g0, strict=True)) / lengths if lengths else 0.0
        trust.append(max(0.0, cosine) if abs(cosine) > 1e-12 else 0.0)
    return trust


def trusted(updates: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rule as it is printed, on whole vectors: value and rounding bound per column."""
    rows, g0 = updates.astype(np.float64).tolist(), root.astype(np.float64).tolist()
    trust = trusts(updates, root)
    if sum(trust) == 0:
        return np.zeros(len(g0)), np.zeros(len(g0))
    terms = np.array(
        [t / sum(trust) * length(g0) / (length(row) or 1) * np.array(row) for t, row in zip(trust, rows, strict=True)]
    )
    return terms.sum(0), (len(rows) + 8) * (EPSILON * np.abs(terms).sum(0) + SMALLEST)


def test_by_hand() -> None:
    updates = torch.tensor([[0.0, 5.0], [2.0, 2.0], [-3.0, 0.0]])
    found = FLTrust()(updates, root=torch.tensor([1.0, 0.0]))
    assert found.tolist() == pytest.approx([0.5**0.5, 0.5**0.5])
    # Trust .6 and .8 of lengths 5 and 10 against a root of length 2.
    updates = torch.tensor([[3.0, 4.0], [8.0, -6.0]])
    expected = [(0.6 * 1.2 + 0.8 * 1.6) / 1.4, (0.6 * 1.6 - 0.8 * 1.2) / 1.4]
    assert FLTrust()(updates, root=torch.tensor([2.0, 0.0])).tolist() == pytest.approx(expected)
    assert FLTrust()(updates, torch.tensor([9.0, 1.0]), root=torch.tensor([2.0, 0.0])).tolist() == pytest.approx(expected)


def roots(updates: Tensor) -> list[Tensor]:
    """Like the clients' updates, like nobody's, like an attacker's, and short."""
    d = updates.shape[1]
    draws = torch.randn(d, generator=torch.Generator().manual_seed(1))
    return [updates[-1] + draws, draws, updates[0], SMALLEST * (5 * draws).round(), torch.eye(1, d)[0]]


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_equals_its_definition(n: int) -> None:
    plain = torch.randn(n, 700, generator=torch.Generator().manual_seed(n))
    attacked = plain.clone()
    attacked[: n // 3] = -1e30 * plain[-1]
    for updates in (plain, attacked, hostile_updates(n), plain * 1e-30, plain[:1].expand(n, -1)):
        for root in roots(updates):
            if root.double().norm() < 1e-36 * updates.double().norm():
                continue  # float32 holds no factor that would make the updates as short
            expected, slack = trusted(updates.numpy(), root.numpy())
            found = FLTrust()(updates, root=root).double().numpy()
            assert (np.abs(found - expected) <= slack).all()


def test_zero_updates_have_no_trust() -> None:
    updates = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 0.0]])
    assert FLTrust()(updates, root=torch.tensor([1.0, 1.0])).tolist() == pytest.approx([2**0.5, 0])


@pytest.mark.parametrize(
    ("updates", "root"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0]),
        ([[-1.0, 2.0], [0.0, -3.0]], [1.0, 0.0]),
        ([[1.0, 2.0], [3.0, 4.0]], [float("nan"), 1.0]),
        ([[1.0, 2.0], [3.0, 4.0]], [float("inf"), 1.0]),
    ],
)
def test_nobody_is_trusted(updates: list[list[float]], root: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert FLTrust()(torch.tensor(updates), root=torch.tensor(root)).tolist() == [0, 0]
    (record,) = caplog.records
    assert record.getMessage() == NOTHING


def test_rounding_is_not_taken_for_trust(caplog: pytest.LogCaptureFixture) -> None:
    draws = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 20, 500, generator=draws)
    order = torch.randperm(1000, generator=draws)
    updates, others = torch.cat([a, a], dim=1)[:, order], torch.cat([b, -b], dim=1)[:, order]  # orthogonal, pair by pair
    assert ((updates.double() * others.double()).sum(1) > 0).any()
    with caplog.at_level(logging.WARNING):
        for update, root in zip(updates, others, strict=True):
            assert not FLTrust()(update[None], root=root).any()
    assert len(caplog.records) == 20


@pytest.mark.parametrize("scale", [1e30, 3.4e38, 1e-30, SMALLEST])
@pytest.mark.parametrize("of_root", [1e30, 3.4e38, 1.0, SMALLEST])
def test_updates_of_any_length_stay_finite(scale: float, of_root: float) -> None:
    updates = torch.ones(4, 50)
    updates[0] *= scale
    root = torch.full((50,), of_root)
    found = FLTrust()(updates, root=root)
    assert found.isfinite().all()
    length = min(float(root.double().norm()), float(torch.finfo().max) / 2)
    if of_root / scale < 3e38:  # else float32 holds no factor that would make it as long as the root
        assert float(found.double().norm()) == pytest.approx(length, rel=1e-5)


VECTORS = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(VECTORS, st.lists(st.integers(-9, 9), min_size=3, max_size=3), st.permutations(range(8)), st.integers(-8, 8))
def test_properties(rows: list[list[int]], of_root: list[int], order: list[int], power: int) -> None:
    updates, root = torch.tensor(rows, dtype=torch.float32), torch.tensor(of_root, dtype=torch.float32)
    rule = FLTrust()
    found = rule(updates, root=root)
    assert found.norm() <= root.norm() * (1 + 1e-5)
    assert found @ root >= 0
    assert torch.equal(rule(-updates, root=-root), -found)
    assert torch.equal(rule(updates * 2.0**power, root=root), found)  # how loud clients are does not matter
    louder = updates * 2.0 ** torch.tensor([(3 * i + power) % 9 for i in range(len(rows))])[:, None]
    assert torch.equal(rule(louder, root=root), found)
    assert torch.equal(rule(updates, root=root * 2.0**power), found * 2.0**power)
    permuted = rule(updates[[i for i in order if i < len(rows)]], root=root)
    assert permuted.tolist() == pytest.approx(found.tolist(), abs=1e-5)


def test_without_a_root_it_says_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match=r"set data\.root, for example \{samples: 100\}, or .* root="):
        FLTrust()(torch.ones(3, 4))
    assert FLTrust().needs_root
    assert NearestNeighborMixing(rule=FLTrust()).needs_root
    assert not Median().needs_root


def test_rules_around_it_pass_the_root_on() -> None:
    updates = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) + 1
    root = torch.ones(40)
    torch.testing.assert_close(Bucketing(rule=FLTrust(), bucket_size=1)(updates, root=root), FLTrust()(updates, root=root))
    found = NearestNeighborMixing(rule=FLTrust(), num_malicious=0)(updates, root=root)  # all mixed updates are the mean
    mean = updates.mean(0)
    torch.testing.assert_close(found, mean / mean.norm() * root.norm())


def test_buffers_take_the_median() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))
    assert FLTrust().aggregate_buffers(shard).tolist() == [2]
