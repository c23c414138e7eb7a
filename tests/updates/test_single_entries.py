"""A few coordinates of a vector that lies on several ranks: exactly, on all of them, and written back likewise."""

import torch
from ranks import on_ranks
from torch import Tensor

from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.entries import add_to_tensor, entries, of_tensor
from fl_lightning.updates.layers import layers_of

LAYERS = layers_of(["a", "b", "c"], [(40, 50), (1000,), (30, 50)])  # 4500 coordinates, tensors across ranks' borders
PLACES = [4499, 0, 1023, 1024, 2000, 2000]


def vector() -> Tensor:
    values = torch.randn(4500, generator=torch.Generator().manual_seed(0))
    values[[0, 1023, 2000, 4499]] = torch.tensor([-0.0, torch.inf, 1e-45, torch.nan])
    return values


def found_on_a_rank() -> list[bytes]:
    exchange = Exchange(LAYERS, torch.device("cpu"), bucket_bytes=1)
    own = vector()[exchange.start : exchange.stop].clone()
    shard = UpdateShard(
        [own[None]],
        torch.ones(1),
        torch.zeros(1, dtype=torch.bool),
        num_coordinates=4500,
        start=exchange.start,
        layers=LAYERS,
        distributed=exchange.distributed,
    )
    some, whole = entries(shard, own, torch.tensor(PLACES)), of_tensor(shard, own, LAYERS[1])
    add_to_tensor(shard, own, LAYERS[0], torch.arange(2000.0).view(40, 50))
    return [some.numpy().tobytes(), whole.numpy().tobytes(), exchange.to_all(own).numpy().tobytes()]


def test_the_same_bits_on_any_number_of_ranks():
    added = vector()
    added[:2000] += torch.arange(2000.0)
    expected = [part.numpy().tobytes() for part in (vector()[PLACES], vector()[2000:3000], added)]
    for world in (1, 2, 3):
        assert on_ranks(world, found_on_a_rank) == world * [expected]
