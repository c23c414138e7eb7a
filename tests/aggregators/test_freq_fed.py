import math
from typing import Any

import numpy as np
import pytest
import torch
from filter_oracles import assert_equivariant, cosine, grouped, judged
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on_ranks
from test_flame import single_linkage_core
from torch import Tensor

from fl_lightning.aggregators.freq_fed import FreqFed, as_matrix, low, low_frequencies_of
from fl_lightning.aggregators.majority_cluster import majority_cluster
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.layers import Layer, layers_of

SHAPES: list[tuple[int, ...]] = [(6, 9), (6,), (4, 3, 2, 2), (4,), (0, 3), (), (3, 7), (3,)]
NAMES = [f"tensor {i}" for i in range(len(SHAPES))]
LAYERS = layers_of(NAMES, SHAPES)
WIDTH = LAYERS[-1].stop
KINDS: list[dict[str, Any]] = [{}, {"layers": "last"}, {"transform": "1d"}, {"layers": "last", "transform": "1d"}]


def with_shapes(updates: Tensor, layers: list[Layer] = LAYERS) -> UpdateShard:
    shard = UpdateShard.from_updates(updates)
    shard.layers = layers
    return shard


def cosines(n: int) -> np.ndarray:
    """(n, n), the orthonormal transform of type II by its definition: row k has frequency k."""
    k, j = np.arange(n)[:, None], np.arange(n)
    return np.where(k > 0, math.sqrt(2 / n), math.sqrt(1 / n)) * np.cos(math.pi * k * (2 * j + 1) / (2 * n))


