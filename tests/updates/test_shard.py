"""Shards: pieces, blocks and layers are cut where they should be, and what depends on all coordinates is the same anywhere."""

from typing import Any

import numpy as np
import pytest
import torch
from made_shards import bits, cut, drawn
from ranks import on_ranks
from torch import Tensor

from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.layers import as_layers
from fl_lightning.updates.shard import CACHE_ELEMENTS, ROWS_AT_A_TIME, UpdateShard


def test_from_updates() -> None:
    updates = drawn(3, 5).double().requires_grad_()
    shard = UpdateShard.from_updates(updates)
    assert torch.equal(shard.values, updates.detach().float())
    assert not shard.values.requires_grad
    assert shard.weights.tolist() == [1, 1, 1]
    assert shard.malicious.tolist() == [False] * 3
    assert (shard.num_clients, shard.width, shard.num_coordinates, shard.start) == (3, 5, 5, 0)
    assert shard.layers == as_layers([5])
    assert not shard.distributed

    given = UpdateShard.from_updates(updates, torch.tensor([1, 2, 5]), torch.tensor([False, True, True]))
    assert given.weights.dtype == torch.float32
    assert given.weights.tolist() == [1, 2, 5]
    assert given.malicious.tolist() == [False, True, True]


def test_values_are_all_buckets_side_by_side() -> None:
    updates = drawn(2, 7)
    shard = cut(updates, 3, 0, 4)
    assert torch.equal(shard.values, updates)
    assert shard.width == 7
    whole = cut(updates, 7)
    assert whole.values is whole.buckets[0]


def test_shares_are_weights_over_their_sum() -> None:
    shard = UpdateShard.from_updates(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 5.0]))
    assert shard.shares.tolist() == [0.125, 0.25, 0.625]
    big = UpdateShard.from_updates(torch.zeros(3, 1), torch.full((3,), 3e38))  # the sum is beyond float32
    assert torch.equal(big.shares, torch.tensor([1 / 3] * 3))


# ---- coordinate by coordinate ----------------------------------------------------------------------------------------


def test_map_keeps_columns_in_place_over_pieces_and_buckets() -> None:
    pieces = []

    def first_row(values: Tensor) -> Tensor:
        pieces.append(values.shape)
        return values[0]

    updates = drawn(2, 300_000)
    assert torch.equal(cut(updates, 280_000, 0, 20_000).map(first_row), updates[0])
    assert all(n == 2 for n, _ in pieces)
    assert sum(columns for _, columns in pieces) == 300_000
    assert max(columns for _, columns in pieces) == CACHE_ELEMENTS // 2


