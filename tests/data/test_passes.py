"""One pass over samples in shuffled batches."""

import pytest
import torch

from fl_lightning.data.passes import shuffled_batches


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(0, 4, [0]), (1, 4, [1]), (8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (5, 4, [5]), (3, 1, [1, 1, 1])],
)
def test_every_position_comes_once_and_none_alone(n: int, batch_size: int, sizes: list[int]) -> None:
    batches = shuffled_batches(n, batch_size, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == sizes
    assert torch.cat(batches).sort().values.tolist() == list(range(n))


def test_order_is_that_of_the_generator() -> None:
    first, again = (torch.cat(shuffled_batches(20, 8, torch.Generator().manual_seed(3))) for _ in range(2))
    assert torch.equal(first, again)
    torch.manual_seed(3)
    assert torch.equal(torch.cat(shuffled_batches(20, 8)), first)  # the global one where none is given
