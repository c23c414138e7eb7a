"""The AND-mask on the plain mean: the invariant aggregator without trimming.

G. Parascandolo, A. Neitz, A. Orvieto, L. Gresele, B. Schoelkopf, "Learning explanations that are hard to vary", ICLR 2021,
https://arxiv.org/abs/2009.00329; the ablation in Table 4 of X. Wang et al., "Invariant Aggregator for Defending against
Federated Backdoor Attacks", AISTATS 2024, https://arxiv.org/abs/2210.01834.
"""

import torch
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.survival import judge_by_coordinates
from fl_lightning.aggregators.votes import SignConsistency
from fl_lightning.updates.shard import UpdateShard


class AndMask(Aggregator):
    """A_k = m_k * mean_i g_ik with m_k = 1 if the clients' signs are consistent enough in coordinate k, else 0.

    An attacker cannot outvote the others, but once a coordinate is kept its magnitude counts in full.

    Verdict: none, or with `verdicts` the share of the coordinates that the mask keeps: the same for all clients, as a
    mask judges coordinates.

    Args:
        tau: consistency threshold in [0, 1), or in [0, 1] with `inclusive`; see `SignConsistency`.
        inclusive: keep also coordinates whose consistency equals tau.
        ignore_zeros: judge consistency among non-zero entries only.
        weighted: weight the mean by sample counts; the vote stays one client, one vote.
        rescale: divide each layer by the share of its coordinates that were kept (plus 1e-10), as the original code can.
        verdicts: whether to count on which coordinates each client counts, see Verdict. The aggregate stays the same.

    Example:
        >>> import torch
        >>> AndMask(tau=0.4)(torch.tensor([[1.0, 1.0], [2.0, -1.0], [3.0, 3.0]]))
        tensor([2., 0.])
    """

    def __init__(
        self,
        *,
        tau: float = 0.2,
        inclusive: bool = False,
        ignore_zeros: bool = False,
        weighted: bool = False,
        rescale: bool = False,
        verdicts: bool = False,
    ) -> None:
        super().__init__()
        self.votes = SignConsistency(tau=tau, inclusive=inclusive, ignore_zeros=ignore_zeros)
        self.weighted = weighted
        self.rescale = rescale
        self.verdicts = verdicts

    @property
    def judges(self) -> bool:
        return self.verdicts

    def mask(self, shard: UpdateShard) -> Tensor:
        return shard.map(self.votes.mask, dtype=torch.bool)

    def forward(self, shard: UpdateShard) -> Tensor:
        shard.kept = mask = self.mask(shard)
        if self.verdicts:
            judge_by_coordinates(shard, 0, mask)
        masked = torch.where(mask, self.aggregate_buffers(shard), 0.0)
        return rescale_layers(masked, mask, shard) if self.rescale else masked

    def aggregate_buffers(self, shard: UpdateShard) -> Tensor:
        return shard.mean(shard.shares if self.weighted else None)


def rescale_layers(masked: Tensor, mask: Tensor, shard: UpdateShard) -> Tensor:
    """Make up for the shorter step: divide each layer's columns by the share of the layer that was kept.

    Args:
        masked: (S,) float32, changed in place.
        mask: (S,) bool, the kept coordinates.
        shard: tells which columns belong to which layer.
    """
    sizes = torch.tensor([layer.size for layer in shard.layers], dtype=torch.float64)
    factors = (1 / (1e-10 + shard.count_by_layer(mask).cpu().double() / sizes)).tolist()
    for layer, columns in shard.layer_slices():
        masked[columns] *= factors[layer]
    return masked
