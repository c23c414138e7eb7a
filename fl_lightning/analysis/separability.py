"""Appendix D.3: whether a malicious model lies outside the convex hull of benign ones, and how much that says.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Appendix D.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fl_lightning.errors import ConfigurationError

COLUMNS = 2**18
"""Coordinates that inner products are added over at a time, so that float64 copies stay small."""


@dataclass(frozen=True)
class Hull:
    """A point and the convex hull of n others.

    Attributes:
        distance: Euclidean, at least 0.
        weights: (n,) float64 of the nearest point of the hull, at least 0 and adding up to 1.
        diameter: the largest distance between two of the n.
    """

    distance: float
    weights: np.ndarray
    diameter: float

    @property
    def ratio(self) -> float:
        """distance / diameter; infinite where all n are one point and this is another."""
        if self.diameter:
            return self.distance / self.diameter
        return float("inf") if self.distance else 0.0


@dataclass(frozen=True)
class Separability:
    """The malicious model beside the benign ones, and each benign one beside the others.

    Attributes:
        malicious: the malicious model and the hull of the benign ones.
        controls: each benign model and the hull of the others.
    """

    malicious: Hull
    controls: list[Hull]

    @property
    def informative(self) -> bool:
        """Whether the malicious model's ratio exceeds those of all controls.

        Being outside says nothing by itself: n points in general position in more than n dimensions are all outside the hull of
        the others.
        """
        return self.malicious.ratio > max(control.ratio for control in self.controls)


def gram(points: Tensor) -> np.ndarray:
    """(n, n) float64 inner products of (n, d) points, added up in float64."""
    total = np.zeros((len(points), len(points)))
    for piece in points.split(COLUMNS, dim=1):
        wide = piece.double().cpu().numpy()
        total += wide @ wide.T
    return total


def hull(products: np.ndarray) -> Hull:
    """The nearest point of the hull, from inner products alone.

    min over lambda >= 0, sum(lambda) = 1 of ||sum_i lambda_i v_i||, v_i = w_i - point. With the columns (v_i; s), s some scale,
    and the right-hand side (0; s), non-negative least squares finds mu with mu / sum(mu) = lambda exactly: the residual's
    conditions for mu are those of the quadratic programme for lambda, up to the factor sum(mu).

    Args:
        products: (n, n) float64 inner products of the v_i.

    Example:
        >>> found = hull(np.array([[1.0, -1.0], [-1.0, 1.0]]))  # 1 and -1 on a line, seen from 0
        >>> round(found.distance, 12), found.weights.tolist(), found.diameter
        (0.0, [0.5, 0.5], 2.0)
    """
    n = len(products)
    squares = np.diag(products)
    diameter = float(np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0).max()))
    scale = float(np.sqrt(squares.max()))
    if scale == 0:
        return Hull(0.0, np.full(n, 1 / n), diameter)
    values, vectors = np.linalg.eigh(products / scale**2)
    factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T  # factor.T @ factor are the products
    solution, _ = nnls(np.vstack([factor, np.ones(n)]), np.append(np.zeros(n), 1.0), maxiter=1000 * n)
    weights = solution / solution.sum()
    assert np.isclose(weights.sum(), 1) and (weights >= 0).all(), weights  # noqa: PT018  one invariant
    return Hull(scale * float(np.linalg.norm(factor @ weights)), weights, diameter)


def separability(benign: Tensor, malicious: Tensor) -> Separability:
    """Distances to hulls, with leave-one-out controls.

    Args:
        benign: (n, d) float32 models or updates, n at least 3.
        malicious: (d,) float32.

    Raises:
        ConfigurationError: for fewer than 3 benign models.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> round(separability(corners, torch.tensor([2.0, 0.0])).malicious.distance, 6)
        1.0
    """
    n = len(benign)
    if n < 3:
        raise ConfigurationError(f"separability needs at least 3 benign models, got {n}; raise --clients")
    products = gram(torch.cat([benign - malicious, torch.zeros_like(malicious)[None]]))  # seen from the malicious model

    def seen_from(at: int, others: list[int]) -> Hull:
        """Row and column `at` of the products become the origin."""
        moved = products - products[at][None] - products[:, at][:, None] + products[at, at]
        return hull(moved[np.ix_(others, others)])

    everyone = list(range(n))
    controls = [seen_from(i, [j for j in everyone if j != i]) for i in everyone]
    return Separability(seen_from(n, everyone), controls)
