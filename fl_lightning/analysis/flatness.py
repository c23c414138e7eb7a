"""How flat the benign loss is at the current weights: a proxy for Definition 4.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Definition 4: gamma is the norm of the expected gradient, projected on a
subspace. The subspaces here are the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_lightning.callbacks.flip_rates import RoundFlips, count_flips
from fl_lightning.updates.shard import UpdateShard


@dataclass(frozen=True)
class Layer:
    """One parameter tensor.

    Attributes:
        name: its name.
        size: coordinates.
        benign: norm of the mean of the benign clients' full-batch gradients: gamma of this layer's subspace.
        clients: mean of the norms of the clients' own gradients.
        malicious: norm of the full-batch gradient on poisoned data.
        flip_rate: mean share of benign clients whose update's sign is not that of their mean.
    """

    name: str
    size: int
    benign: float
    clients: float
    malicious: float
    flip_rate: float


@dataclass(frozen=True)
class Flatness:
    """All layers, and the flips of all coordinates."""

    layers: list[Layer]
    flips: RoundFlips


def flatness(gradients: Tensor, updates: Tensor, malicious: Tensor, names: Sequence[str], sizes: Sequence[int]) -> Flatness:
    """Gradient norms and flip rates by layer.

    Args:
        gradients: (n, d) float32, full-batch gradients of benign clients at the current weights.
        updates: (n, d) float32, what they would report.
        malicious: (d,) float32, the gradient on poisoned data.
        names: of the layers.
        sizes: of the layers, adding up to d.

    Example:
        >>> found = flatness(torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), torch.zeros(2), ["all"], [2])
        >>> found.layers[0].benign, found.layers[0].flip_rate
        (5.0, 0.0)
    """
    layers = []
    parts = zip(
        names, sizes, gradients.split(list(sizes), 1), updates.split(list(sizes), 1), malicious.split(list(sizes)), strict=True
    )
    for name, size, of_clients, moved, poisoned in parts:
        norms = torch.linalg.vector_norm(of_clients.double(), dim=1)
        flips = count_flips(UpdateShard.from_updates(moved))
        layers.append(
            Layer(
                name,
                size,
                float(of_clients.double().mean(0).norm()),
                float(norms.mean()),
                float(poisoned.double().norm()),
                flips.rate,
            )
        )
    return Flatness(layers, count_flips(UpdateShard.from_updates(updates)))
