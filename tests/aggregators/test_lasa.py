import math
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracles import assert_equivariant, deviations_from_median, judged, lower_middle
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from torch import Tensor

from fl_lightning.aggregators.lasa import LASA
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.layers import layers_of

SHAPES: list[tuple[int, ...]] = [(4, 6), (4,), (3, 4, 2, 2), (3,), (2, 3)]
WIDTH = sum(math.prod(shape) for shape in SHAPES)


def with_shapes(updates: Tensor, shapes: list[tuple[int, ...]]) -> UpdateShard:
    shard = UpdateShard.from_updates(updates)
    shard.layers = layers_of([f"tensor {i}" for i in range(len(shapes))], shapes)
    return shard


def attacked(n: int, f: int, seed: int = 0) -> Tensor:
    """n updates, of the first f of which one tensor is turned round and another one long."""
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, WIDTH, generator=draws) + 0.5
    updates[:f, :24] *= -1
    updates[:f, 28:76] *= 5
    return updates


def sparsified(row: np.ndarray, shapes: list[tuple[int, ...]], sparsity: float) -> np.ndarray:
    """Entry by entry."""
    thinned = [len(shape) > 1 for shape in shapes for _ in range(math.prod(shape))]
    magnitudes = sorted((abs(value) for value, thin in zip(row, thinned, strict=True) if thin), reverse=True)
    k = math.floor((1 - sparsity) * len(magnitudes) + 1e-9)
    if not magnitudes or not sparsity:
        return row
    least = magnitudes[k - 1] if k else math.inf
    return np.array([value if not thin or abs(value) > least else 0.0 for value, thin in zip(row, thinned, strict=True)])


def purity(part: np.ndarray, sparsity: float) -> float:
    signs = [float(np.sign(value)) for value in part]
    size = math.fsum(map(abs, signs))
    return 0.5 * (1 + (1 - sparsity) * math.fsum(signs) / size) if size else 0.5


def slow_rule(
    rows: np.ndarray, shapes: list[tuple[int, ...]], sparsity: float, bounds: tuple[float, float], average: str
) -> tuple[np.ndarray, list[float]]:
    """What is aggregated, and each client's share of the coordinates."""
    norms = [math.sqrt(math.fsum(row**2)) for row in rows]
    most = lower_middle(norms)
    clipped = np.array([row * min(1, most / norm) if norm else row for row, norm in zip(rows, norms, strict=True)])
    thin = np.array([sparsified(row, shapes, sparsity) for row in clipped])
    out, shares, at = np.zeros(rows.shape[1]), np.zeros(len(rows)), 0
    for shape in shapes:
        part = slice(at, at + math.prod(shape))
        far = deviations_from_median([math.sqrt(math.fsum(row[part] ** 2)) for row in thin])
        odd = deviations_from_median([purity(row[part], sparsity) for row in thin])
        passed = [i for i in range(len(rows)) if far[i] < bounds[0] and odd[i] < bounds[1]] or list(range(len(rows)))
        out[part] = (thin if average == "sparsified" else clipped)[passed][:, part].mean(0)
        shares[passed] += math.prod(shape) / rows.shape[1]
        at = part.stop
    return out, shares.tolist()


def test_sparsity_by_hand() -> None:
    row = [1.0, 2.0, -1.0, 0.5, 0.5, 1.0]
    shard = with_shapes(torch.tensor([row]), [(2, 3)])
    rule = LASA(average="sparsified")
    assert rule.thresholds(shard, rule.layer_of(shard)).tolist() == [[1]]
    assert rule(shard).tolist() == [0, 2, 0, 0, 0, 0]
    assert LASA(average="sparsified", sparsity=0)(shard).tolist() == row
    assert LASA(average="sparsified")(torch.tensor([row])).tolist() == row  # a vector
    assert LASA()(shard).tolist() == row
    assert purity(np.array([1.0, 2.0, -1.0]), 0.3) == pytest.approx(0.616667, abs=1e-6)


def test_by_hand() -> None:
    # Norms are sqrt(5) and 2, so nobody is cut. In the first tensor the last client's sign is 2.5 standard deviations off, in
    # the second its length is, and its sign.
    updates = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [-2.0, 0.0]])
    shard = with_shapes(updates, [(1,), (1,)])
    assert LASA()(shard).tolist() == [2, 1]
    assert shard.verdict is not None
    assert shard.verdict.tolist() == [1, 1, 1, 1, 0]
    assert LASA(lambda_s=3.0)(shard).tolist() == pytest.approx([6 / 5, 1])
    assert shard.verdict.tolist() == [1, 1, 1, 1, 0.5]
    assert LASA(lambda_s=3.0, lambda_n=3.0)(shard).tolist() == pytest.approx([6 / 5, 4 / 5])


