"""Projected gradient descent: malicious clients stay within a ball around the global model.

H. Wang, K. Sreenivasan, S. Rajput, H. Vishwakarma, S. Agarwal, J. Sohn, K. Lee, D. Papailiopoulos, "Attack of the Tails: Yes,
You Really Can Backdoor Federated Learning", NeurIPS 2020, https://arxiv.org/abs/2007.05084, Section 3 (PGD attack); after
Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can You Really Backdoor Federated Learning?", 2019,
https://arxiv.org/abs/1911.07963.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from fl_lightning.attacks.base import Attack, Broadcast
from fl_lightning.errors import ConfigurationError


class PGD(Attack):
    """After a local step, and always after the last: if ||w - w_G|| > eps, then w <- w_G + eps (w - w_G) / ||w - w_G||.

    w_G are the global parameters that the round started from. Put it after an attack that poisons data, and before
    `ModelReplacement` where the two are combined.

    Args:
        eps: the ball's radius, more than 0, in units of an update's norm.
        every: local steps between projections, at least 1; the authors' code takes 10.
        epochs: local epochs of an attacker, for the authors' rhythm: in each of them there are projections after the steps 1,
            1 + `every`, 1 + 2 `every`, ... and after the last. Left out, they come after the round's steps `every`, 2 `every`,
            ... and after its last, whatever the epoch.
        decay: eps is multiplied by decay^t in round t, in (0, 1]; the authors' code takes 0.998 against Krum.

    Raises:
        ConfigurationError: in training, if the number of local steps is no multiple of `epochs`.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = module.weight.data.fill_(5.0)
        >>> PGD(eps=2.0).constrain(module, Broadcast(weights=torch.tensor([1.0])), step=1, steps=1)
        >>> module.weight.item()
        3.0
    """

    def __init__(self, *, eps: float = 2.0, every: int = 1, epochs: int | None = None, decay: float = 1.0) -> None:
        if not 0 < eps < math.inf:
            raise ConfigurationError(f"PGD.eps must be more than 0 and finite, got {eps}")
        if every < 1:
            raise ConfigurationError(f"PGD.every must be at least 1, got {every}")
        if epochs is not None and epochs < 1:
            raise ConfigurationError(f"PGD.epochs must be at least 1, got {epochs}")
        if not 0 < decay <= 1:
            raise ConfigurationError(f"PGD.decay must be more than 0 and at most 1, got {decay}")
        self.eps = eps
        self.every = every
        self.epochs = epochs
        self.decay = decay

    @torch.no_grad()
    def constrain(self, module: nn.Module, broadcast: Broadcast, step: int, steps: int) -> None:
        if not self.projects(step, steps):
            return
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        centers = [
            center.view_as(parameter)
            for center, parameter in zip(broadcast.weights.split([p.numel() for p in parameters]), parameters, strict=True)
        ]
        away = [parameter - center for parameter, center in zip(parameters, centers, strict=True)]
        norm = torch.stack([part.double().norm() for part in away]).norm()
        eps = self.eps * self.decay**broadcast.round_number
        shrink = torch.where(norm > eps, eps / norm, 1.0)
        for parameter, center, part in zip(parameters, centers, away, strict=True):
            inside = center + (shrink * part).to(part.dtype)
            parameter.copy_(torch.where(norm > eps, inside, parameter))

    def projects(self, step: int, steps: int) -> bool:
        """Whether there is a projection after this local step, from 1, of that many.

        Example:
            >>> [step for step in range(1, 13) if PGD(every=4).projects(step, 12)]
            [4, 8, 12]
            >>> [step for step in range(1, 13) if PGD(every=4, epochs=2).projects(step, 12)]
            [1, 5, 6, 7, 11, 12]
        """
        if step == steps:
            return True
        if self.epochs is None:
            return step % self.every == 0
        if steps % self.epochs:
            raise ConfigurationError(
                f"PGD.epochs is {self.epochs}, but an attacker takes {steps} local steps, which is no multiple of it; give the "
                "epochs of model.attackers, or of model.local"
            )
        batch, batches = (step - 1) % (steps // self.epochs), steps // self.epochs
        return batch % self.every == 0 or batch == batches - 1
