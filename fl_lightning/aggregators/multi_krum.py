"""Multi-Krum: the mean of the clients whose neighbours are near.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, https://arxiv.org/abs/1703.02757, Sections 4 and 5.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import check_krum, check_num_malicious, krum_scores, lowest, squared_distances
from fl_lightning.aggregators.proven import lowest_scores, worthwhile
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard


class MultiKrum(Aggregator):
    """A = (1/m) sum of the m updates of the lowest score; s_i = sum of the N-f-2 smallest ||g_i - g_j||^2, j != i.

    Unweighted. Clients that tie are taken in their order. Buffers are combined by the coordinate-wise median, as distances
    between running statistics say nothing.

    Bounds: Krum's proof needs N >= 2f + 3; a run with fewer clients is warned, one with N - f < 1 refused. Where exclusions
    leave fewer clients in a round, scores are taken over at least one neighbour and m is lowered to the number of clients.
    With m > N - f a malicious update is always selected.

    Verdict: 1 for the selected, 0 for the others.

    Args:
        num_malicious: f, at least 0; what the cohort's setting says where left out.
        num_selected: m, in [1, N]; N - f where left out.

    Differs from the paper: the paper leaves m open, between Krum (1) and the mean (N).

    Example:
        >>> updates = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
        >>> MultiKrum(num_malicious=1)(updates)
        tensor([1.5000])
    """

    def __init__(self, *, num_malicious: int | None = None, num_selected: int | None = None) -> None:
        super().__init__()
        check_num_malicious(type(self).__name__, num_malicious)
        if num_selected is not None and num_selected < 1:
            raise ConfigurationError(f"{type(self).__name__}.num_selected must be at least 1, got {num_selected}")
        self.num_malicious = num_malicious
        self.num_selected = num_selected

    def check(self, num_clients: int) -> None:
        name = type(self).__name__
        check_krum(name, num_clients, self.assumed_malicious())
        if self.num_selected is not None and self.num_selected > num_clients:
            raise ConfigurationError(
                f"{name}: num_selected = {self.num_selected} of {num_clients} clients; lower it to {num_clients} or less, or "
                "raise model.cohort.clients_per_round"
            )

    def distances(self, shard: UpdateShard) -> Tensor:
        """(N, N) float64 on the CPU, what scores are sums of."""
        return squared_distances(shard.gram().cpu())

    def selected(self, shard: UpdateShard) -> Tensor:
        """(m,) int64, the clients of the lowest scores, in ascending order."""
        n, f = shard.num_clients, self.assumed_malicious()
        m = max(1, n - f) if self.num_selected is None else min(self.num_selected, n)
        proven = self.proven(shard, n - f - 2, m) if n - f - 2 >= 1 and worthwhile(shard) else None
        return lowest(krum_scores(self.distances(shard), f), m) if proven is None else proven

    def proven(self, shard: UpdateShard, neighbours: int, count: int) -> Tensor | None:
        """The same, where it can be told without all of `distances`; otherwise None."""
        return lowest_scores(shard, neighbours, count)

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        chosen = self.selected(shard)
        coefficients = torch.zeros(shard.num_clients, dtype=torch.float64)
        coefficients[chosen] = 1 / len(chosen)
        shard.judge(coefficients)
        return shard.combine(coefficients)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)
