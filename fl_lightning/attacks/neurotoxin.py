"""Neurotoxin: malicious clients move only what benign ones hardly move, so that the backdoor lasts.

Z. Zhang, A. Panda, L. Song, Y. Yang, M. Mahoney, P. Mittal, R. Kannan, J. Gonzalez, "Neurotoxin: Durable Backdoors in Federated
Learning", ICML 2022, https://arxiv.org/abs/2206.10341, Algorithm 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_lightning.attacks.base import Attack, Attacker, Broadcast
from fl_lightning.attacks.company import pairs
from fl_lightning.data.base import Samples
from fl_lightning.data.joined import join
from fl_lightning.data.outcomes import Classes, Outcome
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits

Guide = Literal["last_step", "gradients"]

BATCH = 256
"""Largest number of samples of which the gradient is taken at a time."""


class Neurotoxin(Attack):
    """After every local step, parameters that benign clients are taken to move most are put back to their global values.

    Of d coordinates the `fraction` with the largest s_k, of equal ones those of lower coordinates, stays untouched by
    attackers; where s_k is 0 nothing is held back. s is

    - by `last_step` |w_{t-1} - w_{t-2}|, as in the paper; in the first round, before any global step was seen, nothing is held;
    - by `gradients` |g|, with g the gradient of the mean cross-entropy, at the broadcast weights and in training mode, of all
      clean samples of the round's malicious clients, as in the authors' code.

    With SGD, momentum included, this is the projection of every gradient; adaptive optimizers and the clipping of gradients see
    the unprojected ones. Put it after an attack that poisons data.

    Args:
        fraction: the share that is held back, in (0, 1).
        by: what tells where benign clients move, see above. Where gradients do, every rank takes one pass over the attackers'
            data in every round.
        per_layer: whether the share is one of every parameter tensor, at least one coordinate of each, and not of all d.

    `by: gradients` is the authors' way, with `per_layer: true` unless they set `aggregate_all_layer`. Their code adds up
    batches' mean gradients, in which a short last batch counts as much as others, and leaves int((1 - `fraction`) n) of n
    coordinates free; here the number held is rounded to the nearest, which may be one less.

    Example:
        >>> module = nn.Linear(4, 1, bias=False)
        >>> _ = module.weight.data.fill_(5.0)
        >>> sent = Broadcast(weights=torch.zeros(4), last_step=torch.tensor([0.1, -2.0, 0.0, 1.0]))
        >>> Neurotoxin(fraction=0.5).constrain(module, sent, step=1, steps=1)
        >>> module.weight.data
        tensor([[5., 0., 5., 0.]])
    """

    def __init__(self, *, fraction: float = 0.05, by: Guide = "last_step", per_layer: bool = False) -> None:
        if not 0 < fraction < 1:
            raise ConfigurationError(f"Neurotoxin.fraction must lie in (0, 1), got {fraction}")
        if by not in get_args(Guide):
            raise ConfigurationError(f"Neurotoxin.by must be last_step or gradients, got {by!r}")
        self.fraction = fraction
        self.by = by
        self.per_layer = per_layer
        self.watches_steps = by == "last_step"
        self.outcomes = (Outcome,) if self.watches_steps else (Classes,)
        self._gradient: Tensor | None = None  # (d,) float32, of this round
        self._held: tuple[Broadcast, Tensor] | None = None

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        if self.by != "gradients":
            return
        data, model = join(datasets), copy.deepcopy(module).train()
        device = next(model.parameters()).device
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for inputs, targets in pairs(data, BATCH, None, device, "Neurotoxin"):
            (F.cross_entropy(class_logits(model, inputs, "Neurotoxin"), targets, reduction="sum") / len(data)).backward()
        self._gradient = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])

    @torch.no_grad()
    def constrain(self, module: nn.Module, broadcast: Broadcast, step: int, steps: int) -> None:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in parameters]
        held = self.held(broadcast, sizes)
        for parameter, center, of_part in zip(parameters, broadcast.weights.split(sizes), held.split(sizes), strict=True):
            parameter.copy_(torch.where(of_part.view_as(parameter), center.view_as(parameter), parameter))

    def held(self, broadcast: Broadcast, sizes: Sequence[int]) -> Tensor:
        """(d,) bool, what is put back in this round; found once per round.

        Args:
            broadcast: what the round started from.
            sizes: of the parameter tensors, in order.
        """
        if self._held is None or self._held[0] is not broadcast:
            guide = broadcast.last_step if self.by == "last_step" else self._gradient
            assert guide is not None
            moved = guide.abs().to(broadcast.weights.device)
            parts = moved.split(list(sizes)) if self.per_layer else (moved,)
            self._held = broadcast, torch.cat([largest_share(part, self.fraction) for part in parts])
        return self._held[1]


def largest_share(moved: Tensor, fraction: float) -> Tensor:
    """(n,) bool, the max(1, round(fraction n)) largest of (n,), of equal ones the first, without those that are 0.

    Example:
        >>> largest_share(torch.tensor([0.0, 2.0, 1.0, 2.0]), 0.25)
        tensor([False,  True, False, False])
    """
    if not len(moved):
        return torch.zeros_like(moved, dtype=torch.bool)
    count = max(1, round(fraction * len(moved)))
    threshold = moved.topk(count).values[-1]
    chosen = moved > threshold
    ties = (moved == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen & (moved > 0)
