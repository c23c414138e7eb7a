"""Coordinate-wise median.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, https://arxiv.org/abs/1803.01498, Definition 1.
"""

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.trimming import trimmed


class Median(Aggregator):
    """A_k = median_i g_ik; the mean of the two middle entries where N is even. Unweighted. Holds up to f < N/2.

    Example:
        >>> import torch
        >>> Median()(torch.tensor([[1.0], [2.0], [3.0], [1000.0]]))
        tensor([2.5000])
    """

    def forward(self, shard: UpdateShard) -> Tensor:
        return trimmed(shard, (shard.num_clients - 1) // 2).mean

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return self.forward(shard)