@pytest.mark.parametrize("average", ["dense", "sparsified"])
@pytest.mark.parametrize(("n", "f"), [(3, 0), (8, 2), (9, 2), (20, 4)])
def test_equals_its_definition(n: int, f: int, average: Any) -> None:
    for sparsity, bounds in ((0.3, (1.0, 1.0)), (0.9, (2.0, 1.0)), (0.0, (0.5, 0.5))):
        updates = attacked(n, f, seed=n)
        shard = with_shapes(updates, SHAPES)
        rule = LASA(sparsity=sparsity, lambda_n=bounds[0], lambda_s=bounds[1], average=average)
        found = rule(shard)
        expected, shares = slow_rule(updates.double().numpy(), SHAPES, sparsity, bounds, average)
        np.testing.assert_allclose(found.numpy(), expected, atol=(n + 3) * 2.0**-23 * updates.abs().amax().item())
        assert shard.verdict is not None
        assert shard.verdict.tolist() == pytest.approx(shares, abs=1e-6)
        assert min(shares) < max(shares)


def test_an_attacked_tensor_is_left_out_and_the_others_are_not() -> None:
    updates = attacked(12, 2)
    updates[:2, 28:76] /= 5
    shard = with_shapes(updates, SHAPES)
    rule = LASA(lambda_n=2.0, lambda_s=2.0)
    norms = shard.norms()
    layer_of = rule.layer_of(shard)
    used = rule.used(shard, torch.ones_like(norms), layer_of, rule.thresholds(shard, layer_of))
    assert not used[:2, 0].any()
    assert used[2:, 0].float().mean() > 0.6
    assert used[:2, 2].all()


def test_where_nobody_passes_all_are_used() -> None:
    updates = torch.tensor([[1.0, 1.0], [3.0, -1.0]])  # of two both are one standard deviation off
    shard = with_shapes(updates, [(1,), (1,)])
    clipped = updates[1] * math.sqrt(2) / math.sqrt(10)
    assert LASA()(shard).tolist() == pytest.approx(((updates[0] + clipped) / 2).tolist())
    assert judged(LASA(), updates) == [1, 1]


def test_equal_zero_and_empty_updates() -> None:
    updates = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)).expand(5, WIDTH)
    shard = with_shapes(updates, SHAPES)
    np.testing.assert_allclose(LASA()(shard).numpy(), updates[0].numpy(), rtol=1e-6)
    assert not LASA()(with_shapes(torch.zeros(5, WIDTH), SHAPES)).any()
    assert judged(LASA(), torch.zeros(3, 0)) == [1] * 3
    some = attacked(6, 1)
    some[:, 24:28] = 0  # a tensor that nobody moves
    assert not LASA()(with_shapes(some, SHAPES))[24:28].any()


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    updates = attacked(n, n // 4, seed)
    assert_equivariant(LASA(), updates, order, power)
    found = LASA()(with_shapes(updates, SHAPES))
    assert torch.equal(LASA()(with_shapes(-updates, SHAPES)), -found)
    assert torch.equal(LASA()(with_shapes(updates * 2.0**power, SHAPES)), found * 2.0**power)


RANK_SHAPES = [(30, 40), (40,), (20, 40, 2), (1,), (23, 7)]
RANK_SIZES = [math.prod(shape) for shape in RANK_SHAPES]


def found_on_a_rank() -> list[bytes]:
    """Of tensors that end inside of blocks and buckets."""
    exchange = Exchange(RANK_SIZES, torch.device("cpu"), bucket_bytes=4 * 6 * 1024)
    updates = torch.randn(6, sum(RANK_SIZES), generator=torch.Generator().manual_seed(0)).round(decimals=1)
    updates[0, :1500] *= 9
    mine = slice(exchange.start, exchange.stop)
    own, found = updates[:, mine], []
    for rule in (LASA(), LASA(average="sparsified"), LASA(sparsity=0.8, lambda_n=0.5, lambda_s=2.0)):
        shard = UpdateShard(
            list(own.split(1024, dim=1)) if own.shape[1] else [own],
            torch.ones(6),
            torch.zeros(6).bool(),
            num_coordinates=sum(RANK_SIZES),
            start=exchange.start,
            layers=layers_of([""] * len(RANK_SHAPES), RANK_SHAPES),
            distributed=exchange.distributed,
        )
        found.append(exchange.to_all(rule(shard)).numpy().tobytes())
        assert shard.verdict is not None
        found.append(shard.verdict.numpy().tobytes())
    return found


def test_same_bits_on_any_number_of_ranks() -> None:
    expected = found_on_a_rank()
    assert len(set(expected)) == len(expected) - 1  # what is averaged does not change who is
    for world in (2, 3):
        assert on_ranks(world, found_on_a_rank) == [expected] * world


def test_buffers_take_the_median() -> None:
    assert LASA().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]


def test_check() -> None:
    LASA().check(3)
    with pytest.raises(ConfigurationError, match=r"of 2 clients none is nearer .* takes 3; raise model\.cohort"):
        LASA().check(2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sparsity", -0.1), ("sparsity", 1.0), ("lambda_n", 0.0), ("lambda_s", math.nan), ("average", "thin")],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"LASA\.{setting} must .*, got {value!r}"):
        LASA(**{setting: value})
