"""Robust learning rate: go backwards where too few clients agree.

M. S. Ozdayi, M. Kantarcioglu, Y. R. Gel, "Defending against Backdoors in Federated Learning with Robust Learning Rate",
AAAI 2021, https://arxiv.org/abs/2007.03767.
"""

import logging

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.shard import UpdateShard

log = logging.getLogger(__name__)


class RLR(Aggregator):
    """A_k = +M_k if |sum_i sign(g_ik)| >= theta, else -M_k; M_k = sum_i n_i g_ik / sum_j n_j, sign(0) = 0.

    The vote is one client, one vote; the mean is weighted by sample counts, so attackers still choose magnitudes and counts. A
    coordinate whose clients merely disagree is turned too, and moves away from where the mean points. Buffers are combined by
    the weighted mean.

    Bounds: f clients against all others leave |S_k| = N - 2f, so unanimous benign clients are heard iff N - 2f >= theta; with
    the default theta = 2f that is f <= N/4. A theta above N would turn every coordinate, and is refused. Where exclusions leave
    fewer than theta clients in a round, theta is lowered to their number and a warning says so.

    Verdict: none, as coordinates are turned and clients are not judged.

    Args:
        threshold: theta, a number of votes in [0, N]; 0 turns nothing. The default is 2f.
        num_malicious: f, for that default, at least 0; what the cohort's setting says where left out.

    Differs from the paper: theta has no default there; its code is run with 4 for 10 clients of whom one is malicious, and with
    8 for 40 and 4.

    Example:
        >>> import torch
        >>> RLR(threshold=3)(torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, -6.0]]))
        tensor([2., 1.])
    """

    def __init__(self, *, threshold: int | None = None, num_malicious: int | None = None) -> None:
        super().__init__()
        if threshold is not None and threshold < 0:
            raise ConfigurationError(f"RLR.threshold is a number of votes, at least 0, got {threshold}")
        if num_malicious is not None and num_malicious < 0:
            raise ConfigurationError(f"RLR.num_malicious must be at least 0, got {num_malicious}")
        if threshold is not None and num_malicious is not None:
            raise ConfigurationError(
                f"RLR: threshold = {threshold} leaves num_malicious = {num_malicious} without a use; give one of the two"
            )
        self.threshold = threshold
        self.num_malicious = num_malicious

    def theta(self) -> int:
        """The least |sum of signs| that is not turned, before any client is excluded."""
        return 2 * self.assumed_malicious() if self.threshold is None else self.threshold

    def check(self, num_clients: int) -> None:
        theta = self.theta()
        if theta > num_clients:
            origin = "threshold" if self.threshold is not None else f"2 * {self.assumed_malicious()} malicious clients"
            raise ConfigurationError(
                f"RLR: {num_clients} clients cannot give the {theta} votes asked for ({origin}), so every coordinate would be "
                f"turned; set threshold to {num_clients} or less, or raise model.cohort.clients_per_round"
            )

    def forward(self, shard: UpdateShard) -> Tensor:
        theta, most = self.theta(), shard.num_clients
        if theta > most:
            log.warning("%d clients cannot give %d votes; lowering the threshold to %d", most, theta, most)
            theta = most
        mean = shard.mean(shard.shares)
        agreed = shard.map(lambda values: values.sign().sum(0).abs() >= theta, dtype=torch.bool)
        return torch.where(agreed, mean, -mean)
