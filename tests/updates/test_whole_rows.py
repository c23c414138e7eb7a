import pytest
import torch
from made_shards import bits, cut, drawn
from ranks import on_ranks
from torch import Tensor

from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.whole_rows import of_whole_rows

N, D = 5, 3000


def running_sums(row: Tensor) -> Tensor:
    """Longer than a row, and of all that comes before."""
    return torch.cat([row.cumsum(0), row.flip(0).cumsum(0)])


def ends(row: Tensor) -> Tensor:
    return row[[0, -1]] * 2


def test_rows_are_functions_of_rows() -> None:
    updates = drawn(N, D)
    shard = cut(updates, 2048, D - 2048, clients=torch.arange(10, 10 + N), seed=4, round_number=9)
    found = of_whole_rows(shard, running_sums, 2 * D)
    assert torch.equal(found.values, torch.stack([running_sums(row) for row in updates]))
    assert found.clients is not None
    assert found.clients.tolist() == list(range(10, 10 + N))
    assert (found.num_coordinates, found.seed, found.round_number) == (2 * D, 4, 9)
    assert bits(found.gram()) == bits(cut(found.values, 2 * D).gram())
    assert torch.equal(shard.values, updates)


@pytest.mark.parametrize(("n", "d", "q"), [(0, 7, 3), (3, 0, 2), (3, 7, 0)])
def test_no_rows_no_coordinates_and_no_results(n: int, d: int, q: int) -> None:
    found = of_whole_rows(cut(torch.ones(n, d), d), lambda row: row.new_full((q,), len(row)), q)
    assert found.values.tolist() == [[d] * q] * n


def results_on_a_rank() -> dict[str, list[bytes]]:
    exchange = Exchange([1700, D - 1700], torch.device("cpu"))
    updates = drawn(N, D) * 10 ** drawn(N, D, seed=1)
    mine, seen = updates[:, exchange.start : exchange.stop], []
    shard = UpdateShard(
        list(mine.split(1024, dim=1)) if mine.shape[1] else [mine],
        torch.arange(1.0, N + 1),
        torch.zeros(N).bool(),
        clients=torch.arange(N),
        num_coordinates=D,
        start=exchange.start,
        distributed=exchange.distributed,
    )
    results = {}
    for function, width in ((running_sums, 2 * D), (ends, 2), (lambda row: row[:0], 0)):

        def noting(row: Tensor, function=function) -> Tensor:
            seen.append(len(row))
            return function(row)

        found = of_whole_rows(shard, noting, width)
        results[str(width)] = [bits(exchange.to_all(shard.row(2))), bits(found.gram()), bits(found.weights)]
        results[str(width)].append(bits(Exchange([width], torch.device("cpu")).to_all(found.row(3))) if width else b"")
    assert seen == [D] * len(range(exchange.rank, N, exchange.world)) * 3
    alone = UpdateShard.from_updates(updates)  # of one process, whatever group there is
    assert bits(of_whole_rows(alone, ends, 2).gram()) == results["2"][1]
    return results


def test_same_bits_on_any_number_of_ranks_each_of_which_sees_its_share_of_rows() -> None:
    expected = results_on_a_rank()
    for world in (2, 3):
        assert on_ranks(world, results_on_a_rank) == [expected] * world
