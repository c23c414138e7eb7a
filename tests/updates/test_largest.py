"""The largest of many numbers, against a sort of them, on one rank and on several."""

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.largest import largest
from fl_lightning.updates.shard import UpdateShard


def drawn(d: int, seed: int = 0) -> Tensor:
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def coordinates(d: int) -> UpdateShard:
    return UpdateShard.from_updates(torch.zeros(2, d))


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def largest_by_sort(values: Tensor, count: int) -> Tensor:
    """Those that come first when coordinates are put in order of falling values, and of rising place where these tie."""
    order = sorted(range(len(values)), key=lambda k: (-float(values[k]), k))
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


VALUES = {
    "different": drawn(4000).abs(),
    "of all sizes": 10 ** (20 * torch.rand(4000, generator=torch.Generator().manual_seed(1)) - 10),
    "ties": drawn(4000).abs().round(),
    "all alike": torch.full((4000,), 0.1),
    "zeros": torch.zeros(4000) * drawn(4000),  # of either sign
    "denormals": (9 * drawn(4000).abs()).round() * 2.0**-149,
    "mostly zeros": torch.where(drawn(4000) > 2, drawn(4000, seed=1).abs(), 0.0),
    "largest there is": torch.where(drawn(4000) > 0, torch.finfo().max, 1e-45),
    "neighbours": (1 + torch.arange(4000) % 7 * 2.0**-23).float(),  # apart in the last bit
}
COUNTS = [0, 1, 2, 255, 1024, 2500, 3999, 4000]


@pytest.mark.parametrize("kind", VALUES)
def test_largest_are_those_of_a_sort(kind: str) -> None:
    shard = coordinates(4000)
    values = VALUES[kind]
    before = values.clone()
    for count in COUNTS:
        found = largest(shard, values, count)
        assert found.dtype == torch.bool
        assert torch.equal(found, largest_by_sort(values, count)), count
    assert bits(values) == bits(before)
    assert not largest(coordinates(0), torch.empty(0), 0).any()


@pytest.mark.parametrize("d", [1, 2, 3, 17])
def test_largest_of_few(d: int) -> None:
    for seed in range(20):
        values = drawn(d, seed).abs().round(decimals=seed % 2)
        for count in range(d + 1):
            assert torch.equal(largest(coordinates(d), values, count), largest_by_sort(values, count))


def chosen_on_ranks() -> dict[str, bytes]:
    """Those that each rank chooses among its own, put together; the last of three ranks has none of the 2000."""
    found = {}
    for d in (4000, 2000):
        exchange = Exchange([d], torch.device("cpu"))
        mine = slice(exchange.start, exchange.stop)
        shard = UpdateShard(
            [torch.zeros(2, d)[:, mine]],
            torch.ones(2),
            torch.zeros(2).bool(),
            num_coordinates=d,
            start=exchange.start,
            distributed=exchange.distributed,
        )
        for kind, values in VALUES.items():
            for count in COUNTS:
                if count <= d:
                    found[f"{count} of {kind}, {d}"] = bits(exchange.to_all(largest(shard, values[:d][mine], count)))
    return found


def test_they_are_the_same_on_any_number_of_ranks() -> None:
    expected = chosen_on_ranks()
    for kind, values in VALUES.items():
        assert expected[f"1024 of {kind}, 4000"] == bits(largest_by_sort(values, 1024))
    for world in (1, 2, 3):
        for rank, found in enumerate(on_ranks(world, chosen_on_ranks)):
            assert found == expected, f"rank {rank} of {world}"
