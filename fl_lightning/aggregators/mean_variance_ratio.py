"""A mask of mean-variance ratios times a trimmed mean: an ablation of the invariant aggregator.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Table 4.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.aggregators.survival import judge_by_coordinates
from fl_lightning.aggregators.trimmed_mean import TrimmedMean
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.moments import moments
from fl_lightning.updates.shard import UpdateShard
from fl_lightning.updates.trimming import trimmed

SNR_THRESHOLD = 0.066
"""Passes as much of pure Gaussian noise from 20 clients, 26%, as the sign mask with tau = .2 does."""


class MeanVarianceRatio(TrimmedMean):
    """A_k = m_k * T_k: trimmed mean T_k where the clients' mean is large beside their variance, zero elsewhere.

    m_k = 1 if r_k > threshold, else 0. With mean mu_k = sum_i g_ik / N and unbiased variance s2_k = sum_i (g_ik - mu_k)^2 /
    (N - 1), over all N clients before trimming: r_k = mu_k^2 / s2_k (`snr`), |mu_k| / sqrt(s2_k / N) (`tstat`) or |mu_k| / s2_k
    (`raw`). A column without variance is kept if its mean is not 0, and masked if it is. T_k is the mean of the order
    statistics b+1 .. N-b, b = ceil(alpha * N). Unweighted; moments in float64. Buffers are combined by the trimmed mean
    without the mask.

    Bounds: kept values lie between benign ones as long as f <= b. Unlike votes the ratio depends on magnitudes: one client can
    bring `snr` close to 1/N, and so suppress any coordinate with a threshold of 1/N or more. A run is refused if N < 2, or if
    N - 2b < 1. Should exclusions leave one client, it counts as a column without variance.

    Verdict: none, or with `verdicts` the share of the coordinates that the mask keeps and on which the client's entry lies
    within what trimming keeps.

    Args:
        ratio: which ratio; tstat^2 = N * snr. `raw` has the unit of 1/update, so its threshold depends on model and data.
        threshold: at least 0. The default, for `snr` alone, is 0.066. If q is the quantile of Student's t with N - 1 degrees of
            freedom at 1 - p/2, then `tstat` > q and `snr` > q^2 / N pass a share p of pure noise. To match a sign mask, choose
            the threshold whose kept fraction in an attack-free round is the sign mask's, as the round's diagnostics show it.
        alpha: share trimmed from each tail, in [0, .5).
        verdicts: whether to count on which coordinates each client survives, see Verdict. The aggregate stays the same.

    Differs from the paper: it names the ratio without a formula or threshold, and does not say whether trimming remains.

    Example:
        >>> import torch
        >>> MeanVarianceRatio()(torch.tensor([[1.0, 1.0], [2.0, -1.0], [3.0, 1.0], [4.0, -1.2]]))
        tensor([2.5000, 0.0000])
    """

    def __init__(
        self,
        *,
        ratio: Literal["snr", "tstat", "raw"] = "snr",
        threshold: float | None = None,
        alpha: float = 0.25,
        verdicts: bool = False,
    ) -> None:
        super().__init__(alpha=alpha, verdicts=verdicts)
        if ratio not in ("snr", "tstat", "raw"):
            raise ConfigurationError(f"MeanVarianceRatio.ratio must be 'snr', 'tstat' or 'raw', got {ratio!r}")
        if threshold is None:
            if ratio != "snr":
                raise ConfigurationError(f"MeanVarianceRatio.threshold has a default for 'snr' alone; give one for {ratio!r}")
            threshold = SNR_THRESHOLD
        if not 0 <= threshold < math.inf:
            raise ConfigurationError(f"MeanVarianceRatio.threshold must be at least 0 and finite, got {threshold}")
        self.ratio = ratio
        self.threshold = threshold

    def check(self, num_clients: int) -> None:
        if num_clients < 2:
            raise ConfigurationError(
                f"MeanVarianceRatio: {num_clients} client has no variance, it takes 2; raise model.cohort.clients_per_round"
            )
        super().check(num_clients)

    def mask(self, shard: UpdateShard) -> Tensor:
        return shard.map(self._passes, dtype=torch.bool, row_by_row=True)

    def forward(self, shard: UpdateShard) -> Tensor:
        b = self.trim(shard.num_clients)
        mean = trimmed(shard, b).mean
        shard.kept = self.mask(shard)
        if self.verdicts:
            judge_by_coordinates(shard, b, shard.kept)
        return mean.masked_fill_(~shard.kept, 0.0)

    def _passes(self, values: Tensor) -> Tensor:
        """(N, c) float32 -> (c,) bool, without a division that could be 0 / 0."""
        mean, variance = moments(values)
        if self.ratio == "snr":
            return mean.square() > self.threshold * variance
        if self.ratio == "tstat":
            return mean.abs() * math.sqrt(len(values)) > self.threshold * variance.sqrt()
        return mean.abs() > self.threshold * variance
