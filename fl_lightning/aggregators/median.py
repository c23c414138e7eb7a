"""Coordinate-wise median.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, https://arxiv.org/abs/1803.01498, Definition 1.
"""

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.survival import judge_by_coordinates
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.trimming import trimmed


class Median(Aggregator):
    """A_k = median_i g_ik; the mean of the two middle entries where N is even. Unweighted. Holds up to f < N/2.

    Verdict: none, or with `verdicts` the share of the coordinates on which the client's entry is a middle one, or equals it.

    Args:
        verdicts: whether to count on which coordinates each client survives, see Verdict. The aggregate stays the same.

    Example:
        >>> import torch
        >>> Median()(torch.tensor([[1.0], [2.0], [3.0], [1000.0]]))
        tensor([2.5000])
    """

    def __init__(self, *, verdicts: bool = False) -> None:
        super().__init__()
        self.verdicts = verdicts

    @property
    def judges(self) -> bool:
        return self.verdicts

    def forward(self, shard: UpdateShard) -> Tensor:
        if self.verdicts:
            judge_by_coordinates(shard, (shard.num_clients - 1) // 2)
        return self.aggregate_buffers(shard)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return trimmed(shard, (shard.num_clients - 1) // 2).mean
