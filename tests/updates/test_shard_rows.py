"""Rows of a shard: what is left out, mixed, split and rewritten."""

import numpy as np
import pytest
import torch
from made_shards import bits, cut, drawn
from torch import Tensor

from fl_lightning.updates.layers import as_layers
from fl_lightning.updates.shard import CACHE_ELEMENTS, UpdateShard

NAN, INF = float("nan"), float("inf")


def numbers(shard: UpdateShard) -> list[int]:
    assert shard.clients is not None
    return shard.clients.tolist()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_single_bad_entry_is_found_in_any_place(value: float) -> None:
    updates = drawn(2, 70)
    for column in range(70):
        updates[1, column], kept = value, float(updates[1, column])
        assert cut(updates, 70).finite_rows().tolist() == [True, False], f"column {column}"
        assert cut(updates, 64, 0, 6).finite_rows().tolist() == [True, False], f"column {column}"
        updates[1, column] = kept
    assert cut(updates, 70).finite_rows().all()


def test_bad_entries_do_not_hide_each_other() -> None:
    updates = torch.tensor([[1.0, 2, 3, 4], [NAN, INF, -INF, 0], [INF, 0, 0, NAN], [3e38, -3e38, 0, 1e-45], [0, 0, -INF, INF]])
    assert cut(updates, 4).finite_rows().tolist() == [True, False, False, True, False]
    assert cut(updates, 1, 1, 2).finite_rows().tolist() == [True, False, False, True, False]
    assert cut(updates[:, :0], 0).finite_rows().all()


def test_keep_drops_rows_everywhere() -> None:
    updates = drawn(4, 6)
    weights, malicious = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([True, False, True, False])
    shard = UpdateShard(updates.split([2, 4], dim=1), weights, malicious, num_coordinates=6)
    shard.keep(torch.tensor([True, False, False, True]))
    assert shard.num_clients == 2
    assert torch.equal(shard.values, updates[[0, 3]])
    assert shard.weights.tolist() == [1, 4]
    assert shard.malicious.tolist() == [True, False]
    shard.keep(torch.tensor([False, False]))
    assert (shard.num_clients, shard.width) == (0, 6)


def test_with_rows_shares_coordinates_only() -> None:
    shard = UpdateShard(
        [drawn(2, 4)], torch.tensor([3.0, 4.0]), torch.ones(2).bool(), num_coordinates=10, start=6, layers=[7, 3]
    )
    rows = drawn(3, 4, seed=1)
    other = shard.with_rows(rows)
    assert torch.equal(other.values, rows)
    assert other.weights.tolist() == [1, 1, 1]
    assert not other.malicious.any()
    assert (other.num_coordinates, other.start, other.layers) == (10, 6, as_layers([7, 3]))
    assert other.layer_slices() == shard.layer_slices()
    assert shard.num_clients == 2


def test_row_is_whole_over_all_buckets() -> None:
    updates = drawn(3, 9)
    for widths in ((9,), (4, 0, 5)):
        assert all(torch.equal(cut(updates, *widths).row(i), updates[i]) for i in range(3))


def test_split_looks_at_the_same_memory() -> None:
    updates = drawn(5, 6)
    weights, malicious = torch.arange(1.0, 6), torch.tensor([True, False, False, True, False])
    clients = torch.tensor([8, 6, 4, 2, 0])
    shard = UpdateShard(updates.split([2, 4], dim=1), weights, malicious, num_coordinates=6, clients=clients, round_number=7)
    shard.root = torch.ones(6)
    for first in range(6):
        for part, rows in zip(shard.split(first), (slice(None, first), slice(first, None)), strict=True):
            assert torch.equal(part.values, updates[rows])
            assert torch.equal(part.weights, weights[rows])
            assert torch.equal(part.malicious, malicious[rows])
            assert numbers(part) == clients[rows].tolist()
            assert part.root is shard.root
            assert (part.num_coordinates, part.round_number) == (6, 7)
    one, other = shard.split(2)
    one.buckets[0].fill_(-1)
    other.buckets[1].fill_(-2)
    assert torch.equal(shard.buckets[0][:2], torch.full((2, 2), -1.0))
    assert torch.equal(shard.buckets[1][2:], torch.full((3, 4), -2.0))
    other.keep(torch.tensor([True, False, True]))  # what one part drops the whole still has
    assert (numbers(other), shard.num_clients, numbers(shard)) == ([4, 0], 5, [8, 6, 4, 2, 0])
    assert [part.clients for part in cut(updates, 6).split(1)] == [None, None]


