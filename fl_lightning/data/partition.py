"""How training samples are dealt out to clients: evenly, as full copies, label-skewed, or by a natural key, whole or packed.

The label-skewed rule is that of H. Wang, K. Sreenivasan, S. Rajput, H. Vishwakarma, S. Agarwal, J. Sohn, K. Lee,
D. Papailiopoulos, "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.05084, shared with C. He et al., "FedML: A Research Library and Benchmark for Federated
Machine Learning", 2020, https://arxiv.org/abs/2007.13518.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fl_lightning.checked import real, whole
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.subclasses import Made

MOST_CLIENTS = 10_000_000
"""More would take minutes to deal out and gigabytes to list."""


class Partition(Made, ABC):
    """Deals n training samples out to clients; constructor arguments are the configuration.

    Attributes:
        by_class: whether it looks at classes, so that it needs one per sample.
    """

    by_class: bool = False

    @property
    def num_clients(self) -> int | None:
        """How many clients there will be, or None where only the data can tell."""
        return None

    @abstractmethod
    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        """Deal the samples out.

        Args:
            targets: (n,) int64 on the CPU, the class of every sample; (n, ...) where they have not one class, see `by_class`.
            generator: CPU generator; the only source of randomness.
            keys: (n,) int64 on the CPU, the natural group of every sample, where the data have one.

        Returns:
            One (n_i,) int64 tensor of positions in [0, n) per client, not to be written to.

        Raises:
            ConfigurationError: if the samples are too few for the clients.
        """


class CountedPartition(Partition):
    """A partition for a given number of clients."""

    def __init__(self, num_clients: int) -> None:
        self._num_clients = at_least("num_clients", num_clients, 1)
        if self._num_clients > MOST_CLIENTS:
            raise ConfigurationError(f"data.partition.num_clients must be at most {MOST_CLIENTS:,}, got {self._num_clients:,}")

    @property
    def num_clients(self) -> int:
        return self._num_clients


class IID(CountedPartition):
    """A random split into equal parts: sizes differ by at most one, and every sample has one owner.

    Args:
        num_clients: number of clients, from 1 to n.

    Example:
        >>> parts = IID(num_clients=3)(torch.zeros(7, dtype=torch.int64), torch.Generator().manual_seed(0))
        >>> [len(part) for part in parts]
        [3, 2, 2]
    """

    def __init__(self, *, num_clients: int = 100) -> None:
        super().__init__(num_clients)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        enough(len(targets), self.num_clients, self.num_clients, 1)
        return list(torch.randperm(len(targets), generator=generator).tensor_split(self.num_clients))


class FullCopies(CountedPartition):
    """Every client holds all samples, so clients differ only in the order in which they read them.

    All entries of the result are one and the same tensor.

    Args:
        num_clients: number of clients, at least 1.

    Example:
        >>> FullCopies(num_clients=2)(torch.zeros(3, dtype=torch.int64), torch.Generator())
        [tensor([0, 1, 2]), tensor([0, 1, 2])]
    """

    def __init__(self, *, num_clients: int) -> None:
        super().__init__(num_clients)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        enough(len(targets), 1, 1, 1)
        return [torch.arange(len(targets))] * self.num_clients


class Dirichlet(CountedPartition):
    """The edge-case paper's label-skewed split: classes are shared out by draws from a symmetric Dirichlet distribution,
    capped.

    Class after class, shares are drawn from Dir(alpha) over clients, the share of every client that already holds n/N
    samples or more is zeroed, the rest is renormalised, and the shuffled class is cut at the floored cumulative shares.
    The whole split is drawn again until every client holds `min_samples`. Every sample has one owner; sizes vary, but a
    client passes n/N only with the class that fills it. Many clients of few samples cannot be filled so;
    `DirichletOverClients` and `DirichletOverClasses` can.

    Args:
        num_clients: number of clients N, at least 1.
        alpha: concentration, greater than 0; the smaller, the fewer classes a client holds.
        min_samples: the fewest samples that a client may hold, at least 1.
        max_draws: how many splits to draw before giving up, at least 1.

    Raises:
        ConfigurationError: if no draw gives every client `min_samples`.

    Example:
        >>> targets = torch.arange(1000) % 10
        >>> parts = Dirichlet(num_clients=10, alpha=0.5)(targets, torch.Generator().manual_seed(0))
        >>> len(parts), sum(len(part) for part in parts)
        (10, 1000)
    """

    by_class = True

    def __init__(self, *, num_clients: int = 100, alpha: float = 0.5, min_samples: int = 10, max_draws: int = 100) -> None:
        super().__init__(num_clients)
        self.alpha = positive("alpha", alpha, "0.5 is usual, more is more even")
        self.min_samples = at_least("min_samples", min_samples, 1)
        self.max_draws = at_least("max_draws", max_draws, 1)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        enough(len(targets), self.num_clients * self.min_samples, self.num_clients, self.min_samples)
        classes = [torch.nonzero(targets == label).squeeze(1) for label in targets.unique()]
        best = 0
        for _ in range(self.max_draws):
            owner, sizes = self._draw(classes, len(targets), generator)
            best = max(best, int(sizes.min()))
            if best >= self.min_samples:
                shuffled = torch.randperm(len(targets), generator=generator)
                by_client = shuffled[owner[shuffled].argsort(stable=True)]
                return list(by_client.split(sizes.tolist()))
        raise ConfigurationError(
            f"data.partition.min_samples is {self.min_samples}, but in {self.max_draws} draws (max_draws) over "
            f"{self.num_clients} clients the smallest client never held more than {best} of {len(targets)} samples; "
            f"use a larger alpha (now {self.alpha}), fewer clients or a smaller min_samples, or DirichletOverClients"
        )

    def _draw(self, classes: list[Tensor], n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The owner of every sample, (n,) int64, and the number of samples per client, (N,) int64."""
        owner = torch.empty(n, dtype=torch.int64)
        sizes = torch.zeros(self.num_clients, dtype=torch.int64)
        concentration = torch.full((self.num_clients,), self.alpha, dtype=torch.float64)
        for indices in classes:
            indices = indices[torch.randperm(len(indices), generator=generator)]
            # Gamma variates are Dirichlet shares up to the factor that `cut` divides out.
            shares = torch._standard_gamma(concentration, generator=generator)
            counts = cut(len(indices), shares, sizes * self.num_clients < n)
            owner[indices] = torch.repeat_interleave(counts)
            sizes += counts
        return owner, sizes


