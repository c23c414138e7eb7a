"""Divide and conquer: leave out the clients that stick out along the updates' main direction.

V. Shejwalkar, A. Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", NDSS 2021, https://www.ndss-symposium.org/ndss2021/, https://doi.org/10.14722/ndss.2021.24498, Algorithm 2.
"""

import logging
import math

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.votes import GUARD
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.sums import inner_products

log = logging.getLogger(__name__)


class DnC(Aggregator):
    """A(G) = mean of the clients that no iteration drops. Unweighted.

    An iteration draws a subset of the coordinates, centres the clients' updates on it, X = G_sub - mean, and drops the
    ceil(c * f) clients with the largest (X v)_i^2, v the top right singular vector of X. As X v = sigma u with the top
    eigenvector u of the centred Gram matrix X X' = U Sigma^2 U', that (N, N) matrix is all it takes. Of clients that tie the
    later ones go. If the iterations together drop everybody, those dropped least often stay. Buffers are combined by the
    coordinate median.

    Bounds: meant for f < N/2. A run is refused unless ceil(c * f) < N; where exclusions leave so few clients in a round, all
    but one are dropped and a warning says so. Iterations that disagree drop up to `num_iterations` * ceil(c * f) clients.

    Verdict: 1 for who stays, 0 for who is dropped.

    Args:
        num_malicious: f, at least 0; what the cohort's setting says where left out.
        num_iterations: at least 1.
        subset_fraction: share of the coordinates that an iteration looks at, in (0, 1]; that share of the updates is copied.
        filter_factor: c, more than 0; below 1 fewer than f clients are dropped in an iteration.

    Differs from the paper: coordinates are drawn evenly from fixed blocks of them, keyed by round, iteration and block, so that
    the draws do not depend on the number of ranks; their number is a share of d instead of a constant. The paper does not say
    what to do if nobody is left.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [2.0, 90.0]])
        >>> DnC(num_malicious=1, subset_fraction=1.0)(updates)
        tensor([2., 1.])
    """

    def __init__(
        self,
        *,
        num_malicious: int | None = None,
        num_iterations: int = 5,
        subset_fraction: float = 0.2,
        filter_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if num_malicious is not None and num_malicious < 0:
            raise ConfigurationError(f"DnC.num_malicious must be at least 0, got {num_malicious}")
        if num_iterations < 1:
            raise ConfigurationError(f"DnC.num_iterations must be at least 1, got {num_iterations}")
        if not 0 < subset_fraction <= 1:
            raise ConfigurationError(f"DnC.subset_fraction must lie in (0, 1], got {subset_fraction}")
        if not 0 < filter_factor < math.inf:
            raise ConfigurationError(f"DnC.filter_factor must be more than 0 and finite, got {filter_factor}")
        self.num_malicious = num_malicious
        self.num_iterations = num_iterations
        self.subset_fraction = subset_fraction
        self.filter_factor = filter_factor

    def num_dropped(self) -> int:
        """ceil(c * f), clients that an iteration drops, before any are excluded."""
        return math.ceil(self.filter_factor * self.assumed_malicious() - GUARD)

    def check(self, num_clients: int) -> None:
        dropped = self.num_dropped()
        if dropped >= num_clients:
            f = self.assumed_malicious()
            raise ConfigurationError(
                f"DnC: dropping ceil({self.filter_factor} * {f}) = {dropped} of {num_clients} clients leaves nobody; lower "
                "filter_factor or num_malicious, or raise model.cohort.clients_per_round"
            )

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        kept = self.kept(shard)
        shard.judge(kept)
        return shard.combine(kept.double() / kept.sum())

    def kept(self, shard: UpdateShard) -> Tensor:
        """(N,) bool on CPU, who stays."""
        n = shard.num_clients
        dropped = self.num_dropped()
        if dropped >= n:
            log.warning("%d clients cannot lose %d; dropping %d", n, dropped, n - 1)
            dropped = n - 1
        times = torch.zeros(n, dtype=torch.int64)
        for iteration in range(self.num_iterations):
            ranked = torch.argsort(squared_projections(self.subset(shard, iteration)), stable=True)
            times[ranked[n - dropped :]] += 1
        return times == times.min()  # those whom nobody dropped, if there are any

    def subset(self, shard: UpdateShard, iteration: int) -> UpdateShard:
        """This iteration's coordinates: one bucket for each block, so that sums are taken block by block."""
        size = block_size(shard.num_coordinates)
        drawn, at = [], shard.start
        for bucket in shard.buckets:
            for first in range(0, bucket.shape[1], size):
                block = bucket[:, first : first + size]
                width = block.shape[1]
                order = torch.randperm(width, generator=shard.generator("DnC", iteration, at // size))
                chosen = torch.zeros(width, dtype=torch.bool)
                chosen[order[: max(1, round(self.subset_fraction * width))]] = True
                drawn.append(block.index_select(1, chosen.nonzero().flatten().to(block.device)))
                at += width
        looked_at = shard.with_rows(torch.zeros(shard.num_clients, 0, device=shard.weights.device))
        looked_at.buckets = drawn
        return looked_at

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def squared_projections(shard: UpdateShard) -> Tensor:
    """(N,) float64 on CPU, each centred update's squared component along the direction of largest variance."""

    def product(values: Tensor) -> Tensor:
        values -= values.mean(0)
        return inner_products(values)

    gram = shard.reduce(product).cpu()
    variances, directions = torch.linalg.eigh((gram + gram.T) / 2)
    return variances[-1] * directions[:, -1].square()
