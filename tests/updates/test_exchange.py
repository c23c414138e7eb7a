"""The exchange between ranks: every coordinate of every client arrives in its place, and bits do not depend on ranks."""

import pickle
import time
import weakref
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor

from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.gathering import LENGTH_BYTES, PACKET_BYTES
from fl_lightning.updates.layers import as_layers
from fl_lightning.updates.shard import UpdateShard

CPU = torch.device("cpu")
PICKLE_BYTES = len(pickle.dumps(b"y" * PACKET_BYTES)) - PACKET_BYTES
WORLDS = [1, 2, 3, 4]
LAYERS = {  # by number of coordinates: less than one block, one, several, a ragged end, blocks of 2048
    0: [],
    1: [1],
    700: [1, 699],
    1024: [1024],
    5000: [3000, 0, 1, 1999],
    8 * 1024: [8 * 1024],
    300_001: [300_000, 1],
}
OWNERS = {  # by rule: who trains each of seven clients on W ranks
    "in turn": lambda i, world: i % world,
    "in blocks": lambda i, world: i * world // 7,
    "backwards": lambda i, world: world - 1 - i % world,
    "all on the last": lambda _, world: world - 1,
    "none on the last": lambda i, world: 5 * i % max(1, world - 1),
    "mixed": lambda i, world: (3, 0, 2, 2, 1, 0, 2)[i] % world,
}
NUM_CLIENTS = 7


def drawn_updates(d: int) -> Tensor:
    """Entries of very different size, so that sums in another order have other bits."""
    gen = torch.Generator().manual_seed(d)
    return torch.randn(NUM_CLIENTS, d, generator=gen) * 10 ** (2 * torch.randn(NUM_CLIENTS, d, generator=gen))


def send(exchange: Exchange, updates: Tensor, owner: Tensor, weights: Tensor, malicious: Tensor) -> UpdateShard:
    """What a round does: each rank stores its own clients' updates, then all exchange."""
    local = torch.nonzero(owner == exchange.rank).flatten().tolist()
    room = exchange.local_updates(len(owner), len(local), torch.zeros(updates.shape[1]))
    for k, client in enumerate(local):
        room.new[:] = -updates[client]
        room.store(k)
        room.new[:] = float("nan")  # whatever is left there must not matter
    shard = exchange.to_coordinates(room, owner, weights, malicious)
    if exchange.distributed:
        assert len(room.buckets) == max(0, len(shard.buckets) - 2)  # the first is there, the second on its way
    assert torch.equal(shard.finite_rows(), updates.isfinite().all(dim=1))
    shard.settle()
    assert room.buckets == []  # given up
    return shard


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def journeys() -> dict[Any, Any]:
    """On a rank: all sizes, owners and buckets; asserts what a rank sees, returns what must be alike everywhere."""
    found: dict[Any, Any] = {}
    world = dist.get_world_size()
    weights = torch.arange(NUM_CLIENTS) + 1.0
    malicious = torch.arange(NUM_CLIENTS) % 3 == 0
    for d, layers in LAYERS.items():
        updates = drawn_updates(d)
        for name, rule in OWNERS.items() if d < 10_000 else [("mixed", OWNERS["mixed"])]:
            owner = torch.tensor([rule(i, world) for i in range(NUM_CLIENTS)])
            for bucket_bytes in (1, 3 * 4 * NUM_CLIENTS * 1024, 64 * 2**20):
                exchange = Exchange(layers, CPU, bucket_bytes=bucket_bytes)
                shard = send(exchange, updates, owner, weights, malicious)
                where = f"{d} coordinates, {name}, buckets of {bucket_bytes} bytes"
                mine = updates[:, exchange.start : exchange.stop]
                held = torch.cat([mine[:, :0], *shard.buckets], dim=1)
                assert torch.equal(held, mine), where
                assert (shard.width, shard.start, shard.num_coordinates) == (mine.shape[1], exchange.start, d), where
                assert torch.equal(shard.weights, weights), where
                assert torch.equal(shard.malicious, malicious), where
                assert shard.layers == as_layers(layers)
                for client in (0, NUM_CLIENTS - 1):
                    assert torch.equal(exchange.to_all(held[client].clone()), updates[client]), where
        exchange = Exchange(layers, CPU, bucket_bytes=1)
        owner = torch.tensor([OWNERS["mixed"](i, world) for i in range(NUM_CLIENTS)])
        found[d] = shard_sums(exchange, send(exchange, updates, owner, weights, malicious))
    return found


