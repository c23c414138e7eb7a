"""Multi-Krum followed by a trimmed mean.

A baseline of X. Wang et al., "Invariant Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024,
https://arxiv.org/abs/2210.01834; see `MultiKrum` and `TrimmedMean` for where its parts come from.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators.multi_krum import MultiKrum
from fl_lightning.aggregators.trimmed_mean import TrimmedMean
from fl_lightning.aggregators.votes import check_trim
from fl_lightning.updates.order_statistics import trimmed_mean
from fl_lightning.updates.shard import UpdateShard


class KrumTrimmedMean(MultiKrum):
    """A_k = mean of the order statistics b+1 .. m-b of column k over the m = N-f clients that Multi-Krum selects.

    b = ceil(alpha * m): N = 20, f = 4, alpha = .25 give m = 16, b = 4, 8 kept. Unweighted. Buffers are combined by the
    coordinate-wise median.

    Bounds: as `MultiKrum`'s in N and f; a run is refused if m - 2b < 1. Malicious updates that are selected are harmless up to
    b of them. Where exclusions leave too few clients in a round, b is lowered as in `TrimmedMean`.

    Verdict: 1 for the selected, 0 for the others, whatever is trimmed afterwards.

    Args:
        alpha: share of the selected clients trimmed from each tail, in [0, .5).
        num_malicious: f, at least 0; what the cohort's setting says where left out.

    Differs from the paper: it says no more than "naive combination"; order and trim count are choices made here.

    Example:
        >>> import torch
        >>> KrumTrimmedMean(num_malicious=1)(torch.tensor([[0.0], [1.0], [3.0], [7.0], [100.0]]))
        tensor([2.])
    """

    def __init__(self, *, alpha: float = 0.25, num_malicious: int | None = None) -> None:
        super().__init__(num_malicious=num_malicious)
        self.trimming = TrimmedMean(alpha=alpha)

    def check(self, num_clients: int) -> None:
        super().check(num_clients)
        check_trim(type(self).__name__, num_clients - self.assumed_malicious(), self.trimming.alpha)

    def forward(self, shard: UpdateShard) -> Tensor:
        selected = self.selected(shard)
        shard.judge(torch.zeros(shard.num_clients).index_fill_(0, selected, 1.0))
        chosen = selected.to(shard.weights.device)
        b = self.trimming.trim(len(chosen))
        return shard.map(lambda values: trimmed_mean(values.index_select(0, chosen), b))
