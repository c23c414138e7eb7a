"""Federated averaging: the mean of all updates, weighted by sample counts.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, Algorithm 1.
"""

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.updates.shard import UpdateShard


class FedAvg(Aggregator):
    """A(G) = sum_i n_i g_i / sum_j n_j. No robustness: one client can move the result anywhere.

    Verdict: none, as a mean judges nobody.

    Args:
        weighted: weight by the sample counts n_i that clients report (an attacker may inflate its own); otherwise 1/N each.

    Example:
        >>> import torch
        >>> FedAvg()(torch.tensor([[1.0, 0.0], [4.0, 3.0]]), torch.tensor([2.0, 1.0]))
        tensor([2., 1.])
    """

    def __init__(self, *, weighted: bool = True) -> None:
        super().__init__()
        self.weighted = weighted

    def forward(self, shard: UpdateShard) -> Tensor:
        return shard.mean(shard.shares if self.weighted else None)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return FedAvg.forward(self, shard)  # that of a subclass may look at models, judge clients or recall
