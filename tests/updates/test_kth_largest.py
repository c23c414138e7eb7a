"""The k-th largest magnitude of every row, against a sort, on one rank and on several."""

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.kth_largest import kth_largest

D = 4000


def rows() -> Tensor:
    """One kind of numbers each."""
    draws = torch.Generator().manual_seed(0)
    plain = torch.randn(D, generator=draws)
    signs = plain.sign()
    kinds = [
        plain,
        signs * 10 ** (60 * torch.rand(D, generator=draws) - 35),
        plain.round(),
        torch.full((D,), -0.1),
        0.0 * plain,
        (9 * plain).round() * 2.0**-149,
        torch.where(plain > 2, plain, -0.0),
        signs * torch.finfo().max,
        signs * (1 + torch.arange(D) % 7 * 2.0**-23).float(),
    ]
    return torch.stack(kinds)


COUNTS = [1, 2, 255, 1024, 2500, 3999, 4000]


def by_sort(values: np.ndarray, count: int) -> tuple[list[float], list[int]]:
    ordered = np.sort(np.abs(values), axis=1)[:, ::-1]
    found = ordered[:, count - 1]
    return found.tolist(), [int((row[:count] == value).sum()) for row, value in zip(ordered, found, strict=True)]


@pytest.mark.parametrize("count", COUNTS)
def test_it_is_that_of_a_sort(count: int) -> None:
    values = rows()
    before = values.numpy().tobytes()
    found, ties = kth_largest(UpdateShard.from_updates(values), count)
    assert (found.tolist(), ties.tolist()) == by_sort(values.numpy(), count)
    assert torch.equal(found, values.abs().topk(count).values[:, -1])
    assert (found.dtype, ties.dtype) == (torch.float32, torch.int64)
    assert values.numpy().tobytes() == before


def test_few() -> None:
    for d in (1, 2, 3, 17):
        values = torch.randn(5, d, generator=torch.Generator().manual_seed(d)).round(decimals=1)
        for count in range(1, d + 1):
            found, ties = kth_largest(UpdateShard.from_updates(values), count)
            assert (found.tolist(), ties.tolist()) == by_sort(values.numpy(), count)
    found, ties = kth_largest(UpdateShard.from_updates(torch.ones(2, 3)), 0)
    assert (found.tolist(), ties.tolist()) == ([torch.inf] * 2, [0, 0])


def test_among_some_coordinates() -> None:
    values = rows()
    among = torch.arange(D) % 3 == 1
    for count in (1, 700, int(among.sum())):
        found, ties = kth_largest(UpdateShard.from_updates(values), count, among)
        assert (found.tolist(), ties.tolist()) == by_sort(values[:, among].numpy(), count)


def found_on_ranks() -> list[tuple[list[float], list[int]]]:
    """The last of three ranks has none of the 2000."""
    found = []
    for d in (4000, 2000):
        exchange = Exchange([d], torch.device("cpu"))
        mine = slice(exchange.start, exchange.stop)
        own = rows()[:, :d][:, mine]
        cut = min(1024, own.shape[1])
        shard = UpdateShard(
            [own[:, :cut], own[:, cut:]],
            torch.ones(len(own)),
            torch.zeros(len(own)).bool(),
            num_coordinates=d,
            start=exchange.start,
            distributed=exchange.distributed,
        )
        among = (torch.arange(d) % 3 == 1)[mine]
        for count, some in ((1, None), (1200, None), (d, None), (500, among)):
            values, ties = kth_largest(shard, count, some)
            found.append((values.tolist(), ties.tolist()))
    return found


def test_it_is_the_same_on_any_number_of_ranks() -> None:
    expected = found_on_ranks()
    assert expected[1] == by_sort(rows().numpy(), 1200)
    for world in (1, 2, 3):
        for rank, found in enumerate(on_ranks(world, found_on_ranks)):
            assert found == expected, f"rank {rank} of {world}"
