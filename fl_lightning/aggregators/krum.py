"""Krum: the one update whose neighbours are nearest.

P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017, https://arxiv.org/abs/1703.02757, Section 4.
"""

from fl_lightning.aggregators.multi_krum import MultiKrum


class Krum(MultiKrum):
    """A = g_i of the lowest score s_i = sum of the N-f-2 smallest ||g_i - g_j||^2, j != i.

    Of clients that tie the first is taken. It discards N-1 clients, which costs accuracy where clients' data differ. Buffers
    are combined by the coordinate-wise median, as distances between running statistics say nothing.

    Bounds: the paper's proof needs N >= 2f + 3; a run with fewer clients is warned, one with N - f < 1 refused. Where
    exclusions leave fewer clients in a round, scores are taken over at least one neighbour.

    Verdict: 1 for the selected client, 0 for the others.

    Args:
        num_malicious: f, at least 0; what the cohort's setting says where left out.

    Example:
        >>> import torch
        >>> Krum(num_malicious=1)(torch.tensor([[0.0], [1.0], [2.0], [3.5], [100.0]]))
        tensor([1.])
    """

    def __init__(self, *, num_malicious: int | None = None) -> None:
        super().__init__(num_malicious=num_malicious, num_selected=1)
