"""Nearest-neighbour mixing (NNM): average each update with those near it before a rule sees them.

Y. Allouah, S. Farhadkhani, R. Guerraoui, N. Gupta, R. Pinot, J. Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML
under Heterogeneity", AISTATS 2023, https://arxiv.org/abs/2302.01772, Algorithm 2.
"""

import logging

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import check_num_malicious, check_someone_is_benign, squared_distances
from fl_lightning.aggregators.mixing import Mixing
from fl_lightning.aggregators.proven import nearest, worthwhile
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class NearestNeighborMixing(Mixing):
    """A = rule(y_1, .., y_N), where y_i is the mean of the N-f updates nearest to g_i, itself included.

    Nearest by squared Euclidean distance; updates that tie are taken in their order. Mixed updates all have weight 1, so sample
    counts do not matter. Buffers are combined by the rule, without mixing: distances between running statistics say nothing.

    Bounds: f < N/2, or the run is warned; it is refused where N - f < 1 or where the rule refuses N clients. Where exclusions
    leave f clients or fewer in a round, each is mixed with itself alone, which a warning says.

    Verdict: the sum of the rule's verdicts over the mixed updates that client i has a part in, brought to the same largest
    value as those; who is near to few others counts less. None where the rule has none.

    Args:
        rule: what aggregates the mixed updates.
        num_malicious: f, at least 0; what the cohort's setting says where left out. A rule that needs f and was not given any
            takes this one.

    Example:
        >>> from fl_lightning.aggregators.median import Median
        >>> updates = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
        >>> NearestNeighborMixing(rule=Median(), num_malicious=1)(updates)
        tensor([1.5000])
    """

    def __init__(self, *, rule: Aggregator, num_malicious: int | None = None) -> None:
        super().__init__(rule)
        check_num_malicious(type(self).__name__, num_malicious)
        self.num_malicious = num_malicious
        if num_malicious is not None:
            rule.expect(num_malicious)

    def expect(self, num_malicious: int) -> None:
        super().expect(num_malicious)
        self.rule.expect(self.assumed_malicious())

    def check(self, num_clients: int) -> None:
        f = self.assumed_malicious()
        check_someone_is_benign(type(self).__name__, num_clients, f)
        if 2 * f >= num_clients:
            log.warning(
                "NearestNeighborMixing: f = %d malicious of N = %d clients, but it holds for f < N/2 only", f, num_clients
            )
        self.rule.check(num_clients)

    def matrix(self, shard: UpdateShard) -> Tensor:
        n, f = shard.num_clients, self.assumed_malicious()
        if n - f < 1:
            log.warning("NearestNeighborMixing: %d clients are left with f = %d; mixing each with itself alone", n, f)
        count = max(1, n - f)
        among = nearest(shard, count) if worthwhile(shard) else None
        if among is not None:
            return among.double() / count
        distances = squared_distances(shard.gram().cpu()).fill_diagonal_(-1)  # nearer to itself than to its copies
        places = distances.argsort(dim=1, stable=True)[:, :count]
        return torch.zeros(n, n, dtype=torch.float64).scatter_(1, places, 1 / count)

    def whose(self, shard: UpdateShard) -> Tensor | None:
        return shard.clients

    def reference(self, matrix: Tensor) -> Tensor:
        return torch.ones(len(matrix), dtype=torch.float64)  # who is near to few counts less