def slow_spectrum(row: np.ndarray, layers: str = "all", transform: str = "2d") -> np.ndarray:
    tensors = [layer for layer in (LAYERS if layers == "all" else LAYERS[-2:]) if layer.size]
    if transform == "1d":
        vector = np.concatenate([row[layer.start : layer.stop] for layer in tensors])
        whole = cosines(len(vector)) @ vector
        whole[0] *= math.sqrt(2)  # as all are, up to one factor, without normalisation
        return whole[: len(vector) // 2 + 1]
    kept = []
    for layer in tensors:
        h = layer.shape[0] if len(layer.shape) > 1 else 1
        matrix = row[layer.start : layer.stop].reshape(h, -1)
        whole = cosines(h) @ matrix @ cosines(matrix.shape[1]).T
        most = min(matrix.shape) // 2
        kept += [whole[r, c] for r in range(h) for c in range(matrix.shape[1]) if r + c <= most]
    return np.array(kept)


def test_transform_by_hand() -> None:
    np.testing.assert_allclose(cosines(4) @ [1, 2, 3, 4], [5, -2.230442, 0, -0.158513], atol=1e-6)
    rule, four = FreqFed(transform="1d"), torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = rule.low_frequencies(four, layers_of([""], [(4,)]))
    assert (found * 8).tolist() == pytest.approx([20, -6.308644, 0], abs=1e-5)  # its unit is the power of 2 above 4
    assert (FreqFed().low_frequencies(four, layers_of([""], [(4,)])) * 8).tolist() == [5]
    assert low_frequencies_of(np.array([[1.0], [2.0], [3.0]])).tolist() == pytest.approx([6 / math.sqrt(3)])
    assert [int(low(h, w).sum()) for h, w in [(1, 9), (2, 2), (4, 4), (64, 576)]] == [1, 3, 6, 33 * 34 // 2]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_spectrum_is_its_definition(kind: dict[str, Any]) -> None:
    rule = FreqFed(**kind)
    looked_at = rule.looked_at(LAYERS)
    for seed in range(5):
        update = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (10 * seed - 30)
        found = rule.low_frequencies(update, looked_at).double().numpy()
        expected = slow_spectrum(update.double().numpy(), **kind)
        assert len(found) == len(expected) == rule.number_kept(looked_at)
        assert cosine(found, expected) == pytest.approx(1, abs=1e-12)
        largest = max(float(update[layer.start : layer.stop].abs().max()) for layer in looked_at)
        unit = 2.0 ** math.floor(math.log2(largest) + 1)
        factor = 1.0 if kind.get("transform") != "1d" else math.sqrt(2 * sum(layer.size for layer in looked_at))
        np.testing.assert_allclose(found * unit, factor * expected, atol=1e-5 * factor * float(np.linalg.norm(expected)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n", "f"), [(3, 1), (9, 2), (20, 6)])
def test_equals_its_definition(n: int, f: int, kind: dict[str, Any]) -> None:
    updates = grouped(n, f, WIDTH, seed=n)
    shard = with_shapes(updates)
    found = FreqFed(**kind)(shard)
    members = single_linkage_core(np.array([slow_spectrum(row, **kind) for row in updates.double().numpy()]), n // 2 + 1)
    assert shard.verdict is not None
    assert shard.verdict.tolist() == [float(i in members) for i in range(n)]
    np.testing.assert_allclose(found.numpy(), updates[sorted(members)].double().mean(0).numpy(), atol=(n + 3) * 2e-7 * 9)


def test_high_frequencies_decide_nothing() -> None:
    """Who differs there alone is judged as if it did not, and who differs in low ones is left out."""
    benign = 0.1 * torch.randn(9, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    waves, verdicts = torch.from_numpy(cosines(16)).float(), []
    for k in (0, 15, 3):
        updates = benign.clone()
        updates[:3] += 90 * bool(k) * waves[k][:, None] * waves[k]
        shard = with_shapes(updates.flatten(1), layers_of(["w"], [(16, 16)]))
        FreqFed()(shard)
        assert shard.verdict is not None
        verdicts.append(shard.verdict.tolist())
    assert verdicts[0] == verdicts[1]
    assert any(verdicts[0][:3])
    assert verdicts[2][:3] == [0, 0, 0]
    assert sum(verdicts[2]) >= 5


def test_the_order_of_coordinates_matters_and_that_of_clients_does_not() -> None:
    updates = grouped(9, 2, 256)
    layers = layers_of(["w"], [(16, 16)])
    shuffled = updates[:, torch.randperm(256, generator=torch.Generator().manual_seed(1))]
    spectra = [FreqFed().low_frequencies(rows[5], layers) for rows in (updates, shuffled)]
    assert not torch.allclose(spectra[0], spectra[1], atol=0.1)
    draws = torch.Generator().manual_seed(0)
    smooth = torch.linspace(1, 2, 256).expand(9, 256) + 0.01 * torch.randn(9, 256, generator=draws)
    smooth[:2] = 3 - smooth[:2]
    order = torch.arange(256).reshape(16, 16).T.flatten()
    verdicts = []
    for rows in (smooth, smooth[:, order]):
        shard = with_shapes(rows, layers_of(["w"], [(2, 128)]))
        FreqFed()(shard)
        assert shard.verdict is not None
        verdicts.append(shard.verdict.tolist())
    assert verdicts[0][:2] == [0, 0]
    assert sum(verdicts[0]) >= 5
    assert verdicts[0] != verdicts[1]


@settings(deadline=None, max_examples=15)
@given(st.integers(3, 12), st.integers(0, 1000), st.permutations(range(12)), st.integers(-8, 8))
def test_properties(n: int, seed: int, order: list[int], power: int) -> None:
    updates = grouped(n, n // 4, WIDTH, seed)
    assert_equivariant(FreqFed(transform="1d"), updates, order, power)
    found = FreqFed()(with_shapes(updates))
    assert torch.equal(FreqFed()(with_shapes(-updates)), -found)
    assert torch.equal(FreqFed()(with_shapes(updates * 2.0**power)), found * 2.0**power)


def test_equal_zero_loud_and_tiny_updates() -> None:
    equal = torch.randn(1, WIDTH).expand(5, WIDTH) * torch.rand(5, 1)
    assert judged(FreqFed(transform="1d"), equal) == [1] * 5
    assert judged(FreqFed(transform="1d"), torch.cat([equal[:4], torch.zeros(1, WIDTH)])) == [1] * 4 + [0]
    assert not FreqFed()(with_shapes(torch.zeros(4, WIDTH))).any()
    draws = torch.Generator().manual_seed(0)
    for size in (3.4e38, 2.0**-149):
        updates = grouped(9, 2, WIDTH)
        updates[0] = size * torch.randn(WIDTH, generator=draws).sign()
        shard = with_shapes(updates)
        assert FreqFed()(shard).isfinite().all()
        assert shard.verdict is not None
        assert shard.verdict[0] == 0


RANK_LAYERS = layers_of(["a", "b", "c", "d"], [(40, 60), (40,), (23, 107), (23,)])


def found_on_a_rank() -> list[bytes]:
    width = RANK_LAYERS[-1].stop
    exchange = Exchange(RANK_LAYERS, torch.device("cpu"))
    mine, found = grouped(6, 2, width)[:, exchange.start : exchange.stop], []
    for kind in KINDS:
        shard = UpdateShard(
            list(mine.split(1024, dim=1)) if mine.shape[1] else [mine],
            torch.ones(6),
            torch.zeros(6).bool(),
            num_coordinates=width,
            start=exchange.start,
            layers=RANK_LAYERS,
            distributed=exchange.distributed,
        )
        found.append(exchange.to_all(FreqFed(**kind)(shard)).numpy().tobytes())
        assert shard.verdict is not None
        found.append(shard.verdict.numpy().tobytes())
    return found


def test_same_bits_on_any_number_of_ranks() -> None:
    expected = found_on_a_rank()
    for world in (2, 3):
        assert on_ranks(world, found_on_a_rank) == [expected] * world


def test_buffers_take_the_median() -> None:
    assert FreqFed().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]


def test_what_does_not_fit_is_refused() -> None:
    FreqFed().check(3)
    with pytest.raises(ConfigurationError, match=r"FreqFed: a cluster of more than half of 2 clients .* takes 3; raise model"):
        FreqFed().check(2)
    FreqFed().check_model(layers_of(["w"], [(3, 4)]))
    with pytest.raises(ConfigurationError, match=r"FreqFed.layers 'last' looks at the output layer"):
        FreqFed(layers="last").check_model(layers_of(["w"], [(3, 4)]))
    wrong: dict[str, Any] = {"layers": "first", "transform": "first"}
    for name, value in wrong.items():
        with pytest.raises(ConfigurationError, match=rf"FreqFed.{name} must be '.*', got 'first'"):
            FreqFed(**{name: value})
    assert as_matrix(LAYERS[2]) == (4, 12)
    assert majority_cluster(torch.zeros(2, 2).double()).tolist() == [True, True]
