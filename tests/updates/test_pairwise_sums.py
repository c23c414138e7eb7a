from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_lightning.updates.pairwise_sums import PairwiseSums, nodes_of


def summed_in_pairs(values: Tensor) -> Tensor:
    """The oracle: halves at the largest power of two below the number of blocks."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return summed_in_pairs(values[:half]) + summed_in_pairs(values[half:])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 260), st.lists(st.integers(0, 260), max_size=5))
def test_sums_in_pairs_do_not_depend_on_who_adds_which_blocks(blocks: int, cuts: list[int]) -> None:
    values = torch.randn(blocks, generator=torch.Generator().manual_seed(blocks)) * 10 ** torch.linspace(-6, 6, blocks)
    joined = PairwiseSums(0)
    ends = [0, *sorted(min(cut, blocks) for cut in cuts), blocks]
    for first, last in pairwise(ends):
        part = PairwiseSums(first)
        for value in values[first:last]:
            part.add(value)
            assert len(part.nodes) <= 2 * blocks.bit_length()
        assert [place for place, _ in part.nodes] == nodes_of(first, last)
        for place, node in part.nodes:
            joined.insert(place, node)
    assert torch.equal(joined.total(), summed_in_pairs(values))