def shard_sums(exchange: Exchange, shard: UpdateShard) -> dict[str, bytes]:
    first = torch.cat([torch.empty(0), *(bucket[0] for bucket in shard.buckets)])
    single = shard.reduce(lambda values: values.float().sum())  # where the order shows most
    return {
        "norms": bits(shard.reduce(lambda values: values.square().sum(1))),
        "single": bits(single),
        "gram": bits(shard.gram()),
        "mean": bits(exchange.to_all(shard.mean())),
        "weighted mean": bits(exchange.to_all(shard.mean(shard.shares))),
        "other rows": bits(shard.with_rows(torch.stack([first, -first])).gram()),
        "mask, by layer": bits(shard.count_by_layer(first > 0)),
    }


@pytest.fixture(scope="module")
def found() -> dict[int, list[dict[Any, Any]]]:
    return {world: on_ranks(world, journeys) for world in WORLDS}


def test_everything_is_alike_on_all_ranks_and_on_any_number_of_them(found: dict[int, list[dict[Any, Any]]]) -> None:
    reference = found[1][0]
    for world in WORLDS:
        for rank, other in enumerate(found[world]):
            for d, sums in reference.items():
                for name, expected in sums.items():
                    assert other[d][name] == expected, f"{name} of {d} coordinates on rank {rank} of {world}"


@pytest.mark.parametrize("d", LAYERS)
def test_sums_are_right(found: dict[int, list[dict[Any, Any]]], d: int) -> None:
    updates = drawn_updates(d)
    whole = UpdateShard.from_updates(updates)
    sums = found[1][0][d]
    wide = updates.double()
    gram = torch.frombuffer(bytearray(sums["gram"]), dtype=torch.float64).view(NUM_CLIENTS, NUM_CLIENTS)
    torch.testing.assert_close(gram, wide @ wide.T, rtol=1e-9, atol=1e-12 * float(wide.square().sum()))
    assert sums["mean"] == bits(whole.mean())
    layers = [part.gt(0).sum() for part in updates[0].split(LAYERS[d])] if d else []
    assert sums["mask, by layer"] == bits(torch.tensor(layers, dtype=torch.int64))


# ---- who owns what ---------------------------------------------------------------------------------------------------


def owned() -> list[tuple[int, int, int, int, list[int], list[int]]]:
    made = [Exchange([d], CPU, bucket_bytes=4 * 10 * 1024) for d in (1, 5000, 300_001)]
    return [(e.rank, e.start, e.stop, e.padded, e.bucket_columns(5), e.bucket_columns(1000)) for e in made]


def test_ranks_own_whole_blocks_one_after_the_other() -> None:
    ranks = on_ranks(3, owned)
    assert [one for one, _, _ in ranks] == [
        (0, 0, 1, 1024, [1024], [1024]),
        (1, 1, 1, 1024, [1024], [1024]),
        (2, 1, 1, 1024, [1024], [1024]),
    ]
    assert [some for _, some, _ in ranks] == [
        (0, 0, 2048, 2048, [2048], [1024, 1024]),
        (1, 2048, 4096, 2048, [2048], [1024, 1024]),
        (2, 4096, 5000, 2048, [2048], [1024, 1024]),
    ]
    for rank, (_, _, (r, start, stop, padded, few, many)) in enumerate(ranks):
        assert (r, padded) == (rank, 49 * 2048)  # 147 blocks
        assert (start, stop) == (rank * padded, min(padded * (rank + 1), 300_001))
        assert sum(few) == sum(many) == padded
        assert set(few) == set(many) == {block_size(300_001)}  # 10 or 0.05 of 1024 columns fit; a block always goes


