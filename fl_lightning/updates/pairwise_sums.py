"""Sums over blocks of coordinates that are the same whoever adds which blocks."""

import torch
import torch.distributed as dist
from torch import Tensor

from fl_lightning.updates.gathering import all_gather


class PairwiseSums:
    """Adds one tensor per block: blocks 2i and 2i + 1, then pairs 2i and 2i + 1, and so on up a binary tree.

    What is added to what depends on the blocks' numbers alone, so consecutive blocks may be summed anywhere and their sums be
    joined. Of n blocks no more than about 2 log2(n) sums are held at a time.

    Args:
        first: number of the block that `add` is given first.

    Attributes:
        nodes: ((height, number), sum) of every subtree whose blocks are all here, in their order, the largest possible ones.
    """

    def __init__(self, first: int) -> None:
        self.next = first
        self.nodes: list[tuple[tuple[int, int], Tensor]] = []

    def add(self, of_blocks: Tensor, height: int = 0) -> None:
        """The next block's, or that of the next 2**height blocks, where the first one's number is a multiple of that."""
        self.insert((height, self.next >> height), of_blocks)
        self.next += 1 << height

    def insert(self, place: tuple[int, int], node: Tensor) -> None:
        """The sum of the next subtree."""
        while self.nodes and place[1] % 2 and self.nodes[-1][0] == (place[0], place[1] - 1):
            _, left = self.nodes.pop()
            place, node = (place[0] + 1, place[1] // 2), left + node
        self.nodes.append((place, node))

    def total(self) -> Tensor:
        """The sum of all blocks, if they begin with the first: where the tree ends, a node stands for its parent."""
        total = self.nodes[-1][1]
        for _, node in reversed(self.nodes[:-1]):
            total = node + total
        return total


def nodes_of(first: int, last: int) -> list[tuple[int, int]]:
    """The (height, number) of what `PairwiseSums` holds of blocks first..last-1."""
    sums = PairwiseSums(first)
    for _ in range(first, last):
        sums.add(torch.empty(0))
    return [place for place, _ in sums.nodes]


def gather_sums(own: PairwiseSums, empty: Tensor, blocks: int) -> PairwiseSums:
    """The sums of all ranks, which own whole, consecutive blocks; each has a few, and others know which.

    Args:
        own: this rank's.
        empty: looks like a sum.
        blocks: their number on all ranks together.
    """
    world = dist.get_world_size()
    each = -(-blocks // world)
    places = [nodes_of(min(rank * each, blocks), min((rank + 1) * each, blocks)) for rank in range(world)]
    most = max(map(len, places))
    padded = empty.new_zeros((most, *empty.shape))
    for out, (_, node) in zip(padded, own.nodes, strict=False):
        out.copy_(node)
    gathered = padded.new_empty((world * most, *empty.shape))
    all_gather(gathered, padded)
    sums = PairwiseSums(0)
    for rank, of_rank in enumerate(places):
        for i, place in enumerate(of_rank):
            sums.insert(place, gathered[rank * most + i])
    return sums
