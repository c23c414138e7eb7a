"""SignGuard: leave out who is too long or too short, and whose shares of positive, zero and negative entries are unusual.

J. Xu, S.-L. Huang, L. Song, T. Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering",
ICDCS 2022, https://arxiv.org/abs/2109.05872.
"""

import math
import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fl_lightning.aggregators import distances
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.distances import cosine_distances, squared_distances
from fl_lightning.aggregators.filtering import check_enough, lower_median, shares_of_kept
from fl_lightning.aggregators.norm_clipping import clip_factors
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.sums import inner_products

NO_BANDWIDTH = 1e-12
"""Features that lie as close as this are all the same."""

SMALLEST_BIN = 1e-4
"""MeanShift starts from bins of a bandwidth's size, whose places are float32; below this it starts from the features."""

EQUAL = 1e-12
"""A squared distance of at most this share of both squared norms is float32's rounding of updates that are equal."""

SAMPLES = 50
"""Clients, drawn among more, from whose distances MeanShift's bandwidth is estimated."""

SAME_SHARES = 1e-8
"""Added to the largest share before others are divided by it, as it may be 0."""


class SignGuard(Aggregator):
    """A(G) = (1 / K) sum over the K clients that pass both checks of g_i min(1, M / ||g_i||). Unweighted.

    M is the median norm of all N updates, of the two middle ones the lower.

    1. Norms: `lower` * M < ||g_i|| < `upper` * M.
    2. Signs: among floor(`fraction` * d) coordinates, one at least and the same for all clients, the shares of positive, zero
       and negative entries, each divided by the largest of the round, are the features that clients are clustered by. The
       largest cluster passes, of two the one of the lower label. MeanShift takes its bandwidth from the distances to the
       nearest half of the clients; if that is 0 there is one cluster.

    `similarity` adds a fourth feature. With c_i = cos(g_i, A), A the rule's last result, and m = median(c), `cosine`
    (SignGuard-Sim) has min(max(c_i, 0), m) / (5 m); `distance` (SignGuard-Dist) has .2 where ||g_i - A|| > 1.1 median_j
    ||g_j - A||, else 0. Of two middle ones the lower is the median here too. In the first `warmup_rounds` rounds, and while A
    is 0, the median cosine or distance to the other clients takes the place of that to A.

    If no client passes both checks the update is zero, and a warning says so. With `similarity` a rank remembers A at its
    S coordinates. Buffers are combined by the coordinate median.

    Bounds: f < N/2. Benign clients outside of the largest cluster are left out. Made for one gradient per client; after several
    local steps an exact 0 is rare unless units are dead, and that feature says little. A run is refused if N < 4, where the
    bandwidth is always 0.

    Verdict: 0 for who is left out, for the others the factor min(1, M / ||g_i||).

    Args:
        lower: at least 0, less than 1.
        upper: more than 1.
        fraction: share of the coordinates whose signs are looked at, in (0, 1].
        window: where these lie: `contiguous`, side by side from a random first one, so in one or two layers of a large model;
            or `scattered`, drawn evenly from fixed blocks of coordinates.
        clustering: `mean_shift`, or `dbscan`, where clients without neighbours belong to no cluster.
        similarity: `cosine` or `distance`; left out, signs alone.
        eps: DBSCAN's largest distance between neighbours, more than 0.
        min_samples: DBSCAN's least number of neighbours, itself included, at least 1.
        warmup_rounds: at least 0. A plain tensor counts as round 0.

    Differs from the paper: what the authors' code does where it fails is made definite: it takes a mean of nothing if nobody
    passes, and MeanShift has no bandwidth where features are equal. That code takes entries that are not numbers for 0, which
    hides who sends them; here such updates are excluded before. Where m is 0 it is not divided by. The warm-up is that of the
    cosine in the authors' code, for both, without the 0 that stands there for a client's cosine with itself.

    Example:
        >>> import torch
        >>> benign = torch.tensor([[1.0, 1.0, -1.0, 0.0], [2.0, 1.0, -1.0, 0.0], [1.0, 2.0, -2.0, 0.0]])
        >>> others = torch.tensor([[-1.0, -1.0, 1.0, 1.0], [40.0, 40.0, -40.0, 0.0]])
        >>> SignGuard(fraction=1.0)(torch.cat([benign, others]))
        tensor([ 1.2722,  1.2110, -1.2110,  0.0000])
    """

    def __init__(
        self,
        *,
        lower: float = 0.1,
        upper: float = 3.0,
        fraction: float = 0.1,
        window: Literal["contiguous", "scattered"] = "contiguous",
        clustering: Literal["mean_shift", "dbscan"] = "mean_shift",
        similarity: Literal["cosine", "distance"] | None = None,
        eps: float = 0.05,
        min_samples: int = 2,
        warmup_rounds: int = 3,
    ) -> None:
        super().__init__()
        if not 0 <= lower < 1:
            raise ConfigurationError(f"SignGuard.lower must lie in [0, 1), got {lower}, or the median fails")
        if not 1 < upper < math.inf:
            raise ConfigurationError(f"SignGuard.upper must be more than 1 and finite, got {upper}, or the median fails")
        if not 0 < fraction <= 1:
            raise ConfigurationError(f"SignGuard.fraction must lie in (0, 1], got {fraction}")
        if window not in ("contiguous", "scattered"):
            raise ConfigurationError(f"SignGuard.window must be 'contiguous' or 'scattered', got {window!r}")
        if clustering not in ("mean_shift", "dbscan"):
            raise ConfigurationError(f"SignGuard.clustering must be 'mean_shift' or 'dbscan', got {clustering!r}")
        if similarity not in (None, "cosine", "distance"):
            raise ConfigurationError(f"SignGuard.similarity must be 'cosine', 'distance' or left out, got {similarity!r}")
        if not 0 < eps < math.inf:
            raise ConfigurationError(f"SignGuard.eps must be more than 0 and finite, got {eps}")
        if min_samples < 1:
            raise ConfigurationError(f"SignGuard.min_samples must be at least 1, got {min_samples}")
        if warmup_rounds < 0:
            raise ConfigurationError(f"SignGuard.warmup_rounds must be at least 0, got {warmup_rounds}")
        self.lower = lower
        self.upper = upper
        self.fraction = fraction
        self.window = window
        self.clustering = clustering
        self.similarity = similarity
        self.eps = eps
        self.min_samples = min_samples
        self.warmup_rounds = warmup_rounds

    def check(self, num_clients: int) -> None:
        check_enough("SignGuard", num_clients, 4, f"{num_clients} clients are too few to find a cluster among")

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        norms = shard.norms()
        most = lower_median(norms)
        features = self.sign_features(shard)
        if self.similarity is not None:
            features = torch.cat([features, self.similarity_feature(shard)[:, None]], dim=1)
        kept = (self.lower * most < norms) & (norms < self.upper * most)
        kept &= self.largest_cluster(features, shard.generator("SignGuard: bandwidth"))
        factors = clip_factors(norms, most)
        shard.judge(kept * factors, most=1.0)
        result = shard.combine(shares_of_kept("SignGuard", shard, kept) * factors)
        if self.similarity is not None:
            self.recall("last", shard).copy_(result)
        return result

    # ---- features ----------------------------------------------------------------------------------------------------

    def sign_features(self, shard: UpdateShard) -> Tensor:
        """(N, 3) float64 on CPU: shares of positive, zero and negative entries, each divided by its largest."""
        counts = torch.zeros(shard.num_clients, 3, dtype=torch.int64, device=shard.weights.device)
        looked_at = self.looked_at(shard)
        for columns, bucket in shard.columns():
            signs = bucket[:, looked_at[columns].to(bucket.device)].sign()
            counts += torch.stack([(signs == sign).sum(1) for sign in (1, 0, -1)], dim=1)
        counts = shard.count(counts).cpu()
        shares = counts / counts.sum(1, keepdim=True).clamp(min=1).double()
        return shares / (shares.amax(0) + SAME_SHARES)

    def looked_at(self, shard: UpdateShard) -> Tensor:
        """(S,) bool on CPU, the same coordinates on any number of ranks."""
        d, chosen = shard.num_coordinates, torch.zeros(shard.width, dtype=torch.bool)
        if self.window == "contiguous":
            length = min(d, max(1, math.floor(self.fraction * d + GUARD)))
            draws = shard.generator("SignGuard: window")
            first = int(torch.randint(d - length + 1, (), generator=draws)) - shard.start
            chosen[max(0, first) : max(0, first + length)] = True
            return chosen
        size = block_size(d)
        for first in range(0, shard.width, size):
            block = chosen[first : first + size]
            order = torch.randperm(len(block), generator=shard.generator("SignGuard: window", (shard.start + first) // size))
            block[order[: max(1, math.floor(self.fraction * len(block) + GUARD))]] = True
        return chosen

    def similarity_feature(self, shard: UpdateShard) -> Tensor:
        """(N,) float64 on CPU."""
        last = self.recall("last", shard)
        gram = shard.reduce(with_last, last).cpu()  # the last row and column are those of the last result
        early = shard.round_number < self.warmup_rounds or gram[-1, -1] == 0
        if self.similarity == "cosine":
            pairs = (1 - cosine_distances(gram)).round(decimals=distances.DECIMALS)
        else:
            squares = gram.diagonal()
            pairs = squared_distances(gram)
            pairs = torch.where(pairs > EQUAL * (squares[:, None] + squares), pairs, 0.0).sqrt()
        to_last = medians_of_others(pairs[:-1, :-1]) if early else pairs[:-1, -1]
        middle = lower_median(to_last)
        if self.similarity == "cosine":
            return to_last.clamp(min=0).clamp(max=middle) / (5 * (middle or 1.0))
        return 0.2 * (to_last > 1.1 * middle).double()

    # ---- clusters ----------------------------------------------------------------------------------------------------

    def largest_cluster(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) bool, the clients of the largest cluster; none if DBSCAN finds no cluster."""
        from sklearn.cluster import DBSCAN, MeanShift, estimate_bandwidth  # slow to import

        points = features.numpy()
        if self.clustering == "dbscan":
            labels = DBSCAN(eps=self.eps, min_samples=self.min_samples).fit_predict(points)
        else:
            seed = int(torch.randint(2**31 - 1, (), generator=generator))
            bandwidth = estimate_bandwidth(points, quantile=0.5, n_samples=SAMPLES, random_state=seed)
            if bandwidth < NO_BANDWIDTH:
                return torch.ones(len(points), dtype=torch.bool)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that every point has a bin of its own
                binned = bandwidth > SMALLEST_BIN
                labels = MeanShift(bandwidth=bandwidth, bin_seeding=binned, cluster_all=False).fit_predict(points)
        sizes = np.bincount(labels[labels >= 0], minlength=1)
        return torch.from_numpy(labels == sizes.argmax())

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def with_last(values: Tensor, last: Tensor) -> Tensor:
    """(N, c) float64 and (c,) float32 -> (N + 1, N + 1), inner products of the rows of both."""
    gram = inner_products(torch.cat([values, last.double()[None]]))
    return (gram + gram.T) / 2


def medians_of_others(pairs: Tensor) -> Tensor:
    """(N,) median of each row of (N, N) without its diagonal; 0 for one client.

    Example:
        >>> medians_of_others(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 3.0], [5.0, 3.0, 0.0]]))
        tensor([3., 2., 4.])
    """
    n = len(pairs)
    if n == 1:
        return torch.zeros_like(pairs[0])
    others = pairs[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)
    return median(others.T.contiguous())