def test_one_process_exchanges_nothing_and_copies_nothing() -> None:
    exchange = Exchange([3, 2], CPU, bucket_bytes=1)
    assert (exchange.world, exchange.rank, exchange.distributed) == (1, 0, False)
    assert (exchange.start, exchange.stop) == (0, 5)
    room = exchange.local_updates(2, 2, torch.full((5,), 20.0))
    (bucket,) = room.buckets
    for k in range(2):
        room.new[:] = 20 - (torch.arange(5.0) + 10 * k)
        room.store(k)
    shard = exchange.to_coordinates(room, torch.zeros(2, dtype=torch.int64), torch.ones(2), torch.zeros(2).bool())
    assert torch.equal(shard.values, torch.tensor([[0.0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]))
    assert shard.values.data_ptr() == bucket.data_ptr()
    vector = torch.arange(5.0)
    assert exchange.to_all(vector) is vector
    assert exchange.broadcast(vector) is vector
    assert exchange.collect("a") == ["a"]


# ---- memory and messages ---------------------------------------------------------------------------------------------


def memory() -> list[tuple[int, int, list[int]]]:
    """On a rank: bytes of updates it holds, the largest bucket, and how many are left at each message."""
    results = []
    for k_by_rank in ([1, 1, 1], [3, 0, 0]):
        owner = torch.tensor([rank for rank, k in enumerate(k_by_rank) for _ in range(k)])
        exchange = Exchange([10 * 1024], CPU, bucket_bytes=4 * 3 * 1024)
        room = exchange.local_updates(3, k_by_rank[exchange.rank], torch.zeros(10 * 1024))
        references = [weakref.ref(bucket) for bucket in room.buckets]
        held = sum(bucket.numel() for bucket in room.buckets)
        largest = max(bucket.shape[2] for bucket in room.buckets)
        alive = []
        real = dist.all_to_all_single

        def counted(*args: Any, alive=alive, references=references, real=real, **kwargs: Any) -> Any:
            expected, patience = len(references) - len(alive), time.monotonic() + 5
            while (left := sum(r() is not None for r in references)) > expected and time.monotonic() < patience:
                time.sleep(0.001)  # gloo's own thread may hold on to what it has just sent
            alive.append(left)
            return real(*args, **kwargs)

        dist.all_to_all_single = counted
        try:
            for _ in exchange.to_coordinates(room, owner, torch.ones(3), torch.zeros(3).bool()).buckets:
                pass
        finally:
            dist.all_to_all_single = real
        results.append((held, largest, alive))
    return results


def test_a_rank_holds_its_own_clients_and_gives_buckets_up_as_they_are_sent() -> None:
    padded = 4 * 1024  # ten blocks on three ranks
    for rank, (even, uneven) in enumerate(on_ranks(3, memory)):
        assert even == (3 * padded, 1024, [4, 3, 2, 1])  # one client: d and the padding
        assert uneven == ((9 * padded if rank == 0 else 0), 1024, [4, 3, 2, 1])


def messages() -> dict[str, Any]:
    rank = dist.get_rank()
    exchange = Exchange([5000], CPU)
    vector = torch.arange(4.0) + 100 * rank
    returned = exchange.broadcast(vector)
    integers = torch.tensor([rank, 1])
    shard = UpdateShard([torch.zeros(2, 0)], torch.ones(2), torch.zeros(2).bool(), num_coordinates=5000, distributed=True)
    for other in range(rank):  # a rank begins when those before have begun; who waited for the others would wait forever
        dist.recv(torch.zeros(1), src=other)
    begun = exchange.begin_collecting(b"z" * (rank * PACKET_BYTES))
    for other in range(rank + 1, dist.get_world_size()):
        dist.send(torch.zeros(1), dst=other)
    total = shard.count(integers)
    return {
        "collect later": begun(),
        "in place": returned is vector,
        "broadcast": vector.tolist(),
        "collect": exchange.collect({"rank": rank, "none": None}),
        "collect large": exchange.collect(b"x" * (rank * PACKET_BYTES)),  # the first fits into a packet, the others do not
        "collect exactly": exchange.collect(b"y" * (PACKET_BYTES - LENGTH_BYTES - PICKLE_BYTES + rank)),
        "count": total.tolist(),
        "untouched": integers.tolist(),
        "bool": exchange.to_all(torch.ones(exchange.stop - exchange.start, dtype=torch.bool)).tolist(),
        "finite": bad_rows(exchange, rank),
    }


def bad_rows(exchange: Exchange, rank: int) -> list[bool]:
    """Row 0 is bad on rank 0 only, row 1 on the last rank only, row 2 nowhere, row 3 on all."""
    values = torch.zeros(4, exchange.stop - exchange.start)
    if rank == 0:
        values[0, -1] = float("nan")
    if rank == 2:
        values[1, 0] = float("inf")
    values[3] = -float("inf")
    shard = UpdateShard(
        [values], torch.ones(4), torch.zeros(4).bool(), num_coordinates=5000, start=exchange.start, distributed=True
    )
    return shard.finite_rows().tolist()


def test_messages() -> None:
    for rank, got in enumerate(on_ranks(3, messages)):
        assert got["in place"]
        assert got["broadcast"] == [0, 1, 2, 3]
        assert got["collect"] == [{"rank": r, "none": None} for r in range(3)]
        assert [len(item) for item in got["collect large"]] == [0, PACKET_BYTES, 2 * PACKET_BYTES]
        assert [len(item) for item in got["collect later"]] == [0, PACKET_BYTES, 2 * PACKET_BYTES]
        assert [len(item) - len(got["collect exactly"][0]) for item in got["collect exactly"]] == [0, 1, 2]
        assert got["count"] == [3, 3]
        assert got["untouched"] == [rank, 1]
        assert got["bool"] == [True] * 5000
        assert got["finite"] == [False, False, True, False]


def broken() -> list[tuple[list[bool], list[bool], bool]]:
    """On a rank: which updates it takes for finite, which are NaN everywhere, and whether the others are as they were sent."""
    results = []
    for bucket_bytes in (1, 64 * 2**20):
        exchange = Exchange([5 * 1024], CPU, bucket_bytes=bucket_bytes)
        updates = drawn_updates(5 * 1024)
        updates[1, -1], updates[2, 0], updates[4, 2000:3000] = torch.nan, torch.inf, -torch.inf
        room = exchange.local_updates(NUM_CLIENTS, NUM_CLIENTS if exchange.rank == 0 else 0, torch.zeros(5 * 1024))
        for k in range(NUM_CLIENTS) if exchange.rank == 0 else ():
            room.new[:] = -updates[k]
            room.store(k)
        owner = torch.zeros(NUM_CLIENTS, dtype=torch.int64)
        shard = exchange.to_coordinates(room, owner, torch.ones(NUM_CLIENTS), torch.zeros(NUM_CLIENTS).bool())
        finite = shard.finite_rows()
        held = torch.cat(list(shard.buckets), dim=1)
        same = torch.equal(held[finite], updates[finite, exchange.start : exchange.stop])
        results.append((finite.tolist(), held.isnan().all(dim=1).tolist(), same))
    return results


def test_an_update_that_is_not_finite_somewhere_is_nan_everywhere() -> None:
    bad = [i in (1, 2, 4) for i in range(NUM_CLIENTS)]
    for world in (1, 2, 4):
        for rank, found_there in enumerate(on_ranks(world, broken)):
            empty = world == 4 and rank == 3  # owns no coordinate, but must know
            expected = ([not b for b in bad], [True] * NUM_CLIENTS if empty else bad, True)
            assert found_there == [expected] * 2, f"rank {rank} of {world}"


# ---- another implementation ------------------------------------------------------------------------------------------


def redistributed() -> tuple[tuple[int, ...], bool]:
    """On a rank: DTensor's change from sharded clients to sharded coordinates, and ours."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    rank, world = dist.get_rank(), dist.get_world_size()
    updates = drawn_updates(8 * 1024)[:5]  # three clients on rank 0, two on rank 1
    owner = torch.tensor([0, 0, 0, 1, 1])
    mesh = init_device_mesh("cpu", (world,))
    clients = DTensor.from_local(
        updates[owner == rank], mesh, [Shard(0)], run_check=False, shape=updates.shape, stride=updates.stride()
    )
    theirs = clients.redistribute(mesh, [Shard(1)]).to_local()
    ours = send(Exchange([8 * 1024], CPU, bucket_bytes=1), updates, owner, torch.ones(5), torch.zeros(5).bool())
    return tuple(theirs.shape), torch.equal(theirs, ours.values)


def test_as_dtensor_redistributes() -> None:
    assert on_ranks(2, redistributed) == [((5, 4 * 1024), True)] * 2
