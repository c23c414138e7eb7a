"""Coordinate-wise trimmed mean.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, https://arxiv.org/abs/1803.01498, Definition 2; with a ceiling in the trim count as in X. Wang et al., "Invariant
Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834, Definition 9.
"""

import logging

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.votes import check_alpha, check_trim, trim_count
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.trimming import trimmed

log = logging.getLogger(__name__)


class TrimmedMean(Aggregator):
    """T_k = mean of the order statistics b+1 .. N-b of column k, b = ceil(alpha * N). Unweighted.

    Kept values lie between those of benign clients as long as f <= b. A run is refused if N - 2b < 1; where exclusions leave
    so few clients in a round, b is lowered to floor((N-1)/2) and a warning says so.

    Args:
        alpha: share trimmed from each tail, in [0, .5).

    Example:
        >>> import torch
        >>> TrimmedMean(alpha=0.25)(torch.tensor([[0.0], [1.0], [5.0], [100.0]]))
        tensor([3.])
    """

    def __init__(self, *, alpha: float = 0.25) -> None:
        super().__init__()
        check_alpha(alpha)
        self.alpha = alpha

    def check(self, num_clients: int) -> None:
        check_trim(type(self).__name__, num_clients, self.alpha)

    def trim(self, num_clients: int) -> int:
        """b for the clients of one round, at least one entry kept."""
        b, most = trim_count(num_clients, self.alpha), (num_clients - 1) // 2
        if b > most:
            log.warning("%d clients cannot lose %d entries from each tail; trimming %d", num_clients, b, most)
        return min(b, most)

    def forward(self, shard: UpdateShard) -> Tensor:
        return trimmed(shard, self.trim(shard.num_clients)).mean

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return TrimmedMean.forward(self, shard)
