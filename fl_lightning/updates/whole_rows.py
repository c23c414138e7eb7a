"""Functions of whole updates, for rules for which neither single coordinates nor sums over them are enough."""

from collections.abc import Callable

import torch
from torch import Tensor

from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.shard import UpdateShard


def of_whole_rows(shard: UpdateShard, function: Callable[[Tensor], Tensor], width: int) -> UpdateShard:
    """Other vectors in place of the updates: row i is a function of the whole i-th update.

    Updates travel to the ranks, W of them at a time; what is made of them travels on by its own coordinates. So beside its
    shard a rank holds W parts of updates on their way, its own ceil(N / W) results, and N parts of results: never all updates,
    nor all results.

    Args:
        shard: of N updates; left as it is.
        function: (d,) float32, not to be changed -> (q,) float32; a pure function, as any rank may have any row.
        width: q, known beforehand, as a rank may have no row.

    Returns:
        A shard of the q coordinates, one tensor without a name; clients and their weights are those of the updates. The same
        bits on any number of ranks.

    Example:
        >>> doubled = of_whole_rows(UpdateShard.from_updates(torch.eye(2)), lambda row: row.repeat(2), 4)
        >>> doubled.values.tolist()
        [[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    """
    n, device = shard.num_clients, shard.weights.device
    if not shard.distributed:
        rows = [function(shard.row(i)) for i in range(n)]
        return UpdateShard(
            [torch.stack(rows) if rows else torch.zeros(0, width, device=device)],
            shard.weights,
            shard.malicious,
            clients=shard.clients,
            num_coordinates=width,
            seed=shard.seed,
            round_number=shard.round_number,
        )
    updates, results = Exchange(shard.layers, device), Exchange([width], device)
    own = [function(row) for row in updates.to_ranks(shard) if row is not None]
    room = results.local_updates(n, len(own), torch.zeros(width, device=device))
    for k, row in enumerate(own):
        room.new[:] = -row  # what is kept is old minus new
        room.store(k)
    owner = torch.arange(n) % updates.world
    everyone = owner, shard.weights, shard.malicious, shard.clients
    return results.to_coordinates(room, *everyone, seed=shard.seed, round_number=shard.round_number)
