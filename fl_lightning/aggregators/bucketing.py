"""Bucketing: average small random groups of updates before a rule sees them.

S. P. Karimireddy, L. He, M. Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022,
https://arxiv.org/abs/2006.09365, Algorithm 1.
"""

import logging

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.mixing import Mixing
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class Bucketing(Mixing):
    """A = rule(y_1, .., y_M): clients are shuffled and cut into M = ceil(N/s) buckets, y_j is the mean of bucket j.

    The last bucket may be smaller. The shuffle is drawn anew in every round, from the experiment's seed; on a plain tensor it
    is always the same. Buckets all have weight 1, so sample counts do not matter. Buffers are combined by the rule, without
    buckets.

    Bounds: up to f of the M buckets hold a malicious client, so f stays what the rule is told, while it sees M rows: the run is
    refused where the rule refuses M, and warned where f >= M/2. The rule's bound thus asks for s times as many clients. A rule
    that must know whose updates it sees is refused as well.

    Verdict: the rule's, of the client's bucket, so that benign clients share an attacker's. None where the rule has none.

    Args:
        rule: what aggregates the buckets' means.
        bucket_size: s, at least 1; 1 leaves a rule that does not care for order as it is.

    Differs from the paper: the mean of a last bucket with fewer than s clients is taken over those, not divided by s.

    Example:
        >>> from fl_lightning.aggregators.median import Median
        >>> Bucketing(rule=Median(), bucket_size=3)(torch.tensor([[1.0], [2.0], [6.0]]))
        tensor([3.])
    """

    def __init__(self, *, rule: Aggregator, bucket_size: int = 2) -> None:
        super().__init__(rule)
        if bucket_size < 1:
            raise ConfigurationError(f"Bucketing.bucket_size must be at least 1, got {bucket_size}")
        self.bucket_size = bucket_size

    def expect(self, num_malicious: int) -> None:
        super().expect(num_malicious)
        self.rule.expect(num_malicious)

    def check(self, num_clients: int) -> None:
        m, f = -(-num_clients // self.bucket_size), self._expected_malicious
        if f is not None and 2 * f >= m:
            log.warning("Bucketing: f = %d malicious clients may sit in half or more of %d buckets; lower bucket_size", f, m)
        if self.rule.needs_clients:
            raise ConfigurationError(
                f"Bucketing.rule is {type(self.rule).__name__}, which must know whose updates it sees, but a bucket's mean is "
                "nobody's; use it without Bucketing, for example inside NearestNeighborMixing"
            )
        try:
            self.rule.check(m)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"Bucketing: bucket_size = {self.bucket_size} makes {m} rows of {num_clients} clients, and the rule counts "
                f"rows: {error}; or lower bucket_size"
            ) from error

    def matrix(self, shard: UpdateShard) -> Tensor:
        n = shard.num_clients
        buckets = torch.randperm(n, generator=shard.generator("bucketing")).split(self.bucket_size)
        matrix = torch.zeros(len(buckets), n, dtype=torch.float64)
        for row, members in zip(matrix, buckets, strict=True):
            row[members] = 1 / len(members)
        return matrix

    def reference(self, matrix: Tensor) -> Tensor:
        return matrix.sum(0)  # a smaller bucket makes nobody suspicious
