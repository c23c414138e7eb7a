"""Masks of a sparse model: how many weights each parameter tensor keeps, and which it gives up for which others.

U. Evci, T. Gale, J. Menick, P. S. Castro, E. Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
https://arxiv.org/abs/1911.11134: densities by Erdos-Renyi-Kernel, pruning by magnitude, growing by gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def erk_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Densities that follow Erdos-Renyi-Kernel: in proportion to sum(shape) / prod(shape), so that small tensors are denser.

    Tensors that would be more than dense are dense, and the others share what is left, until all fit.

    Args:
        shapes: of the tensors.
        density: of all of them together, in (0, 1].

    Example:
        >>> [round(share, 4) for share in erk_densities([(64, 64), (64,), (10, 64), (10,)], 0.25)]
        [0.1746, 1.0, 0.646, 1.0]
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / max(1, size) for shape, size in zip(shapes, sizes, strict=True)]
    dense = [False] * len(sizes)
    while not all(dense):
        left = density * sum(sizes) - sum(size for size, full in zip(sizes, dense, strict=True) if full)
        spread = sum(r * size for r, size, full in zip(raw, sizes, dense, strict=True) if not full)
        factor = max(0.0, left) / spread
        over = [not full and factor * r > 1 for r, full in zip(raw, dense, strict=True)]
        if not any(over):
            return [1.0 if full else factor * r for r, full in zip(raw, dense, strict=True)]
        dense = [full or too_much for full, too_much in zip(dense, over, strict=True)]
    return [1.0] * len(sizes)


def random_mask(sizes: Sequence[int], densities: Sequence[float], generator: torch.Generator) -> Tensor:
    """(d,) float32 of 0 and 1, in each tensor the share of ones that its density says, one at least, at random places."""
    mask = torch.zeros(sum(sizes))
    for part, density in zip(mask.split(list(sizes)), densities, strict=True):
        part[torch.randperm(len(part), generator=generator)[: max(1, round(density * len(part)))]] = 1.0
    return mask


def prune_and_regrow(mask: Tensor, weights: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Give up the smallest weights of one tensor, and take up as many where the gradient is largest.

    Args:
        mask: (n,) of 0 and 1.
        weights: (n,), of which the ceil(`share` * number of ones) smallest in magnitude under the mask are given up.
        gradient: (n,). Those given up may come back.
        share: in [0, 1].

    Returns:
        (n,) another mask of as many ones. Of equals the first goes, and comes, first.

    Example:
        >>> mask, weights, gradient = torch.tensor([[1.0, 1, 0, 0], [0.1, 2.0, 0, 0], [1.0, 5, 3, -4]])
        >>> prune_and_regrow(mask, weights, gradient, 0.5)
        tensor([0., 1., 0., 1.])
    """
    count = math.ceil(share * int(mask.sum()))
    sizes = torch.where(mask > 0, weights.abs(), math.inf)
    smaller = mask.clone()
    smaller[sizes.sort(stable=True).indices[:count]] = 0.0
    wanted = torch.where(smaller > 0, -math.inf, gradient.abs())
    smaller[wanted.sort(descending=True, stable=True).indices[:count]] = 1.0
    return smaller
