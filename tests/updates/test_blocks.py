"""Blocks of coordinates."""

import pytest

from fl_lightning.updates.blocks import BLOCK_UNIT, MAX_BLOCKS, block_size


@pytest.mark.parametrize(
    ("num_coordinates", "size"),
    [(0, 1024), (1, 1024), (1024, 1024), (1025, 1024), (2**18, 1024), (2**18 + 1, 2048), (2**19, 2048), (11_173_962, 44_032)],
)
def test_block_size_depends_on_the_number_of_coordinates_alone(num_coordinates: int, size: int) -> None:
    assert block_size(num_coordinates) == size
    assert size % BLOCK_UNIT == 0
    assert -(-num_coordinates // size) <= MAX_BLOCKS
