"""Multi-Krum on cosine distances.

A baseline of X. Wang et al., "Invariant Aggregator for Defending against Federated Backdoor Attacks", AISTATS 2024,
https://arxiv.org/abs/2210.01834, with the similarity of T. D. Nguyen et al., "FLAME: Taming Backdoors in Federated Learning",
USENIX Security 2022, https://arxiv.org/abs/2101.02281.
"""

from torch import Tensor

from fl_lightning.aggregators.distances import cosine_distances
from fl_lightning.aggregators.multi_krum import MultiKrum
from fl_lightning.updates.shard import UpdateShard


class CosineMultiKrum(MultiKrum):
    """A = (1/m) sum of the m updates of the lowest score; s_i = sum of the N-f-2 smallest 1 - cos(g_i, g_j), j != i.

    A zero update has cosine 0 with every other. Selected updates are averaged as they are, not normalised, and the distance is
    not squared. Unweighted. Buffers are combined by the coordinate-wise median.

    Bounds: as `MultiKrum`'s in N and f, but for directions only. There is no bound on lengths: a malicious update that points
    where the others do is selected, however long it is.

    Verdict: 1 for the selected, 0 for the others.

    Args:
        num_malicious: f, at least 0; what the cohort's setting says where left out.
        num_selected: m, in [1, N]; N - f where left out.

    Differs from the paper: FLAME clusters cosine distances of whole local models; here they are those of updates.

    Example:
        >>> import torch
        >>> updates = torch.tensor([[1.0, 0.0], [2.0, 0.1], [3.0, 0.0], [4.0, -0.1], [-1.0, 9.0]])
        >>> CosineMultiKrum(num_malicious=1)(updates)
        tensor([2.5000, 0.0000])
    """

    def distances(self, shard: UpdateShard) -> Tensor:
        return cosine_distances(shard.gram().cpu())

    def proven(self, shard: UpdateShard, neighbours: int, count: int) -> Tensor | None:
        return None  # that is of squared distances
