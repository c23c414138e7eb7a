"""The invariant aggregator: an AND-mask of sign consistency times a trimmed mean.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Definitions 7 and 9, Algorithm 1.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators.and_mask import rescale_layers
from fl_lightning.aggregators.survival import judge_by_coordinates
from fl_lightning.aggregators.trimmed_mean import TrimmedMean
from fl_lightning.aggregators.votes import SignConsistency
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.trimming import trimmed


class Invariant(TrimmedMean):
    """A_k = m_k * T_k: trimmed mean T_k where the clients' signs are consistent, zero elsewhere.

    m_k = 1 if |sum_i sign(g_ik)| / N > tau, else 0, over all N clients before trimming; T_k is the mean of the order
    statistics b+1 .. N-b, b = ceil(alpha * N). Unweighted. Buffers are combined by the trimmed mean without the mask.

    Bounds: with f <= b malicious clients a kept value lies between benign ones, so only votes can do harm, not magnitudes.
    f clients that vote against everything freeze every coordinate if (N - 2f)/N <= tau (< tau with `inclusive`): with N = 20,
    tau = .6 four clients are enough. Voting against everything is a denial of service, which the kept fraction in the round's
    diagnostics shows; voting against what would close a back door keeps it open (the attack `MaskedReplacement`).

    Verdict: none, or with `verdicts` the share of the coordinates that the mask keeps and on which the client's entry lies
    within what trimming keeps.

    Args:
        tau: consistency threshold in [0, 1), or in [0, 1] with `inclusive`; the paper uses .2 for CIFAR-10, .6 for Twitter and
            phishing.
        alpha: share trimmed from each tail, in [0, .5); .25 in the paper.
        inclusive: keep also coordinates whose consistency equals tau.
        ignore_zeros: judge consistency among non-zero entries only.
        rescale: divide each layer by the share of its coordinates that were kept.
        verdicts: whether to count on which coordinates each client survives, see Verdict. The aggregate stays the same.

    Differs from the paper: the printed definitions compare the sum of signs with tau without dividing by N, and Definition 7
    multiplies the mask by 1/N; here the consistency is normalised to [0, 1] and the mask is 0 or 1 (see `SignConsistency`).

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 0.3], [2.0, -0.2], [3.0, 0.1], [-90.0, -1.2]])
        >>> Invariant(tau=0.2, alpha=0.25)(updates)
        tensor([1.5000, 0.0000])
    """

    def __init__(
        self,
        *,
        tau: float = 0.2,
        alpha: float = 0.25,
        inclusive: bool = False,
        ignore_zeros: bool = False,
        rescale: bool = False,
        verdicts: bool = False,
    ) -> None:
        super().__init__(alpha=alpha, verdicts=verdicts)
        self.votes = SignConsistency(tau=tau, inclusive=inclusive, ignore_zeros=ignore_zeros)
        self.rescale = rescale

    def mask(self, shard: UpdateShard) -> Tensor:
        return shard.map(self.votes.mask, dtype=torch.bool)

    def forward(self, shard: UpdateShard) -> Tensor:
        b = self.trim(shard.num_clients)
        if self.votes.ignore_zeros:  # each coordinate has a threshold of its own
            kept = self.mask(shard)
            masked = torch.where(kept, trimmed(shard, b).mean, 0.0)
        else:
            masked, kept = trimmed(shard, b, self.votes.threshold(shard.num_clients))
        shard.kept = kept
        if self.verdicts:
            judge_by_coordinates(shard, b, kept)
        return rescale_layers(masked, kept, shard) if self.rescale else masked
