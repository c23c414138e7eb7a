"""Multi-Metrics: rank clients by three distances to all others, weighed by how these vary together; keep the lowest.

S. Huang, Y. Li, C. Chen, L. Shi, Y. Gao, "Multi-Metrics Adaptively Identifies Backdoors in Federated Learning", ICCV 2023,
https://arxiv.org/abs/2303.06601.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.aggregators import distances
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import cosine_distances, lowest, squared_distances
from fl_lightning.aggregators.filtering import DECIMALS, EQUAL, check_enough, shares_of_kept
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard


class MultiMetrics(Aggregator):
    """A(G) = sum over the floor(p N) clients of the lowest scores, one at least, of a_i g_i, a_i = n_i / sum of their n_j.

    A client's score is x' C^-1 x, with C the (3, 3) sample covariance of the features x of the round's clients,

        x = (sum_j (1 - cos(g_i, g_j))^2,  sum_j ||g_i - g_j||_1,  sum_j | ||g_i|| - ||g_j|| |).

    x is not centred: a score measures how far x is from the origin, not from the mean, in units of how features vary. So the
    client that is like most others need not have the lowest. C is inverted after each feature is divided by its standard
    deviation, which changes no score; features that are equal for all, and combinations that are, count nothing
    (pseudo-inverse). A zero update has cosine 0 with every other. Of clients that tie the first ones stay. Buffers are combined
    by the coordinate median.

    Bounds: no f is assumed, but of N clients N - floor(p N) are turned away, benign or not: 70% by default. Three features of N
    clients say nothing below N = 5, where a run is refused. L1 distances between all pairs make it the dearest of the rules
    that compare whole updates, O(N^2 d).

    Verdict: 1 for who is kept, 0 for who is not.

    Args:
        keep_fraction: p, the share of the clients that is kept, in (0, 1].
        length: the third feature: `norms`, as above, or `euclidean`, sum_j ||g_i - g_j||.
        weighted: weight by sample counts; otherwise the kept count alike. An attacker may inflate its count.

    Differs from the paper: the features of updates are compared, as in the paper, where the authors' code takes whole local
    models, which all lie close to the global one. Squares in the first feature, a difference of norms for the metric that is
    called Euclidean, features that are not centred and no square root are as in that code. It keeps nobody where p N < 1, and
    inverts C also where it is singular.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [6.0, -6.0]])
        >>> MultiMetrics()(updates)
        tensor([1., 1.])
    """

    def __init__(
        self, *, keep_fraction: float = 0.3, length: Literal["norms", "euclidean"] = "norms", weighted: bool = True
    ) -> None:
        super().__init__()
        if not 0 < keep_fraction <= 1:
            raise ConfigurationError(f"MultiMetrics.keep_fraction must lie in (0, 1], got {keep_fraction}")
        if length not in ("norms", "euclidean"):
            raise ConfigurationError(f"MultiMetrics.length must be 'norms' or 'euclidean', got {length!r}")
        self.keep_fraction = keep_fraction
        self.length = length
        self.weighted = weighted

    def check(self, num_clients: int) -> None:
        check_enough(
            "MultiMetrics",
            num_clients,
            5,
            f"the covariance of three features of {num_clients} clients is singular or nearly so",
        )

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        count = max(1, math.floor(self.keep_fraction * shard.num_clients + GUARD))
        kept = torch.zeros(shard.num_clients, dtype=torch.bool)
        kept[lowest(scores(self.features(shard)).round(decimals=DECIMALS), count)] = True
        shard.judge(kept)
        return shard.combine(shares_of_kept("MultiMetrics", shard, kept, weighted=self.weighted))

    def features(self, shard: UpdateShard) -> Tensor:
        """(N, 3) float64 on CPU."""
        gram = shard.gram().cpu()
        norms = gram.diagonal().sqrt()
        angles = cosine_distances(gram).round(decimals=distances.DECIMALS).square()
        lengths = squared_distances(gram).sqrt() if self.length == "euclidean" else (norms[:, None] - norms).abs()
        # In ascending order, so that a client's place does not matter to a bit.
        return torch.stack([pairs.sort(1).values.sum(1) for pairs in (angles, manhattan_distances(shard), lengths)], dim=1)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def manhattan_distances(shard: UpdateShard) -> Tensor:
    """(N, N) float64 on CPU, ||g_i - g_j||_1."""
    n = shard.num_clients
    above = shard.reduce(lambda values: torch.nn.functional.pdist(values, p=1)).cpu()
    found = torch.zeros(n, n, dtype=torch.float64)
    i, j = torch.triu_indices(n, n, offset=1)
    found[i, j] = above
    found[j, i] = above
    return found


def scores(features: Tensor) -> Tensor:
    """(N,) float64, x' C^+ x of every row x of (N, q) features, C their sample covariance.

    Example:
        >>> scores(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)).tolist()
        [1.0, 4.0, 9.0]
    """
    freedom = max(1, len(features) - 1)
    centred = features - features.mean(0)
    deviations = (centred.square().sum(0) / freedom).sqrt()
    apart = deviations > EQUAL * features.abs().amax(0)
    units = torch.where(apart, 1 / torch.where(apart, deviations, 1.0), 0.0)
    correlations = (centred * units).T @ (centred * units) / freedom
    scaled = features * units
    return (scaled @ torch.linalg.pinv(correlations, rtol=100 * EQUAL, hermitian=True) * scaled).sum(1)
