"""Federated averaging as a textbook writes it in plain PyTorch: the loop that `Federation` is measured against.

B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, Algorithm 1. No Lightning, no checks, no phases, no
attack, one device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_rounds(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    clients: Sequence[Tensor],
    cohorts: Sequence[Sequence[int]],
    rule: Callable[[Tensor, Tensor], Tensor],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    shuffle: Callable[[int, int, int], Tensor],
    batch_size: int,
) -> None:
    """Train the model in place, one local epoch per client and round.

    Args:
        model: the global model.
        inputs: (n, ...) model inputs of all clients, ready for the model and on its device.
        targets: (n,) int64 classes.
        clients: per client, (n_i,) int64 positions in `inputs`.
        cohorts: per round, the numbers of its N clients.
        rule: updates (N, d) and sample counts (N,) to the aggregate (d,).
        optimizer: makes a client's optimizer from its parameters.
        shuffle: (round, client, n_i) to the order of the client's samples, (n_i,) int64.
        batch_size: samples per step.
    """
    device = inputs.device
    for t, cohort in enumerate(cohorts):
        weights = flat(model)
        updates = []
        for client in cohort:
            local = copy.deepcopy(model).train()
            steps = optimizer(list(local.parameters()))
            x, y = inputs[clients[client]], targets[clients[client]]
            for batch in batches(shuffle(t, client, len(y)).to(device), batch_size):
                steps.zero_grad()
                F.cross_entropy(local(x[batch]), y[batch]).backward()
                steps.step()
            updates.append(weights - flat(local))
        counts = torch.tensor([float(len(clients[client])) for client in cohort], device=device)
        new = weights - rule(torch.stack(updates), counts)
        with torch.no_grad():
            for parameter, piece in zip(model.parameters(), new.split([p.numel() for p in model.parameters()]), strict=True):
                parameter.copy_(piece.view(parameter.shape))


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Batches of an order of samples; a last one of a single sample is joined to the one before, for BatchNorm's sake."""
    parts = list(order.split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def flat(model: nn.Module) -> Tensor:
    """(d,) all parameters, in whatever order they lie in memory."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def weighted_mean(updates: Tensor, counts: Tensor) -> Tensor:
    """(N, d) and (N,) to (d,): FedAvg in one matrix product."""
    return counts / counts.sum() @ updates


def sorted_trimmed_mean(updates: Tensor, trim: int) -> Tensor:
    """(N, d) to (d,): the mean without the `trim` smallest and largest entries of each column, by sorting."""
    return updates.sort(dim=0).values[trim : len(updates) - trim].mean(dim=0)


def sorted_invariant(updates: Tensor, tau: float, trim: int) -> Tensor:
    """(N, d) to (d,): the trimmed mean where the share of agreeing signs exceeds tau, zero elsewhere."""
    mask = updates.sign().sum(dim=0).abs() > tau * len(updates)
    return torch.where(mask, sorted_trimmed_mean(updates, trim), 0.0)
