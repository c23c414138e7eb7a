"""Weak differential privacy: clip every update, add Gaussian noise to their mean.

Z. Sun, P. Kairouz, A. T. Suresh, H. B. McMahan, "Can You Really Backdoor Federated Learning?", 2nd International Workshop on
Federated Learning for Data Privacy and Confidentiality at NeurIPS 2019, https://arxiv.org/abs/1911.07963; settings of
H. Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning", NeurIPS 2020,
https://arxiv.org/abs/2007.05084.
"""

import math

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.norm_clipping import check_max_norm, clip_factors
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard


class WeakDP(Aggregator):
    """A(G) = sum_i a_i g_i min(1, M / ||g_i||) + sigma z, a_i = n_i / sum_j n_j, z ~ N(0, I) drawn once per round.

    Norms are Euclidean, over all d coordinates, in float64. Clipping bounds what f clients contribute by M times the sum of
    their a_i, for any f. "Weak" because the noise is meant to drown a backdoor and is far too small for a privacy guarantee;
    over a whole model it is long all the same: its norm is about sigma * sqrt(d), 85 for d = 11.7 million and the default
    sigma. Buffers are neither clipped nor noised; they are combined by the weighted mean.

    Verdict: the factor min(1, M / ||g_i||).

    Args:
        max_norm: M, more than 0, in units of an update's norm.
        sigma: the noise's standard deviation per coordinate, at least 0. For a noise multiplier z of differential privacy give
            z * M / N.

    Differs from the paper: sample counts weight the mean, as in the code of "Attack of the Tails".

    Example:
        >>> import torch
        >>> WeakDP(max_norm=5.0, sigma=0.0)(torch.tensor([[0.0, 2.0], [600.0, 800.0]]))
        tensor([1.5000, 3.0000])
    """

    def __init__(self, *, max_norm: float = 2.0, sigma: float = 0.025) -> None:
        super().__init__()
        check_max_norm("WeakDP", max_norm)
        if not 0 <= sigma < math.inf:
            raise ConfigurationError(f"WeakDP.sigma must be at least 0 and finite, got {sigma}")
        self.max_norm = max_norm
        self.sigma = sigma

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        factors = clip_factors(shard.norms(), self.max_norm)
        shard.judge(factors, most=1.0)
        clipped = shard.combine(shard.shares.cpu().double() * factors)
        return clipped + self.sigma * shard.noise("weak DP") if self.sigma else clipped
