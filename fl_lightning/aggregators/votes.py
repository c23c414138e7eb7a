"""Sign consistency: which coordinates enough clients want to move the same way.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Definition 7 and Algorithm 1.
"""

import math

import torch
from torch import Tensor

from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.order_statistics import GUARD, trim_count


class SignConsistency:
    """The AND-mask: keep coordinate k if C_k = |sum_i sign(g_ik)| / N exceeds tau.

    The comparison is made between integers, |sum of signs| against a vote count derived once from (N, tau). With N = 20
    and tau = .2 a coordinate needs a majority of 13 to 7; with `inclusive` 12 to 8 are enough. An exact zero is no vote, but
    counts in N.

    Args:
        tau: threshold in [0, 1), or in [0, 1] with `inclusive`.
        inclusive: keep also C_k = tau.
        ignore_zeros: divide by the number of clients with a non-zero entry instead of N.

    Differs from the paper: Definition 7 and Algorithm 1 print the sum without 1/N, but the text, the thresholds of Table 3 and
    Theorem 10 all use a consistency in [0, 1], so the sum is normalised here.
    """

    def __init__(self, *, tau: float, inclusive: bool = False, ignore_zeros: bool = False) -> None:
        if not 0 <= tau <= 1:
            raise ConfigurationError(f"tau must lie in [0, 1], got {tau}: it is a share of the clients in a round")
        if tau >= 1 and not inclusive:
            raise ConfigurationError(
                f"tau = {tau} masks every coordinate, as no consistency is above 1; lower tau, or set inclusive to keep "
                "coordinates on which all clients agree"
            )
        self.tau = tau
        self.inclusive = inclusive
        self.ignore_zeros = ignore_zeros

    def threshold(self, voters: int) -> int:
        """The least |sum of signs| that is kept, with that many voters."""
        if self.inclusive:
            return math.ceil(self.tau * voters - GUARD)
        return math.floor(self.tau * voters + GUARD) + 1

    def mask(self, values: Tensor) -> Tensor:
        """(N, c) float32 -> (c,) bool."""
        signs = values.sign()
        votes = signs.sum(0).abs()  # sums of integers up to N: exact in any order
        if not self.ignore_zeros:
            return votes >= self.threshold(len(values))
        # A column without a vote is masked, whatever tau: it has no direction.
        least = [1] + [self.threshold(voters) for voters in range(1, len(values) + 1)]
        return votes >= torch.tensor(least, device=values.device)[signs.count_nonzero(0)]


def check_alpha(alpha: float) -> None:
    """Raise unless some N could be left with an entry after trimming a share `alpha` from each tail."""
    if not 0 <= alpha < 0.5:
        raise ConfigurationError(f"alpha must lie in [0, .5), got {alpha}: it is the share trimmed from each tail")


def check_trim(rule: str, num_clients: int, alpha: float) -> None:
    """Raise unless N - 2b >= 1."""
    b = trim_count(num_clients, alpha)
    if num_clients - 2 * b < 1:
        raise ConfigurationError(
            f"{rule}: alpha = {alpha} trims b = ceil({alpha} * {num_clients}) = {b} from each tail of {num_clients} clients, "
            f"which leaves {num_clients - 2 * b}; lower alpha or raise model.cohort.clients_per_round"
        )
