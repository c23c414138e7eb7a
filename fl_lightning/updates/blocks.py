"""Coordinates are cut into fixed blocks, which are never split between ranks."""

MAX_BLOCKS = 256
"""Most blocks that the coordinates are cut into, and so the most ranks that share them."""

BLOCK_UNIT = 1024
"""Blocks are multiples of this many coordinates."""


def block_size(num_coordinates: int) -> int:
    """Coordinates per block: a function of d alone, so that blocks are the same on any number of ranks."""
    return max(1, -(-num_coordinates // (MAX_BLOCKS * BLOCK_UNIT))) * BLOCK_UNIT