def test_mix_by_hand() -> None:
    shard = cut(torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 0.0], [8.0, 8.0, 8.0]]), 2, 1, clients=torch.tensor([5, 3, 1]))
    shard.malicious[2] = True
    shard.root = torch.ones(3)
    matrix = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    mixed = shard.mix(matrix)
    assert mixed.values.tolist() == [[2, 2, 1], [8, 8, 8]]
    assert mixed.weights.tolist() == [1, 1]
    assert mixed.malicious.tolist() == [False, True]
    assert mixed.clients is None
    assert mixed.root is shard.root
    assert numbers(shard.mix(matrix, torch.tensor([5, 1]))) == [5, 1]
    assert shard.with_rows(shard.values).clients is None


def test_mix_adds_in_float64_wherever_buckets_are_cut() -> None:
    updates = drawn(7, 5000) * 10 ** drawn(7, 5000, seed=1)
    matrix = torch.rand(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = matrix.numpy() @ updates.double().numpy()
    size = matrix.numpy() @ updates.double().abs().numpy()
    found = {bits(cut(updates, *widths).mix(matrix).values) for widths in ([5000], [1024, 3976], [2048, 1024, 1928])}
    assert len(found) == 1
    rounded = np.frombuffer(found.pop(), np.float32).reshape(4, 5000)
    assert (np.abs(rounded - exact) <= 2**-24 * np.abs(exact) + 1e-14 * size).all()  # one rounding to float32


@pytest.mark.parametrize("widths", [(300_000,), (1024, 298_976), (280_000, 0, 20_000)])
def test_rewrite_replaces_the_chosen_rows_wherever_buckets_and_pieces_are_cut(widths: tuple[int, ...]) -> None:
    updates, vector, rows = drawn(4, 300_000), drawn(1, 300_000, seed=1)[0], torch.tensor([False, True, False, True])
    matrix, pieces = drawn(2, 300_000, seed=2), []

    def function(chosen: Tensor, along: Tensor, two: Tensor) -> Tensor:
        pieces.append((chosen.shape, along.shape, two.shape))
        return 2 * chosen + along * two

    shard = cut(updates.clone(), *widths)
    shard.rewrite(rows, function, vector, matrix)
    expected = updates.clone()
    for j, i in enumerate((1, 3)):
        expected[i] = 2 * updates[i] + vector * matrix[j]
    assert bits(shard.values) == bits(expected)
    assert sum(chosen[1] for chosen, _, _ in pieces) == 300_000
    assert all(chosen[1] == along[0] == two[1] for chosen, along, two in pieces)
    assert max(chosen[1] for chosen, _, _ in pieces) <= CACHE_ELEMENTS // 4


def test_rewrite_gives_one_vector_to_all_chosen_rows() -> None:
    updates, vector = drawn(3, 3000), drawn(1, 3000, seed=1)[0]
    shard = cut(updates.clone(), 1024, 1976)
    shard.rewrite(torch.tensor([True, False, True]), lambda _, along: along, vector)
    assert bits(shard.values) == bits(torch.stack([vector, updates[1], vector]))


def test_rewrite_of_no_rows_does_nothing_and_of_all_everything() -> None:
    updates = drawn(3, 50)
    shard = cut(updates.clone(), 50)
    shard.rewrite(torch.zeros(3).bool(), lambda _: pytest.fail("there is nothing to rewrite"))
    assert bits(shard.values) == bits(updates)
    shard.rewrite(torch.ones(3).bool(), torch.neg)
    assert bits(shard.values) == bits(-updates)
    nothing = cut(updates[:, :0], 0)
    nothing.rewrite(torch.ones(3).bool(), lambda rows, along: rows + along, torch.empty(0))
    assert nothing.values.shape == (3, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_rank_without_coordinates_on_a_gpu() -> None:
    shard = UpdateShard.from_updates(torch.empty(3, 0, device="cuda"))
    assert shard.map(lambda values: values.sum(0)).shape == (0,)
    shard.rewrite(torch.ones(3, device="cuda").bool(), torch.neg)


def test_a_row_that_was_rewritten_is_looked_at_again() -> None:
    shard = cut(drawn(4, 30), 30, finite=torch.tensor([True, True, False, True]))
    rows = torch.tensor([False, True, False, False])
    assert shard.finite_rows().tolist() == [True, True, False, True]  # as it was told
    shard.rewrite(rows, lambda values: values * INF)
    part, _ = shard.split(3)
    assert part.finite_rows().tolist() == [True, False, False]
    assert shard.finite_rows().tolist() == [True, False, False, True]
    shard.rewrite(rows, torch.zeros_like)
    shard.look_again(torch.zeros(4, dtype=torch.bool))
    assert shard.finite_rows().tolist() == [True, True, False, True]
