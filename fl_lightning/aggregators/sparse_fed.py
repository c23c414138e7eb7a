"""SparseFed: clipped updates go into a momentum and an error memory, of which only the largest coordinates reach the model.

A. Panda, S. Mahloujifar, A. N. Bhagoji, S. Chakraborty, P. Mittal, "SparseFed: Mitigating Model Poisoning Attacks in Federated
Learning with Sparsification", AISTATS 2022, https://arxiv.org/abs/2112.06274, Algorithm 1.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.norm_clipping import check_max_norm, clip_factors, median_norm
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.largest import largest
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.overflow import MOST
from fl_lightning.updates.shard import UpdateShard


class SparseFed(Aggregator):
    """A(G) = E on the k coordinates where |E| is largest, 0 elsewhere. Unweighted. Before that, in every round,

    V <- rho V + (1/N) sum_i g_i min(1, L / ||g_i||) and E <- E + V; after it E and V are zeroed where E was sent.

    V and E are (d,) float32, zero at first, S coordinates of each on a rank, and last from round to round. Norms are Euclidean,
    over all d coordinates, in float64; of coordinates that tie, the lower ones are sent. What is not sent is not lost but
    waits in E, so the aggregate may be longer than L: up to L / (1 - rho) for every round that it waited. Buffers are neither
    clipped nor made sparse; they are combined by the uniform mean.

    Bounds: defined for any N, and no f is assumed. In a round f clients move the mean by f L / N at most, and must hit the
    coordinates on which the benign ones agree for that to be sent soon.

    Verdict: the factor min(1, L / ||g_i||).

    Args:
        k: coordinates sent per round, from 1 to d; `fraction` of d where left out.
        fraction: share of the coordinates sent, in (0, 1]: k = ceil(fraction * d). The default is 50,000 of 6.6 million, the
            authors' setting for a ResNet-9. Unused with `k`.
        rho: momentum, in [0, 1).
        max_norm: L, more than 0, in units of an update's norm; the median norm of the round where left out, which lies among
            those of benign clients as long as f < N/2.

    Differs from the paper: L has a default, as the server cannot know the norms of an attack-free run; the authors fix it in
    advance. Clients train for as long as the local settings say, where the authors' code sends one gradient per client and
    round to its top-k. rho is 0 in that code unless it is told otherwise.

    Example:
        >>> import torch
        >>> rule = SparseFed(k=1, rho=0.5, max_norm=10.0)
        >>> rule(torch.tensor([[3.0, 2.0], [3.0, 2.0]]))
        tensor([3., 0.])
        >>> rule(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))  # V = (1, 2) and E = (1, 4)
        tensor([0., 4.])
    """

    def __init__(
        self, *, k: int | None = None, fraction: float = 0.0077, rho: float = 0.9, max_norm: float | None = None
    ) -> None:
        super().__init__()
        if k is not None and k < 1:
            raise ConfigurationError(f"SparseFed.k must be at least 1, got {k}; leave it out to send a fraction")
        if not 0 < fraction <= 1:
            raise ConfigurationError(f"SparseFed.fraction must lie in (0, 1], got {fraction}")
        if not 0 <= rho < 1:
            raise ConfigurationError(f"SparseFed.rho must lie in [0, 1), got {rho}: from 1 on the momentum grows without end")
        if max_norm is not None:
            check_max_norm("SparseFed", max_norm)
        self.k = k
        self.fraction = fraction
        self.rho = rho
        self.max_norm = max_norm

    def check_model(self, layers: Sequence[Layer]) -> None:
        self.count(sum(layer.size for layer in layers))

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        count = self.count(shard.num_coordinates)
        norms = shard.norms()
        most = median_norm(norms) if self.max_norm is None else self.max_norm
        factors = clip_factors(norms, most)
        shard.judge(factors, most=1.0)
        mean = shard.combine(factors / shard.num_clients)
        momentum, error = self.recall("momentum", shard), self.recall("error", shard)
        momentum.mul_(self.rho).add_(mean).clamp_(-MOST, MOST)
        error.add_(momentum).clamp_(-MOST, MOST)
        sent = largest(shard, error.abs(), count)
        update = torch.where(sent, error, 0.0)
        momentum[sent] = 0
        error[sent] = 0
        return update

    def count(self, num_coordinates: int) -> int:
        """How many of d coordinates are sent.

        Raises:
            ConfigurationError: if there are fewer than `k`.
        """
        if self.k is None:
            return min(num_coordinates, max(1, math.ceil(self.fraction * num_coordinates - GUARD)))
        if self.k > num_coordinates:
            raise ConfigurationError(
                f"SparseFed.k is {self.k}, but the model has {num_coordinates} coordinates; lower it, or set fraction instead"
            )
        return self.k

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.mean()
