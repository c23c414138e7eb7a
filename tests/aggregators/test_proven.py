"""Decisions that float32 proves are those of the float64 matrix, on whatever updates; where it proves none, none is taken."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_many import HOSTILE, made_updates
from ranks import on_ranks
from torch import Tensor

from fl_lightning.aggregators import proven
from fl_lightning.aggregators.cosine_multi_krum import CosineMultiKrum
from fl_lightning.aggregators.distances import krum_scores, lowest, squared_distances, sum_of_nearest
from fl_lightning.aggregators.median import Median
from fl_lightning.aggregators.multi_krum import MultiKrum
from fl_lightning.aggregators.nearest_neighbor_mixing import NearestNeighborMixing
from fl_lightning.aggregators.proven import Bounds, distance_bounds, lowest_scores, nearest, score_bounds, smallest
from fl_lightning.updates import UpdateShard, rough_products
from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.rough_products import rough_gram


def nearest_by_matrix(shard: UpdateShard, count: int) -> Tensor:
    distances = squared_distances(shard.gram()).fill_diagonal_(-1)
    places = distances.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(distances.shape, dtype=torch.bool).scatter_(1, places, True)


def scores_by_matrix(shard: UpdateShard, neighbours: int) -> Tensor:
    return sum_of_nearest(squared_distances(shard.gram()), neighbours)


cases = st.tuples(st.sampled_from(HOSTILE), st.integers(3, 40), st.sampled_from([1, 3, 100, 2500]), st.integers(0, 99))


@settings(deadline=None, max_examples=120)
@given(case=cases, data=st.data())
def test_decisions_are_those_of_the_matrix(case: tuple[str, int, int, int], data: st.DataObject) -> None:
    shard = UpdateShard.from_updates(made_updates(*case))
    n = shard.num_clients
    count, neighbours = data.draw(st.integers(1, n)), data.draw(st.integers(1, n - 1))
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # look up whatever is unclear
            patch.setattr(proven, "SOME_PAIRS", 1)
            patch.setattr(proven, "SOME_ROWS", 1)
        patch.setattr(rough_products, "SPARSE", data.draw(st.sampled_from([0.0, 0.25, 1.0])))
        sets, chosen = nearest(shard, count), lowest_scores(shard, neighbours, count)
    assert sets is None or torch.equal(sets, nearest_by_matrix(shard, count))
    assert chosen is None or torch.equal(chosen, lowest(scores_by_matrix(shard, neighbours), count))


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("fine", [False, True])
def test_bounds_hold(kind: str, fine: bool) -> None:
    shard = UpdateShard.from_updates(made_updates(kind, 30, 9000, 5))
    distances = squared_distances(shard.gram())
    bounds = distance_bounds(rough_gram(shard, fine=fine))
    assert (bounds.low <= distances).all()
    assert (distances <= bounds.high).all()
    for neighbours in (1, 7, 29):
        low, high = score_bounds(bounds, neighbours)
        scores = scores_by_matrix(shard, neighbours)
        assert (low[0] <= scores).all()
        assert (scores <= high[0]).all()


def test_what_is_far_apart_needs_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    updates = torch.randn(30, 3000, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 31)[:, None]
    shard = UpdateShard.from_updates(updates)
    expected = nearest_by_matrix(shard, 20), lowest(scores_by_matrix(shard, 20), 7)
    for name in ("exact_products", "exact_squares"):
        monkeypatch.setattr(rough_products, name, lambda *_: pytest.fail("float64"))
        monkeypatch.setattr(proven, "exact_products", lambda *_: pytest.fail("float64"))
    sets, chosen = nearest(shard, 20), lowest_scores(shard, 20, 7)
    assert sets is not None
    assert chosen is not None
    assert torch.equal(sets, expected[0])
    assert torch.equal(chosen, expected[1])


def test_what_float32_cannot_tell_apart_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a line: from 0 the points 1 and -(1 + 1e-6) are as far, to float32. In float64 the first is nearer.
    points = [0.0, 1.0, -(1 + 1e-6), 50.0, 60.0, 71.0, 90.0, 120.0]
    shard = UpdateShard.from_updates(torch.tensor(points)[:, None].repeat(1, 2000))
    looked_up = []
    real = proven.exact_products
    monkeypatch.setattr(proven, "exact_products", lambda *args: looked_up.append(args[1]) or real(*args))
    monkeypatch.setattr(proven, "SOME_PAIRS", 1)
    sets = nearest(shard, 2)
    assert sets is not None
    assert sets[0].nonzero().flatten().tolist() == [0, 1]
    assert looked_up[0][0, [1, 2]].all()
    assert looked_up[0].sum() < 12


def test_ties_are_not_decided() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[0.0], [1.0], [-1.0], [5.0]]))
    assert nearest(shard, 2) is None
    assert lowest_scores(UpdateShard.from_updates(torch.ones(9, 5)), 3, 2) is None


def test_smallest_by_hand() -> None:
    low = torch.tensor([[0.0, 2.0, 4.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    high = torch.tensor([[1.0, 5.0, 6.0, 9.0], [1.0, 1.0, 1.0, 1.0]])
    for count, inside, unclear in (
        (1, [1, 0, 0, 0], [0, 0, 0, 0]),
        (2, [1, 0, 0, 0], [0, 1, 1, 0]),
        (3, [1, 1, 1, 0], [0, 0, 0, 0]),
        (4, [1, 1, 1, 1], [0, 0, 0, 0]),
    ):
        settled = smallest(Bounds(low, high), count)
        assert settled.inside[0].int().tolist() == inside
        assert settled.unclear[0].int().tolist() == unclear
        assert settled.unclear[1].all() == (count < 4)
    touching = Bounds(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    assert smallest(touching, 1).unclear.all()  # they may be equal


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
def test_rules_decide_as_they_did(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, d in ((12, 40), (40, 1500)):
        shard = UpdateShard.from_updates(made_updates(kind, n, d, 1))
        rules = [MultiKrum(num_malicious=f, num_selected=m) for f in (0, n // 4, n - 3, n - 2) for m in (None, 1, n)]
        rules.append(CosineMultiKrum(num_malicious=2))
        mixing = [NearestNeighborMixing(rule=Median(), num_malicious=f) for f in (0, n // 4, n - 1, n)]
        monkeypatch.setattr(proven, "MANY_CLIENTS", n + 1)
        expected = [rule.selected(shard) for rule in rules], [rule.matrix(shard) for rule in mixing]
        monkeypatch.setattr(proven, "MANY_CLIENTS", 1)
        for rule, found in zip(rules, expected[0], strict=True):
            assert torch.equal(rule.selected(shard), found)
        for rule, found in zip(mixing, expected[1], strict=True):
            assert torch.equal(rule.matrix(shard), found)


def test_many_clients_take_the_way_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    shard = UpdateShard.from_updates(torch.randn(proven.MANY_CLIENTS, 3000, generator=torch.Generator().manual_seed(3)))
    distances = squared_distances(shard.gram())
    sets = nearest_by_matrix(shard, shard.num_clients - 50)
    monkeypatch.setattr(UpdateShard, "gram", lambda _: pytest.fail("the whole matrix in float64"))
    assert MultiKrum(num_malicious=50).selected(shard).tolist() == lowest(krum_scores(distances, 50), 206).tolist()
    assert torch.equal(NearestNeighborMixing(rule=Median(), num_malicious=50).matrix(shard) > 0, sets)


def decisions_on_a_rank() -> list[bytes]:
    updates = made_updates("near", 30, 9000, 2)
    exchange = Exchange([9000], torch.device("cpu"), bucket_bytes=4 * 30 * 2048)
    room = exchange.local_updates(30, 30 if exchange.rank == 0 else 0, torch.zeros(9000))
    for i, update in enumerate(updates if exchange.rank == 0 else []):
        room.new[:] = -update
        room.store(i)
    everyone = torch.ones(30), torch.zeros(30).bool(), torch.arange(30)
    shard = exchange.to_coordinates(room, torch.zeros(30, dtype=torch.int64), *everyone, seed=3, round_number=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proven, "SOME_PAIRS", 1)
        patch.setattr(proven, "SOME_ROWS", 1)
        found = nearest(shard, 20), lowest_scores(shard, 20, 7)
    return [np.asarray(part).tobytes() for part in found if part is not None]


def test_any_number_of_ranks_decides_alike() -> None:
    shard = UpdateShard.from_updates(made_updates("near", 30, 9000, 2))
    expected = [
        nearest_by_matrix(shard, 20).numpy().tobytes(),
        lowest(scores_by_matrix(shard, 20), 7).numpy().tobytes(),
    ]
    assert on_ranks(3, decisions_on_a_rank) == [expected] * 3
