"""Norm clipping: no client moves the mean by more than its share of a fixed length.

Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can You Really Backdoor Federated Learning?", 2nd International Workshop on
Federated Learning for Data Privacy and Confidentiality at NeurIPS 2019, https://arxiv.org/abs/1911.07963.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard


class NormClipping(Aggregator):
    """A(G) = sum_i a_i g_i min(1, M / ||g_i||), a_i = n_i / sum_j n_j.

    Norms are Euclidean, over all d coordinates, in float64. ||A|| <= M, and f clients contribute at most M times the sum of
    their a_i: bounded, for any f, but not removed. Buffers are not clipped; they are combined by the mean.

    Verdict: the factor min(1, M / ||g_i||).

    Args:
        max_norm: M, more than 0, in units of an update's norm. Unused with `adaptive`.
        adaptive: take M from this round's norms, the attackers' included: their `median`, which lies among those of benign
            clients as long as f < N/2, or their `mean`, which a single client can raise at will.
        weighted: weight by sample counts; otherwise a_i = 1/N. An attacker may inflate its count, which clipping does not see.

    Differs from the paper: `adaptive` is not in it; the mean is that of FedAvg.

    Example:
        >>> import torch
        >>> NormClipping(max_norm=5.0)(torch.tensor([[3.0, 4.0], [0.0, 2.0], [600.0, 800.0]]))
        tensor([2.0000, 3.3333])
    """

    def __init__(
        self, *, max_norm: float = 2.0, adaptive: Literal["mean", "median"] | None = None, weighted: bool = True
    ) -> None:
        super().__init__()
        check_max_norm("NormClipping", max_norm)
        if adaptive not in (None, "mean", "median"):
            raise ConfigurationError(f"NormClipping.adaptive must be 'mean', 'median' or left out, got {adaptive!r}")
        self.max_norm = max_norm
        self.adaptive = adaptive
        self.weighted = weighted

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        norms = shard.norms()
        if self.adaptive == "median":
            most = median_norm(norms)
        elif self.adaptive == "mean":
            most = float(norms.sum() / len(norms))
        else:
            most = self.max_norm
        factors = clip_factors(norms, most)
        shard.judge(factors, most=1.0)
        return shard.combine(self.shares(shard) * factors)

    def shares(self, shard: UpdateShard) -> Tensor:
        """(N,) float64 on CPU, the a_i."""
        if self.weighted:
            return shard.shares.cpu().double()
        return torch.full((shard.num_clients,), 1 / shard.num_clients, dtype=torch.float64)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.combine(self.shares(shard))


def check_max_norm(rule: str, max_norm: float) -> None:
    """Raise unless M is a length."""
    if not 0 < max_norm < math.inf:
        raise ConfigurationError(f"{rule}.max_norm must be more than 0 and finite, got {max_norm}")


def median_norm(norms: Tensor) -> float:
    """The median, the mean of the two middle ones where N is even."""
    return float(median(norms[:, None]))


def clip_factors(norms: Tensor, max_norm: float) -> Tensor:
    """(N,) float64, min(1, M / norm); 1 for a zero update, also where M = 0."""
    return torch.where(norms > max_norm, max_norm / norms, 1.0)
