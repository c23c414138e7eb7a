"""Robust federated averaging: the geometric median by the smoothed Weiszfeld algorithm.

K. Pillutla, S. M. Kakade, Z. Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing
70, 2022, https://arxiv.org/abs/1912.13445, Algorithm 2.
"""

import math

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard


class RFA(Aggregator):
    """A(G) approximately minimises F(v) = sum_i a_i ||v - g_i||, a_i = n_i / sum_j n_j.

    From v = sum_i a_i g_i on: beta_i = a_i / max(nu, ||v - g_i||), v <- sum_i beta_i g_i / sum_j beta_j, until `max_iterations`
    or |F_before - F| < ftol * F. Every v is a convex combination v = sum_j c_j g_j, so only the coefficients c are iterated,
    in float64: ||v - g_i||^2 = K_ii - 2 (K c)_i + c' K c with the Gram matrix K. That takes one pass over the updates
    for K and one for the result, however many iterations. Buffers are combined by the coordinate median.

    Bounds: the exact geometric median holds as long as the attackers' a_i add up to less than 1/2. A few iterations are not
    exact: each divides the share of a distant attacker by a factor only, so its distance counts.

    Verdict: 1 / max(nu, ||v - g_i||) in the last step, divided by the largest of the round. It tells who is far off, and is 0
    for nobody whose distance float32 can hold beside the least one.

    Args:
        max_iterations: most steps after the weighted mean, at least 0.
        nu: distance below which clients count no more than at it, more than 0, in units of an update's norm. Distances below
            about 1e-8 of the largest norm are lost in the rounding of K.
        ftol: relative change of F that ends the iteration, at least 0; 0 never does.
        weighted: weight by sample counts; otherwise a_i = 1/N.

    Differs from the paper: the iteration also ends where F = 0.

    Example:
        >>> import torch
        >>> RFA()(torch.tensor([[0.0], [0.0], [10.0]]))  # after 10/3, 2, 10/9 and 10/17
        tensor([0.3030])
    """

    def __init__(self, *, max_iterations: int = 4, nu: float = 1e-5, ftol: float = 1e-6, weighted: bool = True) -> None:
        super().__init__()
        if max_iterations < 0:
            raise ConfigurationError(f"RFA.max_iterations must be at least 0, got {max_iterations}")
        if not 0 < nu < math.inf:
            raise ConfigurationError(f"RFA.nu must be more than 0 and finite, got {nu}: it keeps weights finite")
        if not 0 <= ftol < math.inf:
            raise ConfigurationError(f"RFA.ftol must be at least 0 and finite, got {ftol}")
        self.max_iterations = max_iterations
        self.nu = nu
        self.ftol = ftol
        self.weighted = weighted

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        weights = shard.weights.cpu().double() if self.weighted else torch.ones(shard.num_clients, dtype=torch.float64)
        found, nearness = self.coefficients(shard.gram().cpu(), weights / weights.sum())
        shard.judge(nearness)
        return shard.combine(found)

    def coefficients(self, gram: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) float64 c, at least 0 and adding up to 1, so that the result is sum_j c_j g_j; and the last (N,) beta_i / a_i.

        Args:
            gram: (N, N) float64, K.
            alphas: (N,) float64, the a_i.
        """
        found, nearness = alphas, torch.ones_like(alphas)
        distances = self._distances(gram, found)
        objective = float(alphas @ distances)
        for _ in range(self.max_iterations):
            least = distances.clamp(min=self.nu)
            betas = alphas / least
            found, nearness = betas / betas.sum(), 1 / least
            distances = self._distances(gram, found)
            before, objective = objective, float(alphas @ distances)
            if objective == 0 or abs(before - objective) < self.ftol * objective:
                break
        return found, nearness

    @staticmethod
    def _distances(gram: Tensor, coefficients: Tensor) -> Tensor:
        """(N,) ||sum_j c_j g_j - g_i||."""
        inner = gram @ coefficients
        return (gram.diagonal() - 2 * inner + coefficients @ inner).clamp(min=0).sqrt()

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)
