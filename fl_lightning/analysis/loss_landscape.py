"""Figure 4: benign and backdoor loss along the malicious direction and along a random one.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Figure 4. Filter-wise normalisation: H. Li, Z. Xu, G. Taylor, C. Studer,
T. Goldstein, "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, https://arxiv.org/abs/1712.09913, Section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Curve:
    """Losses along one direction.

    Attributes:
        direction: `malicious` or `random`.
        distance: (n,) float64, s ||u||; 0 are the weights at hand.
        benign: (n,) float64, loss on benign clients' data.
        backdoor: (n,) float64, loss on the backdoor's test samples under the target label.
    """

    direction: str
    distance: np.ndarray
    benign: np.ndarray
    backdoor: np.ndarray


def random_direction(like: Tensor, draws: torch.Generator) -> Tensor:
    """(d,) float32 Gaussian, of the norm of `like`."""
    drawn = torch.randn(len(like), generator=draws).to(like.device)
    return drawn * (like.norm() / drawn.norm())


def filter_normalised(direction: Tensor, weights: Tensor, shapes: Sequence[torch.Size]) -> Tensor:
    """The direction with every filter given the norm of the filter of the weights; biases and norms' parameters set to zero.

    Args:
        direction: (d,) float32.
        weights: (d,) float32.
        shapes: of the parameter tensors, whose sizes add up to d; a filter is an entry along the first axis of one with two
            axes or more.
    """
    scaled, sizes = [], [shape.numel() for shape in shapes]
    for part, like, shape in zip(direction.split(sizes), weights.split(sizes), shapes, strict=True):
        if len(shape) < 2:
            scaled.append(torch.zeros_like(part))
            continue
        filters, norms = part.view(shape[0], -1), like.view(shape[0], -1).norm(dim=1, keepdim=True)
        scaled.append((filters * (norms / filters.norm(dim=1, keepdim=True).clamp_min(1e-12))).reshape(-1))
    return torch.cat(scaled)


def curve(
    name: str,
    weights: Tensor,
    direction: Tensor,
    steps: np.ndarray,
    benign: Callable[[Tensor], float],
    backdoor: Callable[[Tensor], float],
) -> Curve:
    """Both losses at w - s u.

    Args:
        name: of the direction.
        weights: (d,) float32, w.
        direction: (d,) float32, u.
        steps: (n,) float64, s.
        benign: loss at weights (d,).
        backdoor: likewise.

    Example:
        >>> square = lambda w: float(w.square().sum())
        >>> curve("x", torch.zeros(2), torch.tensor([3.0, 4.0]), np.array([0.0, 2.0]), square, square).benign.tolist()
        [0.0, 100.0]
    """
    points = [weights - float(s) * direction for s in steps]
    distance = steps * float(direction.double().norm())
    return Curve(name, distance, np.array([benign(w) for w in points]), np.array([backdoor(w) for w in points]))