def test_map_row_by_row_has_longer_pieces() -> None:
    updates, widths = drawn(100, 3 * CACHE_ELEMENTS // ROWS_AT_A_TIME // 2), []

    def last_row(values: Tensor) -> Tensor:
        widths.append(values.shape[1])
        return values[-1]

    shard = cut(updates, updates.shape[1])
    assert torch.equal(shard.map(last_row, row_by_row=True), updates[-1])
    assert widths == [CACHE_ELEMENTS // ROWS_AT_A_TIME, CACHE_ELEMENTS // ROWS_AT_A_TIME // 2]


def test_map_takes_any_type_and_any_width() -> None:
    updates = drawn(3, 10)
    found = cut(updates, 10).map(lambda values: values[0] > 0, dtype=torch.bool)
    assert found.dtype == torch.bool
    assert torch.equal(found, updates[0] > 0)
    assert cut(updates[:, :0], 0).map(lambda values: values[0]).shape == (0,)
    many = torch.ones(2000, 700)  # more rows than fit the cache: still some columns at a time
    assert torch.equal(cut(many, 700).map(lambda values: values.sum(0)), torch.full((700,), 2000.0))


def test_mean_by_hand() -> None:
    shard = UpdateShard.from_updates(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), torch.tensor([3.0, 1.0]))
    assert shard.mean().tolist() == [2.5, 1.5]
    assert shard.mean(shard.shares).tolist() == [1.75, 0.75]
    assert shard.mean(torch.tensor([0.0, 1.0])).tolist() == [4, 3]
    with pytest.raises(ValueError, match="shorter"):
        shard.mean(torch.tensor([1.0]))


def test_mean_adds_scaled_rows_in_order_to_the_bit() -> None:
    updates = drawn(20, 1000) * 10 ** drawn(20, 1000, seed=1)
    shares = torch.rand(20, generator=torch.Generator().manual_seed(2))
    expected = np.zeros(1000, np.float32)
    for row, share in zip(updates.numpy(), shares.numpy(), strict=True):
        expected += row * share
    for widths in ([1000], [1, 999], [513, 480, 7]):
        assert bits(cut(updates, *widths).mean(shares)) == expected.tobytes()


# ---- over all coordinates --------------------------------------------------------------------------------------------


def test_reduce_sums_inside_blocks_of_block_size() -> None:
    seen = []

    def total(values: Tensor) -> Tensor:
        seen.append(values.shape[1])
        return values.sum()

    updates = drawn(2, 2 * 1024 + 5)
    assert cut(updates, 2 * 1024 + 5).reduce(total).item() == pytest.approx(updates.double().sum().item())
    assert sorted(seen) == [1, 5, 1024, 1024]  # 1: a look at what a partial sum is like


@pytest.mark.parametrize("widths", [(4096,), (1024, 3072), (2048, 1024, 1024), (1024, 1024, 1024, 1024)])
def test_reduce_adds_blocks_in_pairs(widths: tuple[int, ...]) -> None:
    # Each block has one large or small entry; in pairs (2^60 + 1) + (-2^60 + 1) is 0, from left to right it would be 1.
    updates = torch.zeros(1, 4096)
    updates[0, [0, 1024, 2048, 3072]] = torch.tensor([2.0**60, 1.0, -(2.0**60), 1.0])
    assert cut(updates, *widths).reduce(lambda values: values.sum()).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reduce_hands_out_copies(dtype: torch.dtype) -> None:
    updates = drawn(3, 1024).to(dtype)  # a block in one piece
    shard = UpdateShard([updates.clone()], torch.ones(3), torch.zeros(3).bool(), num_coordinates=1024)
    shard.norms()
    assert torch.equal(shard.buckets[0], updates)


def test_reduce_takes_any_shape_and_no_coordinates_at_all() -> None:
    updates = drawn(3, 3000)
    two = cut(updates, 2048, 952).reduce(lambda values: torch.stack([values.sum(), values.abs().max()]))
    assert two.shape == (2,)
    assert two[0].item() == pytest.approx(updates.double().sum().item())
    nothing = cut(updates[:, :0], 0)
    assert torch.equal(nothing.reduce(lambda values: values.sum(1)), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(nothing.gram(), torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("d", [1, 100, 1024, 5000])
def test_gram_is_taken_in_float64(d: int) -> None:
    updates = drawn(6, d) * torch.tensor([1e-30, 1e-3, 1.0, 1e3, 1e25, 0.0])[:, None]
    wide = updates.numpy().astype(np.float64)
    gram = UpdateShard.from_updates(updates).gram()
    assert gram.dtype == torch.float64
    scale = np.sqrt(np.outer((wide**2).sum(1), (wide**2).sum(1)))
    assert (np.abs(gram.numpy() - wide @ wide.T) <= 1e-13 * scale).all()
    assert gram[5].eq(0).all()


def test_gram_has_the_same_bits_however_buckets_are_cut() -> None:
    updates = drawn(5, 5000)
    expected = bits(cut(updates, 5000).gram())
    assert bits(cut(updates, 1024, 3072, 904).gram()) == expected
    assert bits(cut(updates, 2048, 2048, 904).gram()) == expected


@pytest.mark.parametrize("widths", [(5000,), (1024, 3072, 904), (1024, 1024, 1024, 1024, 904)])
def test_float32_sums_have_the_same_bits_however_buckets_are_cut(widths: tuple[int, ...]) -> None:
    updates = drawn(5, 5000) * 10 ** drawn(5, 5000, seed=1)
    expected = sum((block.contiguous().sum() for block in updates.split(1024, dim=1)), torch.tensor(0.0))
    assert bits(cut(updates, *widths).reduce(lambda values: values.float().sum())) == bits(expected)


def test_count_refuses_floats() -> None:
    shard = cut(drawn(2, 3), 3)
    assert shard.count(torch.tensor([1, 2])).tolist() == [1, 2]
    with pytest.raises(AssertionError, match="reduce"):
        shard.count(torch.tensor([1.0]))


# ---- layers ----------------------------------------------------------------------------------------------------------


def test_layer_slices_of_a_whole_vector() -> None:
    shard = cut(drawn(2, 10), 10, layers=[3, 0, 1, 6])
    assert shard.layer_slices() == [(0, slice(0, 3)), (2, slice(3, 4)), (3, slice(4, 10))]


@pytest.mark.parametrize(
    ("start", "width", "expected"),
    [
        (0, 2, [(0, slice(0, 2))]),
        (2, 3, [(0, slice(0, 1)), (1, slice(1, 2)), (2, slice(2, 3))]),
        (3, 1, [(1, slice(0, 1))]),
        (4, 6, [(2, slice(0, 6))]),
        (6, 4, [(2, slice(0, 4))]),
        (10, 0, []),
    ],
)
def test_layer_slices_of_a_part(start: int, width: int, expected: list[tuple[int, slice]]) -> None:
    shard = UpdateShard(
        [torch.zeros(1, width)], torch.ones(1), torch.zeros(1).bool(), num_coordinates=10, start=start, layers=[3, 1, 6]
    )
    assert shard.layer_slices() == expected


def test_count_by_layer() -> None:
    shard = cut(drawn(1, 10), 10, layers=[3, 0, 1, 6])
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 1, 1]).bool()
    assert shard.count_by_layer(mask).tolist() == [2, 0, 1, 4]
    assert shard.count_by_layer(mask).dtype == torch.int64


# ---- sums along other vectors ----------------------------------------------------------------------------------------


def test_norms_are_those_of_float64() -> None:
    updates = drawn(7, 3000) * torch.tensor([1e-44, 1e-30, 1.0, 1e25, 1e38, 0.0, 1e-3])[:, None]
    updates[4].clamp_(-3.4e38, 3.4e38)
    norms = cut(updates, 1024, 1976).norms()
    assert (norms.dtype, norms.device.type) == (torch.float64, "cpu")
    np.testing.assert_allclose(norms.numpy(), np.sqrt((updates.numpy().astype(np.float64) ** 2).sum(1)), rtol=1e-14)


@pytest.mark.parametrize("widths", [(5000,), (1024, 3072, 904), (2048, 0, 2048, 904)])
def test_reduce_cuts_other_vectors_up_with_the_updates(widths: tuple[int, ...]) -> None:
    updates, one, two = drawn(3, 5000), drawn(1, 5000, seed=1)[0], drawn(1, 5000, seed=2)[0]
    seen = []

    def products(values: Tensor, a: Tensor, b: Tensor) -> Tensor:
        seen.append((values.shape[1], len(a), len(b)))
        return (values * a.double() * b.double()).sum(1)

    found = cut(updates, *widths).reduce(products, one, two)
    np.testing.assert_allclose(found.numpy(), (updates.double() * one.double() * two.double()).sum(1).numpy(), rtol=1e-10)
    assert all(len({*widths_seen}) == 1 for widths_seen in seen)
    assert bits(found) == bits(cut(updates, 5000).reduce(products, one, two))
    nothing = cut(updates[:, :0], 0).reduce(products, one[:0], two[:0])
    assert torch.equal(nothing, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("first", [0, 1, 1023, 1024, 2500, 4999, 5000])
@pytest.mark.parametrize("height", [0, 2])
def test_reduce_may_leave_the_first_coordinates_out(first: int, height: int) -> None:
    updates, along = drawn(3, 5000), drawn(1, 5000, seed=1)[0]

    def product(values: Tensor, vector: Tensor) -> Tensor:
        assert values.is_contiguous() or height
        return (values.double() * vector.double()).sum(1)

    settings: dict[str, Any] = {"height": height, "dtype": torch.float32 if height else torch.float64}
    found = cut(updates, 2048, 2952).reduce(product, along[first:], first=first, **settings)
    assert found.tolist() == pytest.approx((updates[:, first:].double() @ along[first:].double()).tolist(), abs=1e-9)
    zeroed = along.clone()
    zeroed[:first] = 0
    if first % 1024 == 0 and not height:
        assert bits(found) == bits(cut(updates, 5000).reduce(product, zeroed))


def parts_on_a_rank() -> dict[str, bytes]:
    """What depends on all coordinates, from this rank's; the last of three ranks has none of the 2000."""
    found = {}
    for d in (4000, 2000):
        exchange = Exchange([d], torch.device("cpu"))
        mine = slice(exchange.start, exchange.stop)
        updates = drawn(5, d) * 10 ** drawn(5, d, seed=1)
        along = drawn(2, d, seed=2)
        shard = UpdateShard(
            [updates[:, mine]],
            torch.ones(5),
            torch.zeros(5).bool(),
            num_coordinates=d,
            start=exchange.start,
            distributed=exchange.distributed,
        )
        sums = shard.reduce(lambda values, a, b: (values.float() * a - b).sum(1), *along[:, mine])  # where order shows
        found[f"along, {d}"] = bits(sums)
        later = along[:, max(exchange.start, min(1500, exchange.stop)) : exchange.stop]
        sums = shard.reduce(lambda values, a, b: (values.float() * a - b).sum(1), *later, first=1500)
        found[f"from 1500 on, {d}"] = bits(sums)
        found[f"norms, {d}"] = bits(shard.norms())
        found[f"rows, {d}"] = bits(exchange.to_all(shard.row(3)))
    return found


def test_all_is_the_same_on_any_number_of_ranks() -> None:
    expected = parts_on_a_rank()
    for world in (1, 2, 3):
        for rank, found in enumerate(on_ranks(world, parts_on_a_rank)):
            assert found == expected, f"rank {rank} of {world}"
