"""RFLBAT: two principal components of the updates, clusters in them, and of these the one whose members differ most.

Y. Wang, D.-H. Zhai, Y. Zhan, Y. Xia, "RFLBAT: A Robust Federated Learning Algorithm against Backdoor Attack", 2022,
https://arxiv.org/abs/2201.03772.
"""

import math

import torch
from torch import Tensor

from fl_lightning.aggregators import distances
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.clustering import k_means, number_of_clusters
from fl_lightning.aggregators.distances import cosine_distances
from fl_lightning.aggregators.filtering import DECIMALS, check_enough, shares_of_kept
from fl_lightning.aggregators.norm_clipping import median_norm
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard

EQUAL = 1e-12
"""A variance of at most this share of the updates' squared norms is float32's rounding of updates that are equal."""


class RFLBAT(Aggregator):
    """A(G) = mean of the clients that two filters and a choice between clusters leave. Unweighted.

    x_i in R^2 are the coordinates of g_i along the two directions in which the round's updates vary most (principal components,
    centred). With s_i = sum_j ||x_i - x_j|| over the clients that are compared,

    1. keep i if s_i < `first_factor` * median(s);
    2. cluster the x_i of those by k-means, k by the gap statistic (`max_clusters`, `references`);
    3. keep one cluster: that of the smallest median over its members of their mean cosine to all its members, themselves
       included, between whole updates. Benign updates are taken to be more diverse than those of colluders;
    4. keep i of it if s_i < `second_factor` * median(s), within the cluster.

    Where the median of s is 0 a filter lets everybody pass. Of clusters that tie the largest is kept, then the one of the first
    client. All of it comes from the (N, N) Gram matrix. Buffers are combined by the coordinate median.

    Bounds: defined for any f, but it takes attackers that are more alike than benign clients; a single attacker is a cluster of
    one, whose cosine is 1, and is left out wherever it is found. Benign clients outside of the one cluster are left out too. A
    run is refused if N < 3.

    Verdict: 1 for who is kept, 0 for who is not.

    Args:
        first_factor: more than 1, so that half of the clients pass at least.
        second_factor: the same, within the cluster.
        max_clusters: most clusters that are tried, at least 1; with 1 the filters alone are left.
        references: sets of uniform points that dispersions are compared with, at least 1.

    Differs from the paper: there is no code of the authors; factors, the number of references and the choice of the cluster are
    those of three published re-implementations. Those take layers of chosen names, or whole models with their buffers, or
    updates; here it is updates, all trainable parameters. One of them gives a cluster of one client an infinite score, which is
    the same here unless all are such. The gap statistic compares logarithms of squared dispersions, as in its own paper.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[3.0, 1.0], [3.0, -1.0], [2.0, 2.0], [2.0, -2.0], [-9.0, 0.0], [-9.1, 0.0]])
        >>> RFLBAT()(updates)
        tensor([2.5000, 0.0000])
    """

    def __init__(
        self, *, first_factor: float = 10.0, second_factor: float = 4.0, max_clusters: int = 10, references: int = 5
    ) -> None:
        super().__init__()
        for name, factor in (("first_factor", first_factor), ("second_factor", second_factor)):
            if not 1 < factor < math.inf:
                raise ConfigurationError(f"RFLBAT.{name} must be more than 1 and finite, got {factor}")
        for name, number in (("max_clusters", max_clusters), ("references", references)):
            if number < 1:
                raise ConfigurationError(f"RFLBAT.{name} must be at least 1, got {number}")
        self.first_factor = first_factor
        self.second_factor = second_factor
        self.max_clusters = max_clusters
        self.references = references

    def check(self, num_clients: int) -> None:
        check_enough("RFLBAT", num_clients, 3, f"of {num_clients} clients none lies farther off than another")

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        gram = shard.gram().cpu()
        cosines = (1 - cosine_distances(gram)).round(decimals=distances.DECIMALS)
        kept = self.kept(principal_components(gram), cosines, shard.generator("RFLBAT"))
        shard.judge(kept)
        return shard.combine(shares_of_kept("RFLBAT", shard, kept))

    def kept(self, points: Tensor, cosines: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) bool, who stays, of (N, 2) points and (N, N) cosines."""
        near = within(points, self.first_factor).nonzero().flatten()
        k = number_of_clusters(points[near], self.max_clusters, self.references, generator)
        labels = k_means(points[near][None], k, generator).labels[0]
        clusters = [near[labels == label] for label in labels.unique()]
        chosen = min(clusters, key=lambda members: (likeness(cosines, members), -len(members), int(members[0])))
        kept = torch.zeros(len(points), dtype=torch.bool)
        kept[chosen[within(points[chosen], self.second_factor)]] = True
        return kept

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def principal_components(gram: Tensor) -> Tensor:
    """(N, 2) float64, coordinates along the two directions of largest variance; (1, 1) for one update.

    Directions come from the eigenvectors of the centred Gram matrix, so their signs mean nothing.

    Args:
        gram: (N, N) float64, inner products of the updates.

    Example:
        >>> principal_components(torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64)).abs().round(decimals=6)
        tensor([[0., 1.],
                [0., 1.]], dtype=torch.float64)
    """
    centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    variances, directions = torch.linalg.eigh((centred + centred.T) / 2)
    variances, directions = variances[-2:], directions[:, -2:]
    return directions * torch.where(variances > EQUAL * gram.diagonal().sum(), variances, 0.0).sqrt()


def within(points: Tensor, factor: float) -> Tensor:
    """(n,) bool, whose distances to all points add up to less than `factor` times the median of such sums; all if that is 0.

    Example:
        >>> five = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [10.0, 10.0]])
        >>> within(five, 3.0)
        tensor([ True,  True,  True,  True, False])
    """
    sums = (points[:, None] - points).norm(dim=-1).sort(1).values.sum(1)
    most = median_norm(sums)
    return sums < factor * most if most > 0 else torch.ones_like(sums, dtype=torch.bool)


def likeness(cosines: Tensor, members: Tensor) -> float:
    """The median over members of a cluster of their mean cosine to all its members."""
    return round(median_norm(cosines[members][:, members].mean(1)), DECIMALS)
