"""FLAME: cluster away the outliers by direction, clip to the median norm, add noise.

T. D. Nguyen et al., "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022, https://arxiv.org/abs/2101.02281,
Algorithm 1.
"""

import math

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import DECIMALS
from fl_lightning.aggregators.filtering import check_enough
from fl_lightning.aggregators.majority_cluster import majority_cluster
from fl_lightning.aggregators.norm_clipping import clip_factors, median_norm
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.overflow import MOST
from fl_lightning.updates.shard import UpdateShard


class FLAME(Aggregator):
    """A(G) = (1 / L) sum over L admitted clients of g_i min(1, M / ||g_i||), plus sigma z. Unweighted.

    Admitted is the one cluster that HDBSCAN finds among the cosine distances 1 - <g_i, g_j> / (||g_i|| ||g_j||) with a least
    size of more than `min_cluster_fraction` * N, so more than half of the clients; all if it finds none, or if N < 3. M is
    the median norm of all N updates, sigma = `noise_factor` * M, z ~ N(0, I) drawn once per round. A zero update is at distance
    1 from all others. Buffers are combined by the coordinate median.

    Bounds: f < N/2, and attackers whose direction differs. Up to N - floor(N/2) - 1 clients are left out, malicious or not. A
    run is refused if N < 3, where no cluster could leave anybody out.

    Verdict: 0 for who is left out, for the admitted the factor min(1, M / ||g_i||).

    Args:
        noise_factor: lambda, at least 0; .001 in the paper for images.
        min_cluster_fraction: a cluster must have more than this share of the clients, in [.5, 1).

    Differs from the paper: it clusters local models, which all lie close to the global one, so that their directions differ
    little; here pseudo-gradients are clustered. The noise is the same for all tensors, as printed, where some implementations
    multiply it by each tensor's standard deviation.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 0.1], [1.0, -0.1], [1.0, 0.0], [-50.0, 0.0]])
        >>> FLAME(noise_factor=0.0)(updates)
        tensor([1., 0.])
    """

    def __init__(self, *, noise_factor: float = 0.001, min_cluster_fraction: float = 0.5) -> None:
        super().__init__()
        if not 0 <= noise_factor < math.inf:
            raise ConfigurationError(f"FLAME.noise_factor must be at least 0 and finite, got {noise_factor}")
        if not 0.5 <= min_cluster_fraction < 1:
            raise ConfigurationError(
                f"FLAME.min_cluster_fraction must lie in [.5, 1), got {min_cluster_fraction}: below a half there could be two "
                "clusters"
            )
        self.noise_factor = noise_factor
        self.min_cluster_fraction = min_cluster_fraction

    def check(self, num_clients: int) -> None:
        check_enough("FLAME", num_clients, 3, f"a cluster of more than half of {num_clients} clients leaves nobody out")

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        gram = shard.gram().cpu()
        norms = gram.diagonal().sqrt()
        most = median_norm(norms)
        admitted = self.admitted(cosine_distances(gram))
        factors = admitted * clip_factors(norms, most)
        shard.judge(factors, most=1.0)
        clipped = shard.combine(factors / admitted.sum())
        sigma = min(self.noise_factor * most, MOST / 100)
        return (clipped + sigma * shard.noise("FLAME")).clamp(-MOST, MOST) if sigma else clipped

    def admitted(self, distances: Tensor) -> Tensor:
        """(N,) bool, the clients of the cluster, for (N, N) float64 distances."""
        return majority_cluster(distances, self.min_cluster_fraction)

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def cosine_distances(gram: Tensor) -> Tensor:
    """(N, N) float64 inner products -> distances in [0, 2], 0 on the diagonal, 1 from a zero update to any other."""
    norms = gram.diagonal().sqrt()
    units = torch.where(norms > 0, norms, 1.0)
    distances = (1 - gram / units / units[:, None]).clamp(0, 2).round(decimals=DECIMALS)
    return distances.fill_diagonal_(0)
