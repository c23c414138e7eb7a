"""FLTrust: the server trains on clean samples of its own, and trusts clients as far as their updates point the same way.

X. Cao, M. Fang, J. Liu, N. Z. Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021,
https://arxiv.org/abs/2012.13995, Algorithm 2.
"""

import logging

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import median
from fl_lightning.updates.overflow import MOST
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)

LEAST = 1e-12
"""Cosine from which on a client is trusted: what the rounding of float64 sums leaves of none at all must not count."""


class FLTrust(Aggregator):
    """A(G) = sum_i t_i g_i ||g_0|| / ||g_i||, divided by sum_j t_j, with the trust t_i = max(0, cos(g_i, g_0)). Unweighted.

    g_0 is the server's own update, found by the clients' local procedure on its root set (`data.root`), in as many steps as
    clients take on average; on a plain tensor it is the argument `root`. Every update is scaled to the length of g_0, down
    or up, so ||A|| <= ||g_0||. Sums are taken over all d coordinates in float64. A cosine of 1e-12 or less, or with a zero
    vector, is no trust; where nobody has any, the aggregate is zero and a warning says so.

    The cosines see parameters only: running statistics would dilute them. Buffers are combined by the coordinate median.

    Bounds: defined for any N and f, as trust comes from the root set alone. It fails where the root set does: with too few
    samples, or unlike those of the clients.

    Verdict: the trust t_i, divided by the largest of the round; 0 for who points away from the root set's update.

    Differs from the paper: no 1e-9 is added to denominators.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[0.0, 5.0], [2.0, 2.0], [-3.0, 0.0]])
        >>> FLTrust()(updates, root=torch.tensor([1.0, 0.0]))
        tensor([0.7071, 0.7071])
    """

    @property
    def needs_root(self) -> bool:
        return True

    @property
    def judges(self) -> bool:
        return True

    def forward(self, shard: UpdateShard) -> Tensor:
        if shard.root is None:
            raise ConfigurationError(
                "FLTrust compares updates with the server's own, and there is none; set data.root, for example {samples: 100}, "
                "or on a plain tensor call FLTrust()(updates, root=...)"
            )
        squares, inner, of_root = shard.reduce(sums, shard.root).cpu()
        norms, root_norm = squares.sqrt(), float(of_root[0].sqrt())
        lengths = norms * root_norm
        trusted = inner > LEAST * lengths  # nobody, where the root is not finite
        trust = torch.where(trusted, inner / lengths, 0.0)
        shard.judge(trust)
        if not trust.any():
            log.warning("FLTrust: no update points the way of the server's own, so the update is zero")
            return torch.zeros_like(shard.root)
        # Both limits are float32's, and out of reach for anything but updates of the shortest or longest that it holds.
        length = min(root_norm, MOST / 2)
        scales = torch.where(trusted, length / norms, 0.0)
        return shard.combine((trust / trust.sum() * scales).clamp(max=MOST))

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.map(median)


def sums(values: Tensor, root: Tensor) -> Tensor:
    """(N, c) float64 and (c,) float32 -> (3, N) float64: ||g_i||^2, <g_i, g_0> and ||g_0||^2 over these columns."""
    reference = root.double()
    return torch.stack([values.square().sum(1), (values * reference).sum(1), reference.square().sum().expand(len(values))])
