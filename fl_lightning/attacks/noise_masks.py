"""Noise that attackers lay over one and the same update so that rules take each of them for somebody else.

H. Li, Q. Ye, H. Hu, J. Li, L. Wang, C. Fang, J. Shi, "3DFed: Adaptive and Extensible Framework for Covert Backdoor Attack in
Federated Learning", IEEE S&P 2023, https://github.com/haoyangliASTAPLE/3DFed.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, LR = 30, 0.1
"""Of gradient descent on the noise."""

ENERGY, LENGTH, SUM = 0.1, 0.03, 0.01
"""Weights of the three terms. Two revisions of the authors' code have .1, .01, .01: masks of theirs may be longer."""

GROWTH = 0.1
"""By how much of the sum's norm the multiplier grows in a step."""


def noise_masks(update: Tensor, members: int, alpha: float, neurons: Tensor, draws: torch.Generator) -> Tensor:
    """Noise on the output layer for the members of a group, which adds up to zero over the group.

    With n_i the noise of member i and UP_ij = sum |u_j + n_ij| the energy of output neuron j under it, 30 steps of size .1 go
    down

        [alpha sum_ij .1 / UP_ij + (1 - alpha) sum_i .03 ||n_i|| + m .01 ||sum_i n_i||] / (1 + m)

    where m begins at 0 and grows by .1 ||sum_i n_i|| with every step. Then the group's mean is taken off. In the authors' code,
    as of a0814d7 and 7f2bed7, m begins at 1, noise is normal with a deviation that is fixed by task, and SGD has the task's
    momentum and decay.

    Args:
        update: (C, h + 1), the back door's update of the output layer, weights and bias, a row per neuron.
        members: of the group, at least 1; a group of one has no noise.
        alpha: in [0, 1]: between raising the energy of other neurons than the target's, and staying small.
        neurons: (k,) int64, those that get noise.
        draws: of the first noise, normal, as large as the update's entries are on average.

    Returns:
        (members, C, h + 1) of the update's dtype, zero but for `neurons`.
    """
    rows = update[neurons].double().cpu()
    size = update.double().square().mean().sqrt().cpu()
    noise = size * torch.randn(members, *rows.shape, generator=draws, dtype=torch.float64)
    multiplier = 0.0
    for _ in range(STEPS):
        noise.requires_grad_()
        energies = (rows + noise).abs().sum(-1)
        together = torch.linalg.vector_norm(noise.sum(0))
        lengths = torch.linalg.vector_norm(noise.flatten(1), dim=1).sum()
        loss = alpha * (ENERGY / energies).sum() + (1 - alpha) * LENGTH * lengths + multiplier * SUM * together
        (gradient,) = torch.autograd.grad(loss / (1 + multiplier), noise)
        noise = noise.detach() - LR * gradient.nan_to_num(0.0, 0.0, 0.0)  # where an energy is 0
        multiplier += GROWTH * float(together.detach())
    masks = torch.zeros(members, *update.shape, dtype=update.dtype)
    masks[:, neurons] = (noise - noise.mean(0)).to(update.dtype)
    return masks.to(update.device)
