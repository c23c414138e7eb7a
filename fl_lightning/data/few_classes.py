"""Clients that hold few classes: shards of the sorted data, or a given number of classes each.

Shards: H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, section 3. Classes: Q. Li, Y. Diao, Q. Chen, B. He,
"Federated Learning on Non-IID Data Silos: An Experimental Study", ICDE 2022, https://arxiv.org/abs/2102.02079, quantity-based
label imbalance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_lightning.data.label_counts import dealt_by
from fl_lightning.data.partition import CountedPartition, at_least, enough
from fl_lightning.errors import ConfigurationError


class Shards(CountedPartition):
    """Samples in the order of their class, cut into k N shards of equal size, of which every client gets k at random.

    Every sample has one owner. Shards differ by at most one sample, so clients by at most k. A shard may straddle two classes,
    so a client holds k classes at most nearly.

    Args:
        num_clients: number of clients N, at least 1.
        shards_per_client: k, at least 1; 2 in the paper.

    Raises:
        ConfigurationError: if there are fewer than k N samples.

    Example:
        >>> targets = torch.arange(1000) % 10
        >>> parts = Shards(num_clients=100)(targets, torch.Generator().manual_seed(0))
        >>> {len(part) for part in parts}, max(len(targets[part].unique()) for part in parts)
        ({10}, 2)
    """

    by_class = True

    def __init__(self, *, num_clients: int = 100, shards_per_client: int = 2) -> None:
        super().__init__(num_clients)
        self.shards_per_client = at_least("shards_per_client", shards_per_client, 1)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        N, k = self.num_clients, self.shards_per_client
        enough(len(targets), k * N, N, k)
        shuffled = torch.randperm(len(targets), generator=generator)
        shards = shuffled[targets[shuffled].argsort(stable=True)].tensor_split(k * N)
        hands = torch.randperm(k * N, generator=generator).view(N, k).tolist()
        return [torch.cat([shards[shard] for shard in hand]) for hand in hands]


class ClassesPerClient(CountedPartition):
    """Every client holds k classes, and a class's samples are dealt out evenly to the clients that hold it.

    Classes, in random order, are first given out one after the other, to one client after the other, until every client has one
    and every class is held; the rest of each client's k are drawn at random among those that it has not. So every sample has
    one owner. The clients of a class differ by at most one in it; sizes vary with how many clients share a class.

    Args:
        num_clients: number of clients N, at least 1.
        classes_per_client: k, at least 1, at most the number C of classes that occur, and at least C / N.

    Raises:
        ConfigurationError: if k is none of these, or a class has fewer samples than clients that hold it.

    Example:
        >>> targets = torch.arange(1000) % 10
        >>> parts = ClassesPerClient(num_clients=20, classes_per_client=3)(targets, torch.Generator().manual_seed(0))
        >>> {len(targets[part].unique()) for part in parts}, sum(len(part) for part in parts)
        ({3}, 1000)
    """

    by_class = True

    def __init__(self, *, num_clients: int = 100, classes_per_client: int = 2) -> None:
        super().__init__(num_clients)
        self.classes_per_client = at_least("classes_per_client", classes_per_client, 1)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        N, k = self.num_clients, self.classes_per_client
        enough(len(targets), N, N, 1)
        labels, place, sizes = targets.unique(return_inverse=True, return_counts=True)
        C = len(labels)
        if not (k <= C <= k * N):
            raise ConfigurationError(
                f"data.partition.classes_per_client is {k}, but the training samples have {C} classes, which {N} clients shall "
                f"hold between them; use a number from {-(-C // N)} to {C}" + (" or more clients" if k * N < C else "")
            )
        holds = self._draw(C, generator)
        for label, size, clients in zip(labels.tolist(), sizes.tolist(), holds.sum(0).tolist(), strict=True):
            if size < clients:
                raise ConfigurationError(
                    f"data.partition.classes_per_client is {k}: class {label} has {size} samples for the {clients} of {N} "
                    "clients that hold it; use fewer clients, fewer classes per client or more data"
                )
        return dealt_by(place, _evenly(holds, sizes), generator)

    def _draw(self, C: int, generator: torch.Generator) -> Tensor:
        """(N, C) bool, which classes clients hold."""
        N, k = self.num_clients, self.classes_per_client
        ranks = torch.rand(N, C, generator=generator)  # of a client's classes; the k smallest are its own
        turn = torch.arange(max(N, C))
        ranks[turn % N, torch.randperm(C, generator=generator)[turn % C]] = -1
        own = ranks.argsort(dim=1, stable=True)[:, :k]
        return torch.zeros(N, C, dtype=torch.bool).scatter_(1, own, True)


def _evenly(holds: Tensor, sizes: Tensor) -> Tensor:
    """(N, C) int64, samples per client and class: `sizes` ((C,)) dealt out to those who hold the class ((N, C) bool)."""
    holders = holds.sum(0)
    place = holds.cumsum(0) - 1  # of a client among those of a class; the first ones get what is over
    return torch.where(holds, sizes // holders + (place < sizes % holders), 0)
