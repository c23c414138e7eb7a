"""Centered clipping: the mean, of updates that are cut off at some distance from what came out last time.

S. P. Karimireddy, L. He, M. Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021,
https://arxiv.org/abs/2012.10333.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.norm_clipping import check_max_norm, clip_factors
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.overflow import MOST
from fl_lightning.updates.shard import UpdateShard


class CenteredClipping(Aggregator):
    """A(G) = v after `iterations` of v <- v + (1/N) sum_i (g_i - v) min(1, tau / ||g_i - v||). Unweighted.

    v is (d,) float32, S coordinates of it on a rank. It starts from zero in the first round and from the last round's
    aggregate in every other. Distances are Euclidean, over all d coordinates, in float64. An iteration takes two passes over
    the updates. Where no update is further away than tau, v is their mean. Buffers are combined by the coordinate median.

    Bounds: defined for any N, and no f is assumed. A client moves v by at most tau / N per iteration, so f of them by at most
    f tau / N: little, if tau is no longer than benign updates differ. They may do so in every round.

    Verdict: the factor min(1, tau / ||g_i - v||); of several iterations the weight of g_i in the result, as a share of what it
    would have if it were never cut.

    Args:
        max_norm: tau, more than 0, in units of an update's norm. It must fit the updates: take it from the norms of a run
            without attack. The authors advise 10 / (1 - beta) for clients that send a momentum of factor beta.
        iterations: at least 1.
        carry: whether v outlasts the round; otherwise every round starts from zero, so that one iteration clips norms.

    Differs from the paper: clients send old minus new weights, where the authors' send a momentum of single gradients. The
    code of this paper has tau = 100 whatever beta is; 10 / (1 - beta) comes from the code of their "Byzantine-Robust Learning
    on Heterogeneous Datasets via Bucketing", ICLR 2022.

    Example:
        >>> import torch
        >>> rule = CenteredClipping(max_norm=4.0)
        >>> updates = torch.tensor([[3.0], [3.0], [900.0], [2.0]])
        >>> rule(updates), rule(updates)
        (tensor([3.]), tensor([3.7500]))
    """

    def __init__(self, *, max_norm: float = 10.0, iterations: int = 1, carry: bool = True) -> None:
        super().__init__()
        check_max_norm("CenteredClipping", max_norm)
        if iterations < 1:
            raise ConfigurationError(f"CenteredClipping.iterations must be at least 1, got {iterations}")
        self.max_norm = max_norm
        self.iterations = iterations
        self.carry = carry

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        center = self.recall("center", shard).clone() if self.carry else torch.zeros(shard.width, device=shard.weights.device)
        counted, untouched = torch.zeros(shard.num_clients, dtype=torch.float64), 0.0  # N times the weight of g_i in v
        for _ in range(self.iterations):
            factors = clip_factors(shard.reduce(squared_distances, center).sqrt().cpu(), self.max_norm)
            stays = float((1 - factors).mean())
            center.mul_(stays).add_(shard.combine(factors / shard.num_clients)).clamp_(-MOST, MOST)
            counted, untouched = stays * counted + factors, stays * untouched + 1
        shard.judge(counted, most=untouched)
        if self.carry:
            self.recall("center", shard).copy_(center)
        return center

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def squared_distances(values: Tensor, center: Tensor) -> Tensor:
    """(N, c) float64 and (c,) float32 -> (N,) float64, ||g_i - v||^2 over these columns."""
    return (values - center).square_().sum(1)
