"""How far attackers may go before they can change what noised copies of a model vote for.

C. Xie, M. Chen, P.-Y. Chen, B. Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021,
https://arxiv.org/abs/2106.08283, theorem 1 as its published code computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import norm
from torch import Tensor

from fl_lightning.errors import ConfigurationError

LEAST = 1e-8
"""Bounds of a vote's share stay this far from 0 and 1."""


@dataclass(frozen=True)
class Threat:
    """An attack in one round, and the training that it goes through.

    Attributes:
        attackers: R, at least 1, each of which poisons its data alike.
        share: p, an attacker's weight in the mean, in (0, 1].
        scale: gamma, by which an attacker multiplies its update, more than 0.
        poisoned: q / n, the share of every batch that is poisoned, in (0, 1].
        steps: tau, an attacker's steps of SGD in the round, at least 1.
        learning_rate: eta of these, more than 0.
        smoothness: L_z, by how much a sample's gradient changes at most with the sample, more than 0. See
            `logistic_smoothness`.

    Raises:
        ConfigurationError: for numbers outside of these ranges.

    Example:
        >>> Threat(attackers=1, share=0.05, poisoned=0.05, steps=30, learning_rate=0.001, smoothness=17**0.5).scale
        1.0
    """

    attackers: int
    share: float
    poisoned: float
    steps: int
    learning_rate: float
    smoothness: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("attackers", "steps"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}; without attackers all is safe")
        for name in ("share", "poisoned"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} must lie in (0, 1], got {getattr(self, name)}; it is a share")
        for name in ("learning_rate", "smoothness", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigurationError(f"{name} must be more than 0 and finite, got {getattr(self, name)}; give --{name}")


def logistic_smoothness(longest: float, input_norm: float = 1.0) -> float:
    """L_z of multi-class logistic regression: one linear layer, cross entropy.

    The gradient is (p - y)(x, 1)^T. A change of x by u moves p by at most ||W|| ||u|| / 2, and ||p - y|| is at most sqrt(2), so
    L_z <= sqrt(2) + longest sqrt(1 + input_norm^2) / 2. For inputs no longer than 1 that is no more than sqrt(2 + 2 rho +
    rho^2), rho = `longest`, which the published code takes whatever the inputs are, and which is taken here up to that length.

    Args:
        longest: rho, which the norm of the weights never exceeds.
        input_norm: which the norm of no input exceeds, clean or poisoned.

    Example:
        >>> logistic_smoothness(3.0) ** 2
        17.0
    """
    if input_norm <= 1:
        return math.sqrt(2 + 2 * longest + longest**2)
    return math.sqrt(2) + longest * math.sqrt(1 + input_norm**2) / 2


def vote_bounds(votes: Tensor, copies: int, alpha: float) -> tuple[Tensor, Tensor]:
    """What the chances of the first and of the second class are, at least and at most, by Hoeffding's inequality.

    p_A = k_A / M - h and p_B = k_B / M + h, h = sqrt(log(1 / alpha) / (2 M)), brought into [1e-8, 1 - 1e-8].

    Args:
        votes: (n, C) int64.
        copies: M, which voted on every sample.
        alpha: how often each bound may fail, in (0, 1).

    Returns:
        (n,) float64 each.

    Example:
        >>> vote_bounds(torch.tensor([[900, 100]]), 1000, 0.001)
        (tensor([0.8412], dtype=torch.float64), tensor([0.1588], dtype=torch.float64))
    """
    if not 0 < alpha < 1:
        raise ConfigurationError(f"alpha must lie in (0, 1), got {alpha}; .001 is usual")
    slack = math.sqrt(math.log(1 / alpha) / (2 * copies))
    shares = votes.double().topk(2, dim=1).values / copies
    return (shares[:, 0] - slack).clamp(LEAST, 1 - LEAST), (shares[:, 1] + slack).clamp(LEAST, 1 - LEAST)


def contraction(norms: Sequence[float], sigmas: Sequence[float]) -> float:
    """How much of a difference between two models clipping and noise leave: the product of 2 Phi(rho_t / sigma_t) - 1.

    Args:
        norms: rho_t of the rounds after the attack's.
        sigmas: the noise of each; 0 leaves everything.

    Example:
        >>> contraction([2.0, 2.1], [0.01, 0.01]), round(contraction([1.0, 2.0], [1.0, 2.0]), 4)
        (1.0, 0.4661)
    """
    return math.prod(2 * float(norm.cdf(rho / sigma)) - 1 if sigma else 1.0 for rho, sigma in zip(norms, sigmas, strict=True))


def radius(first: Tensor, second: Tensor, threat: Threat, sigma: float, left: float = 1.0) -> Tensor:
    """How far, in the Euclidean norm, poisoned samples may lie from clean ones while the vote stays what it is.

    delta^2 = -log(1 - (sqrt(p_A) - sqrt(p_B))^2) sigma^2 / (2 R tau^2 L_z^2 R p^2 gamma^2 eta^2 (q / n)^2 `left`)

    A vote that is not certain, p_A <= p_B, has the radius 0: the published code squares the difference and gives it one. It
    also gives 100,000 where p_A is 1 and p_B 0, which is infinite here.

    Args:
        first: (n,) p_A, at least.
        second: (n,) p_B, at most.
        threat: the attack.
        sigma: the noise on the model of the attack's round, which is that of the votes if no other round follows.
        left: see `contraction`.

    Returns:
        (n,) float64.

    Example:
        >>> threat = Threat(attackers=1, share=0.05, scale=10, poisoned=0.05, steps=30, learning_rate=0.001, smoothness=17**0.5)
        >>> radius(torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.6]), threat, 0.01)
        tensor([1.6343, 0.0000], dtype=torch.float64)
    """
    apart = (first.double().sqrt() - second.double().sqrt()).clamp(min=0)
    moved = threat.steps * threat.smoothness * threat.scale * threat.learning_rate * threat.poisoned
    weight = threat.attackers * threat.share**2
    return (-torch.log1p(-(apart**2)) * sigma**2 / (2 * threat.attackers * weight * moved**2 * left)).sqrt()
