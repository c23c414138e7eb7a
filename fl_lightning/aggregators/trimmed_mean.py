"""Coordinate-wise trimmed mean.

D. Yin, Y. Chen, K. Ramchandran, P. Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018, https://arxiv.org/abs/1803.01498, Definition 2; with a ceiling in the trim count as in X. Wang et al., "Invariant
Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834, Definition 9.
"""

import logging

from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.survival import judge_by_coordinates
from fl_lightning.aggregators.votes import check_alpha, check_trim, trim_count
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.trimming import trimmed

log = logging.getLogger(__name__)


class TrimmedMean(Aggregator):
    """T_k = mean of the order statistics b+1 .. N-b of column k, b = ceil(alpha * N). Unweighted.

    Kept values lie between those of benign clients as long as f <= b. A run is refused if N - 2b < 1; where exclusions leave
    so few clients in a round, b is lowered to floor((N-1)/2) and a warning says so.

    Verdict: none, or with `verdicts` the share of the coordinates on which the client's entry lies within what is kept.

    Args:
        alpha: share trimmed from each tail, in [0, .5).
        verdicts: whether to count on which coordinates each client survives, see Verdict. The aggregate stays the same.

    Example:
        >>> import torch
        >>> TrimmedMean(alpha=0.25)(torch.tensor([[0.0], [1.0], [5.0], [100.0]]))
        tensor([3.])
    """

    def __init__(self, *, alpha: float = 0.25, verdicts: bool = False) -> None:
        super().__init__()
        check_alpha(alpha)
        self.alpha = alpha
        self.verdicts = verdicts

    def check(self, num_clients: int) -> None:
        check_trim(type(self).__name__, num_clients, self.alpha)

    def trim(self, num_clients: int) -> int:
        """b for the clients of one round, at least one entry kept."""
        b, most = trim_count(num_clients, self.alpha), (num_clients - 1) // 2
        if b > most:
            log.warning("%d clients cannot lose %d entries from each tail; trimming %d", num_clients, b, most)
        return min(b, most)

    @property
    def judges(self) -> bool:
        return self.verdicts

    def forward(self, shard: UpdateShard) -> Tensor:
        b = self.trim(shard.num_clients)
        if self.verdicts:
            judge_by_coordinates(shard, b)
        return trimmed(shard, b).mean

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return trimmed(shard, self.trim(shard.num_clients)).mean
