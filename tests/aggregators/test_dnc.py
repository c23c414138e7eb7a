"""Divide and conquer; and, for it and the other rules that clip, filter, vote or draw: hostile input and the bits on ranks."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from rule_oracles import hostile_updates
from torch import Tensor

from fl_lightning.aggregators.align_ins import AlignIns
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.dnc import DnC, squared_projections
from fl_lightning.aggregators.flame import FLAME
from fl_lightning.aggregators.freq_fed import FreqFed
from fl_lightning.aggregators.lasa import LASA
from fl_lightning.aggregators.mean_variance_ratio import MeanVarianceRatio
from fl_lightning.aggregators.multi_metrics import MultiMetrics
from fl_lightning.aggregators.norm_clipping import NormClipping
from fl_lightning.aggregators.rfa import RFA
from fl_lightning.aggregators.rflbat import RFLBAT
from fl_lightning.aggregators.rlr import RLR
from fl_lightning.aggregators.sign_guard import SignGuard
from fl_lightning.aggregators.sign_sgd import SignSGD
from fl_lightning.aggregators.weak_dp import WeakDP
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import Exchange, UpdateShard


def svd_scores(updates: np.ndarray) -> np.ndarray:
    centred = updates.astype(np.float64) - updates.astype(np.float64).mean(axis=0)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2


def attacked(n: int, f: int, d: int = 400, seed: int = 0) -> Tensor:
    """n updates, the first f of them shifted together by several standard deviations along one direction."""
    gen = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, d, generator=gen)
    updates[:f] += 2 * torch.randn(d, generator=gen)
    return updates


def test_by_hand() -> None:
    updates = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [2.0, 90.0]])
    assert DnC(num_malicious=1, subset_fraction=1.0)(updates).tolist() == [2, 1]
    line = torch.tensor([[0.0], [1.0], [2.0], [7.0]])  # centred at 2.5: squares 6.25, 2.25, .25, 20.25
    assert squared_projections(UpdateShard.from_updates(line)).tolist() == pytest.approx([6.25, 2.25, 0.25, 20.25])
    assert DnC(num_malicious=2)(line).tolist() == [1.5]
    assert DnC(num_malicious=1)(line).tolist() == [1]
    assert DnC(num_malicious=0)(line).tolist() == [2.5]


@pytest.mark.parametrize("n", [2, 3, 7, 20])
def test_projections_are_those_of_a_singular_value_decomposition(n: int) -> None:
    for updates in (attacked(n, n // 3), 1e30 * attacked(n, n // 3), 50 + attacked(n, n // 3, d=3000)):
        found = squared_projections(UpdateShard.from_updates(updates))
        np.testing.assert_allclose(found.numpy(), svd_scores(updates.numpy()), rtol=1e-6)


@pytest.mark.parametrize(("n", "f", "d"), [(5, 1, 400), (12, 3, 1), (20, 4, 400), (20, 4, 5000)])
def test_equals_its_definition(n: int, f: int, d: int) -> None:
    updates = attacked(n, f, d)
    rule = DnC(num_malicious=f, num_iterations=3)
    shard, left = UpdateShard.from_updates(updates), set(range(n))
    for iteration in range(3):
        looked_at = rule.subset(shard, iteration).values.numpy()
        left &= set(np.argsort(svd_scores(looked_at))[: n - f].tolist())
    assert torch.nonzero(rule.kept(shard)).flatten().tolist() == sorted(left)
    expected = updates[sorted(left)].double().mean(0)
    assert rule(updates, torch.arange(1.0, n + 1)).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_attackers_with_a_direction_of_their_own_are_dropped() -> None:
    updates = attacked(20, 4)
    kept = DnC(num_malicious=4).kept(UpdateShard.from_updates(updates))
    assert kept.tolist() == [False] * 4 + [True] * 16


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.5, 1.0])
def test_subsets(fraction: float) -> None:
    d = 3 * 1024 + 500
    shard = UpdateShard.from_updates(torch.arange(d, dtype=torch.float32).expand(2, d))
    rule = DnC(num_malicious=1, subset_fraction=fraction)
    drawn = [rule.subset(shard, iteration).values for iteration in (0, 1)]
    for values in drawn:
        chosen = values[0].long()
        assert torch.equal(values[0], values[1])
        assert torch.equal(chosen, chosen.unique())
        sizes = [round(1024 * fraction)] * 3 + [max(1, round(500 * fraction))]
        assert torch.bincount(chosen // 1024, minlength=4).tolist() == sizes
    if fraction < 1:
        assert not torch.equal(*drawn)
    if fraction == 0.2:
        within = [set((drawn[0][0][drawn[0][0] // 1024 == block] % 1024).tolist()) for block in range(3)]
        assert within[0] != within[1] != within[2]
        rounds = UpdateShard([shard.values], torch.ones(2), torch.zeros(2).bool(), num_coordinates=d, round_number=1)
        assert not torch.equal(rule.subset(rounds, 0).values, drawn[0])


def test_filter_factor() -> None:
    assert DnC(num_malicious=4, filter_factor=1.5).num_dropped() == 6
    assert DnC(num_malicious=3, filter_factor=1.5).num_dropped() == 5
    assert DnC(num_malicious=10, filter_factor=0.1).num_dropped() == 1
    line = torch.tensor([[0.0], [1.0], [2.0], [7.0]])
    assert DnC(num_malicious=1, filter_factor=2.0)(line).tolist() == [1.5]


def test_where_nobody_is_left_those_dropped_least_often_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = DnC(num_malicious=5, num_iterations=3)
    script = iter([[9, 8, 7, 6, 5, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 9, 8, 7, 6, 5], [9, 8, 7, 6, 0, 5, 1, 2, 3, 4]])
    monkeypatch.setattr("fl_lightning.aggregators.dnc.squared_projections", lambda _: 9.0 - places(next(script)))
    kept = rule.kept(UpdateShard.from_updates(torch.zeros(10, 3)))
    assert torch.nonzero(kept).flatten().tolist() == [1, 2, 3, 4, 5]  # 0 and 6 to 9 went twice, these once


def places(largest_first: list[int]) -> Tensor:
    return torch.argsort(torch.tensor(largest_first)).double()


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    updates = attacked(n, n // 4, seed=seed)
    rule = DnC(num_malicious=n // 4)
    found = rule(updates)
    assert torch.equal(rule(-updates), -found)
    assert torch.equal(rule(updates * 2.0**power), found * 2.0**power)
    assert (found >= updates.amin(0) - 1e-5).all()
    assert (found <= updates.amax(0) + 1e-5).all()
    assert rule(updates[[i for i in order if i < n]]).tolist() == pytest.approx(found.tolist(), abs=1e-4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_exclusions_leave_one_at_least_and_say_so(n: int, caplog: pytest.LogCaptureFixture) -> None:
    updates = torch.cat([torch.arange(n)[:, None].float(), torch.full((4, 1), float("nan"))])
    with caplog.at_level(logging.WARNING):
        (found,) = DnC(num_malicious=3)(updates).tolist()
    assert found in (list(range(n)) if n < 3 else [1])
    assert caplog.records[-1].getMessage() == f"{n} clients cannot lose 3; dropping {n - 1}"


def test_check() -> None:
    rule = DnC(filter_factor=1.5)
    rule.expect(2)
    rule.check(4)
    with pytest.raises(
        ConfigurationError, match=r"dropping ceil\(1\.5 \* 2\) = 3 of 3 clients leaves nobody; lower filter_factor"
    ):
        rule.check(3)
    with pytest.raises(ConfigurationError, match=r"give DnC\(num_malicious=...\)"):
        DnC().check(9)


def test_buffers_take_the_median() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))
    assert DnC(num_malicious=1).aggregate_buffers(shard).tolist() == [2]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_malicious", -1), ("num_iterations", 0), ("subset_fraction", 0.0), ("subset_fraction", 1.1), ("filter_factor", 0.0)],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"DnC\.{setting} must .*, got {value}"):
        DnC(**{setting: value})


# ---- all rules that clip, filter, vote or draw -----------------------------------------------------------------------

RULES: dict[str, Aggregator] = {
    "SignSGD": SignSGD(),
    "RLR": RLR(threshold=4),
    "RFA": RFA(),
    "RFA, converged": RFA(max_iterations=100, ftol=0, weighted=False),
    "WeakDP": WeakDP(),
    "NormClipping": NormClipping(),
    "NormClipping, median": NormClipping(adaptive="median", weighted=False),
    "NormClipping, mean": NormClipping(adaptive="mean"),
    "MeanVarianceRatio": MeanVarianceRatio(),
    "MeanVarianceRatio, tstat": MeanVarianceRatio(ratio="tstat", threshold=1.0),
    "DnC": DnC(num_malicious=2),
    "FLAME": FLAME(),
    "SignGuard": SignGuard(),
    "SignGuard, scattered": SignGuard(window="scattered", fraction=0.02, clustering="dbscan", eps=0.5),
    "FreqFed": FreqFed(),
    "FreqFed, 1d": FreqFed(transform="1d"),
    "RFLBAT": RFLBAT(),
    "LASA": LASA(),
    "LASA, strict": LASA(lambda_n=0.5, lambda_s=0.5),
    "AlignIns": AlignIns(),
    "AlignIns, unweighted": AlignIns(sparsity=0.05, lambda_c=2.0, lambda_s=2.0, weighted=False),
    "MultiMetrics": MultiMetrics(),
    "MultiMetrics, euclidean": MultiMetrics(length="euclidean", keep_fraction=0.6, weighted=False),
}
HOSTILE: dict[str, Callable[[int], Tensor]] = {
    "mixed": hostile_updates,
    "equal": lambda n: hostile_updates(1).repeat(n, 1),
    "duplicates": lambda n: hostile_updates(n)[[i // 2 for i in range(n)]],
    "zero": lambda n: torch.zeros(n, 160),
    "one is not zero": lambda n: torch.eye(n)[:1].expand(n, n) * torch.eye(n)[:, :1],
    "loud": lambda n: 1e30 * torch.randn(n, 160, generator=torch.Generator().manual_seed(n)),
    "one is loud": lambda n: torch.cat([torch.full((1, 9), 3e38), torch.ones(n - 1, 9)]),
    "denormal": lambda n: 2.0**-149 * torch.ones(n, 160),
    "no coordinates": lambda n: torch.zeros(n, 0),
}


def weights_of(d: int) -> Tensor:
    """The global model's."""
    return torch.randn(d, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_updates_stay_finite(name: str, kind: str) -> None:
    for n in (1, 2, 3, 4, 15):
        updates = HOSTILE[kind](n)
        before = updates.clone()
        shard = UpdateShard.from_updates(updates)
        shard.broadcast = weights_of(updates.shape[1])
        for part in (RULES[name](shard), RULES[name].aggregate_buffers(shard)):
            assert part.dtype == torch.float32
            assert part.shape == updates.shape[1:]
            assert part.isfinite().all(), n
        assert RULES[name].mask(shard).dtype == torch.bool
        assert torch.equal(updates, before)


@pytest.mark.parametrize("name", RULES)
def test_exclusions_may_leave_few(name: str) -> None:
    updates = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    for left in (0, 1, 2, 3):
        hostile = updates.clone()
        hostile[left:, 5] = torch.tensor([float("nan"), float("inf"), -float("inf")]).repeat(3)[: 7 - left]
        found = aggregated(name, hostile)
        assert torch.equal(found, aggregated(name, updates[:left]) if left else torch.zeros(40))
        assert found.isfinite().all()


def aggregated(name: str, updates: Tensor) -> Tensor:
    """Of a plain tensor, or by a shard, which brings the global model's weights, of those that are finite."""
    finite = updates.isfinite().all(1)
    if not name.startswith("AlignIns") or not finite.any():
        return RULES[name](updates)
    shard = UpdateShard.from_updates(updates[finite])
    shard.broadcast = weights_of(updates.shape[1])
    return RULES[name](shard)


LAYERS = [3000, 1, 1999]
NUM_CLIENTS = 9


def updates_on_ranks(loud: bool) -> Tensor:
    updates = attacked(NUM_CLIENTS, 2, d=sum(LAYERS))
    updates[3] = updates[4]
    updates[6, -1] = float("nan")
    if loud:
        updates[5, 1000:2000] = 1e30
    return updates


def rules_on_a_rank() -> dict[str, list[bytes]]:
    """Every rule's aggregate, mask and combined buffers on all coordinates, as bytes."""
    exchange = Exchange(LAYERS, torch.device("cpu"), bucket_bytes=4 * NUM_CLIENTS * 1024)
    owner = torch.tensor([(2, 0, 1, 1, 0, 3, 2, 2, 0)[client] % exchange.world for client in range(NUM_CLIENTS)])
    local = torch.nonzero(owner == exchange.rank).flatten().tolist()
    found = {}
    for loud in (False, True):
        room = exchange.local_updates(NUM_CLIENTS, len(local), torch.zeros(sum(LAYERS)))
        for k, client in enumerate(local):
            room.new[:] = -updates_on_ranks(loud)[client]
            room.store(k)
        weights, none = torch.arange(1.0, NUM_CLIENTS + 1), torch.zeros(NUM_CLIENTS).bool()
        shard = exchange.to_coordinates(room, owner, weights, none, seed=5, round_number=3)
        shard.keep(shard.finite_rows())
        shard.broadcast = weights_of(sum(LAYERS))[exchange.start : exchange.stop]
        for name, rule in RULES.items():
            parts = rule(shard), rule.mask(shard), rule.aggregate_buffers(shard)
            found[f"{name}, {loud}"] = [exchange.to_all(part).numpy().tobytes() for part in parts]
    return found


def test_same_bits_on_any_number_of_ranks() -> None:
    expected = rules_on_a_rank()
    assert len(set(map(tuple, expected.values()))) == len(expected)
    for world in (2, 3, 4):
        for rank, found in enumerate(on_ranks(world, rules_on_a_rank)):
            different = [name for name in expected if found[name] != expected[name]]
            assert not different, f"rank {rank} of {world}"
