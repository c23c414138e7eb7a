"""Proposition 6: how far apart the gradients of two distributions can be, by the distance between the distributions.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Proposition 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from fl_lightning.errors import ConfigurationError


@dataclass(frozen=True)
class Cloud:
    """Samples of one distribution, with the gradient of the loss at each.

    Attributes:
        inputs: (n, m) float64.
        labels: (n,) int64.
        gradients: (n, d) float64.
    """

    inputs: np.ndarray
    labels: np.ndarray
    gradients: np.ndarray


@dataclass(frozen=True)
class Proposition6:
    """The two sides of the proposition.

    Attributes:
        wasserstein: W1 between the samples.
        lipschitz: lambda, the largest ratio of a difference between gradients to the cost between their samples.
        difference: norm of the difference between the mean gradients, at most lambda W1.
        gamma: norm of the first cloud's mean gradient.
        gamma_other: norm of the second one's.
        bound: max(0, gamma_other - lambda W1), at most gamma.
    """

    wasserstein: float
    lipschitz: float
    difference: float
    gamma: float
    gamma_other: float
    bound: float


def costs(one: Cloud, other: Cloud, label_cost: float) -> np.ndarray:
    """(n, n') Euclidean distances between inputs, plus `label_cost` where the labels differ."""
    squares = (one.inputs**2).sum(1)[:, None] + (other.inputs**2).sum(1)[None] - 2 * one.inputs @ other.inputs.T
    return np.sqrt(np.maximum(squares, 0)) + label_cost * (one.labels[:, None] != other.labels[None])


def proposition6(one: Cloud, other: Cloud, *, label_cost: float = 1.0) -> Proposition6:
    """||E_D g - E_D' g'|| <= lambda W1(D, D'), and so gamma >= max(0, gamma' - lambda W1), on samples.

    W1 is that of an optimal assignment between equally many samples. lambda is taken over all pairs of one cloud's samples with
    the other's, for which the inequality then holds on these samples; the true constant may be larger.

    Args:
        one: n samples of D.
        other: n samples of D'.
        label_cost: what a change of the label costs, more than 0.

    Raises:
        ConfigurationError: if the clouds are not equally large, or `label_cost` is not positive.

    Differs from the paper, which has no labels in its cost: gradients differ between labels at the same input, so that no
    constant would do.

    Example:
        >>> one = Cloud(np.array([[0.0], [1.0]]), np.array([0, 0]), np.array([[1.0], [1.0]]))
        >>> other = Cloud(np.array([[1.0], [2.0]]), np.array([0, 0]), np.array([[3.0], [3.0]]))
        >>> proposition6(one, other).wasserstein
        1.0
    """
    if len(one.inputs) != len(other.inputs) or not len(one.inputs):
        raise ConfigurationError(
            f"Proposition 6 assigns samples to each other, so it needs equally many of both, got {len(one.inputs)} and "
            f"{len(other.inputs)}; leave some out"
        )
    if not label_cost > 0:
        raise ConfigurationError(f"label_cost must be more than 0, got {label_cost}")
    cost = costs(one, other, label_cost)
    wasserstein = float(cost[linear_sum_assignment(cost)].mean())
    apart = np.linalg.norm(one.gradients[:, None] - other.gradients[None], axis=2)  # (n, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        lipschitz = float(np.where(apart > 0, apart / cost, 0.0).max())
    means = one.gradients.mean(0), other.gradients.mean(0)
    gamma, gamma_other = (float(np.linalg.norm(mean)) for mean in means)
    reach = lipschitz * wasserstein if wasserstein else 0.0
    return Proposition6(
        wasserstein, lipschitz, float(np.linalg.norm(means[0] - means[1])), gamma, gamma_other, max(0.0, gamma_other - reach)
    )
