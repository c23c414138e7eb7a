import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracles import assert_equivariant, cosine, deviations_from_median, judged, lower_middle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_lightning.aggregators.align_ins import AlignIns
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

W = torch.tensor([1.0, 2.0, -1.0, 0.5])
CHANGES = torch.tensor(
    [[1.0, 2.0, -1.0, 0.5], [1.0, 1.0, -2.0, -0.5], [0.5, 2.0, -1.0, 1.0], [1.0, 1.5, 0.2, 0.5], [-3.0, 4.0, 2.0, -2.0]]
)


def shard_of(updates: Tensor, broadcast: Tensor, weights: Tensor | None = None) -> UpdateShard:
    shard = UpdateShard.from_updates(updates, weights)
    shard.broadcast = broadcast
    return shard


def attacked(n: int, f: int, d: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n updates that point roughly along the model, the first f of them against it, and the model."""
    draws = torch.Generator().manual_seed(seed)
    model = torch.randn(d, generator=draws)
    updates = torch.randn(n, d, generator=draws) - model
    updates[:f] = -2 * updates[:f]
    return updates, model


def slow_alignment(rows: np.ndarray, k: int) -> list[float]:
    """Of each row, the share of its k largest entries that have the sign of most rows; ties for the last place averaged."""
    votes = [np.sign(sum(np.sign(value) for value in column)) for column in rows.T]
    found = []
    for row in rows:
        order = sorted(range(len(row)), key=lambda c: -abs(row[c]))
        last = abs(row[order[k - 1]])
        agree = [Fraction(int(np.sign(row[c]) == votes[c])) for c in range(len(row))]
        above = [agree[c] for c in order if abs(row[c]) > last]
        ties = [agree[c] for c in order if abs(row[c]) == last]
        found.append(float((sum(above) + (k - len(above)) * sum(ties) / Fraction(len(ties))) / k))
    return found


def slow_rule(rows: np.ndarray, model: np.ndarray, weights: list[float], k: int, bounds: tuple[float, float]) -> Any:
    aligned = [cosine(-row, model) for row in rows]
    far = deviations_from_median(aligned), deviations_from_median(slow_alignment(rows, k))
    kept = [i for i in range(len(rows)) if far[0][i] < bounds[0] and far[1][i] < bounds[1]]
    if not kept:
        return np.zeros(rows.shape[1]), kept
    norms = {i: math.sqrt(math.fsum(rows[i] ** 2)) for i in kept}
    most = lower_middle(list(norms.values()))
    total = sum(weights[i] for i in kept)
    return sum(weights[i] / total * rows[i] * min(1, most / norms[i]) for i in kept), kept


@pytest.mark.parametrize("sign", [1, -1])
def test_by_hand(sign: int) -> None:
    rule, shard = AlignIns(sparsity=0.5), shard_of(sign * CHANGES, W)
    aligned = rule.model_alignment(shard, shard.norms())
    assert (-sign * aligned).tolist() == pytest.approx([1, 0.76, 0.96, 0.861020, 0.139262], abs=1e-6)
    assert rule.sign_alignment(shard).tolist() == [1, 1, 1, 1, 0.5]
    assert deviations_from_median(aligned.tolist()) == pytest.approx([0.443, 0.322, 0.316, 0, 2.301], abs=1e-3)
    assert rule(shard).tolist() == pytest.approx([sign * value for value in (0.875, 1.625, -0.95, 0.375)], abs=1e-6)
    assert shard.verdict is not None
    assert shard.verdict.tolist() == [1, 1, 1, 1, 0]


@pytest.mark.parametrize(("n", "f", "d"), [(3, 0, 50), (8, 2, 200), (9, 2, 7), (20, 4, 3000)])
def test_equals_its_definition(n: int, f: int, d: int) -> None:
    updates, model = attacked(n, f, d, seed=n)
    updates[-1, :3] = 0
    weights = torch.arange(1.0, n + 1)
    for rule, given_weights, bounds in (
        (AlignIns(), weights.tolist(), (1, 1)),
        (AlignIns(lambda_c=1.5, lambda_s=2.0, weighted=False), [1.0] * n, (1.5, 2)),
    ):
        shard = shard_of(updates, model, weights)
        k = max(1, (3 * d) // 10)
        rows = updates.double().numpy()
        assert rule.sign_alignment(shard).tolist() == pytest.approx(slow_alignment(rows, k), rel=1e-14)
        expected, kept = slow_rule(rows, model.double().numpy(), given_weights, k, bounds)
        np.testing.assert_allclose(rule(shard).numpy(), expected, atol=(n + 3) * 2.0**-23 * np.abs(rows).max())
        assert shard.verdict is not None
        assert shard.verdict.nonzero().flatten().tolist() == kept
        assert n == 3 or min(kept) >= f


def test_ties_for_the_last_place_count_by_their_average() -> None:
    updates = torch.tensor([[3.0, 1.0, 1.0, -1.0], [3.0, 1.0, 1.0, 1.0], [3.0, 2.0, -1.0, 1.0]])
    # Signs go up everywhere. Of two places the first two clients have one for three ties.
    found = AlignIns(sparsity=0.5).sign_alignment(UpdateShard.from_updates(updates))
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 2, 1, 1])
    rounded = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).round()
    found = AlignIns().sign_alignment(UpdateShard.from_updates(rounded))
    assert found.tolist() == pytest.approx(slow_alignment(rounded.numpy(), 12), rel=1e-14)


def test_tied_votes_agree_with_zeros_only() -> None:
    updates = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [0.0, -0.0], [0.0, 0.0]])
    found = AlignIns(sparsity=1.0).sign_alignment(UpdateShard.from_updates(updates))
    assert found.tolist() == [0, 0, 0, 0, 1, 1]


def test_equal_numbers_all_pass() -> None:
    updates = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).expand(5, 50)
    assert judged(AlignIns(), updates, broadcast=torch.ones(50)) == [1] * 5
    assert judged(AlignIns(), torch.zeros(5, 50), broadcast=torch.ones(50)) == [1] * 5
    assert judged(AlignIns(), updates, broadcast=torch.zeros(50)) == [1] * 5
    assert judged(AlignIns(), torch.zeros(3, 0), broadcast=torch.zeros(0)) == [1] * 3


def test_where_none_passes_the_update_is_zero(caplog: pytest.LogCaptureFixture) -> None:
    shard = shard_of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 0.0]))
    assert not AlignIns()(shard).any()
    assert caplog.records[-1].getMessage() == "AlignIns: none of 2 clients is left, so the update is zero"
    assert shard.verdict is not None
    assert not shard.verdict.any()


def test_clients_without_samples_are_no_update() -> None:
    updates, model = attacked(8, 2)
    passes = torch.tensor(judged(AlignIns(), updates, broadcast=model)) > 0
    assert not AlignIns()(shard_of(updates, model, (~passes).float())).any()


def test_a_plain_tensor_has_no_global_model() -> None:
    with pytest.raises(ConfigurationError, match=r"a plain tensor does not bring; use it in a federation, or make a shard"):
        AlignIns()(torch.ones(4, 3))


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    assert_equivariant(AlignIns(weighted=False, lambda_s=1.3), attacked(n, n // 4, 120, seed)[0], order, power)


def test_buffers_take_the_median() -> None:
    assert AlignIns().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]


def test_check() -> None:
    AlignIns().check(3)
    with pytest.raises(ConfigurationError, match=r"of 2 clients none is nearer .* takes 3; raise model\.cohort"):
        AlignIns().check(2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sparsity", 0.0), ("sparsity", 1.1), ("lambda_c", 0.0), ("lambda_s", -1.0), ("lambda_c", math.nan)],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"AlignIns\.{setting} must .*, got {value}"):
        AlignIns(**{setting: value})