class ByKey(Partition):
    """One client per distinct key (an author, a hospital), in ascending order of keys; nothing is drawn.

    Example:
        >>> ByKey()(torch.zeros(4, dtype=torch.int64), torch.Generator(), torch.tensor([7, 3, 7, 3]))
        [tensor([1, 3]), tensor([0, 2])]
    """

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        keys = checked_keys("ByKey", targets, keys)
        sizes = keys.unique(return_counts=True)[1]
        return list(keys.argsort(stable=True).split(sizes.tolist()))


class PackedKeys(CountedPartition):
    """Whole groups of samples packed into clients of about equal size: every author stays with one client, which has many.

    Groups, which are the samples of one key, are taken from the largest to the smallest, equal ones in random order, and each
    goes to the client that holds the fewest samples so far. So sizes never differ by more than the largest group has samples.

    Args:
        num_clients: number of clients, from 1 to the number of distinct keys.

    Raises:
        ConfigurationError: if there are fewer distinct keys than clients, or no keys.

    Example:
        >>> keys = torch.tensor([7, 3, 7, 3, 7, 1])
        >>> PackedKeys(num_clients=2)(torch.zeros(6, dtype=torch.int64), torch.Generator(), keys)
        [tensor([0, 2, 4]), tensor([1, 3, 5])]
    """

    def __init__(self, *, num_clients: int = 100) -> None:
        super().__init__(num_clients)

    def __call__(self, targets: Tensor, generator: torch.Generator, keys: Tensor | None = None) -> list[Tensor]:
        keys = checked_keys("PackedKeys", targets, keys)
        _, group_of, sizes = keys.unique(return_inverse=True, return_counts=True)
        if len(sizes) < self.num_clients:
            raise ConfigurationError(
                f"data.partition.num_clients is {self.num_clients}, but the {len(targets)} training samples have only "
                f"{len(sizes)} distinct keys, and a key goes to one client; use at most {len(sizes)} clients or more data"
            )
        order = torch.randperm(len(sizes), generator=generator)
        order = order[sizes[order].argsort(descending=True, stable=True)]
        clients = [(0, client) for client in range(self.num_clients)]  # a heap of (samples so far, client)
        owners = []
        for size in sizes[order].tolist():
            held, client = clients[0]
            owners.append(client)
            heapq.heapreplace(clients, (held + size, client))
        owner_of_group = torch.empty_like(order)
        owner_of_group[order] = torch.tensor(owners)
        owner = owner_of_group[group_of]
        return list(owner.argsort(stable=True).split(owner.bincount().tolist()))


def cut(count: int, shares: Tensor, is_open: Tensor) -> Tensor:
    """Cut `count` samples at the floored cumulative shares of the clients that are still open.

    Args:
        count: samples to deal out.
        shares: (N,) float64, not negative, in any unit.
        is_open: (N,) bool, False for clients that get none.

    Returns:
        (N,) int64 that sums to `count`.
    """
    shares = shares * is_open
    if not shares.sum() > 0:  # all mass fell on full clients: the open ones share alike
        shares = is_open.double()
    ends = shares.cumsum(0)
    ends = (ends / ends[-1] * count).floor().long()  # the last is `count` exactly, as x / x is 1
    return ends.diff(prepend=ends.new_zeros(1))


def checked_keys(name: str, targets: Tensor, keys: Tensor | None) -> Tensor:
    """The keys, if there is one per training sample and at least one sample."""
    if keys is None:
        raise ConfigurationError(
            f"data.partition is {name}, but these data come without keys; use data that have a natural grouping, "
            "pass keys=, or choose another partition such as IID or Dirichlet"
        )
    if len(keys) != len(targets):
        raise ConfigurationError(f"keys must be one per training sample, got {len(keys)} for {len(targets)} samples")
    enough(len(targets), 1, 1, 1)
    return keys


def at_least(name: str, value: int, least: int) -> int:
    return whole(f"data.partition.{name}", value, least)


def positive(name: str, value: float, usual: str, *, or_zero: bool = False) -> float:
    value = real(f"data.partition.{name}", value)
    if not (math.isfinite(value) and (value > 0 or (value == 0 and or_zero))):
        bound = "at least 0" if or_zero else "greater than 0"
        raise ConfigurationError(f"data.partition.{name} must be finite and {bound}, got {value}; {usual}")
    return value


def enough(n: int, needed: int, num_clients: int, per_client: int) -> None:
    if n < needed:
        raise ConfigurationError(
            f"data.partition deals {n} training samples out to {num_clients} clients of at least {per_client} samples, "
            f"which takes {needed}; use fewer clients or more data"
        )
