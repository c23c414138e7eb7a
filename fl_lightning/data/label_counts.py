"""From how many samples of each class clients shall have to which ones they are; and Dirichlet shares for any alpha."""

from __future__ import annotations

import heapq

import torch
from torch import Tensor


def dirichlet_shares(concentration: Tensor, generator: torch.Generator) -> Tensor:
    """A draw from Dir(concentration), (k,) float64, however small the entries are.

    A gamma variate of a small concentration a is below the least number that there is. With G(a) = G(a + 1) U^(1/a), its
    logarithm is not, and shares are a softmax of logarithms.

    Args:
        concentration: (k,) float64, more than 0.
        generator: on the CPU.
    """
    larger = torch._standard_gamma(concentration + 1, generator=generator)
    uniform = 1 - torch.rand(len(concentration), generator=generator, dtype=torch.float64)  # in (0, 1]
    return (larger.log() + uniform.log() / concentration).softmax(0)


def fill_up(counts: Tensor, least: int) -> int:
    """Give every client at least `least` samples, one after the other from the client that has most, of its largest class.

    Args:
        counts: (N, C) int64, samples per client and class, changed in place; at least N * least in all.
        least: samples per client.

    Returns:
        How many samples changed hands.
    """
    held = counts.numpy()
    sizes = held.sum(1)
    givers = [(-int(size), client) for client, size in enumerate(sizes) if size > least]
    heapq.heapify(givers)
    moved = 0
    for client in (sizes < least).nonzero()[0]:
        for _ in range(least - int(sizes[client])):
            size, giver = givers[0]
            label = held[giver].argmax()
            held[giver, label] -= 1
            held[client, label] += 1
            heapq.heapreplace(givers, (size + 1, giver))
            moved += 1
    return moved


def dealt_by(targets: Tensor, counts: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Clients' samples, (n_i,) int64 each in random order, where they shall have so many of each class.

    Args:
        targets: (n,) int64, each class's place among the classes that occur, from 0 to C - 1.
        counts: (N, C) int64; a column sums up to at most the class's number of samples, and random ones are taken.
        generator: on the CPU.
    """
    shuffled = torch.randperm(len(targets), generator=generator)
    by_class = shuffled[targets[shuffled].argsort(stable=True)].split(targets.bincount(minlength=counts.shape[1]).tolist())
    owners = [torch.repeat_interleave(column) for column in counts.T]
    chosen = torch.cat([members[: len(owner)] for members, owner in zip(by_class, owners, strict=True)])
    owner = torch.cat(owners)
    order = torch.randperm(len(owner), generator=generator)
    order = order[owner[order].argsort(stable=True)]
    return list(chosen[order].split(counts.sum(1).tolist()))
