"""The one cluster that has most of the clients: what rules share that trust the majority."""

import math

import torch
from torch import Tensor

from fl_lightning.aggregators.density import OUTLIER, density_clusters


def majority_cluster(distances: Tensor, fraction: float = 0.5) -> Tensor:
    """Who belongs to the cluster of more than `fraction` * N members that HDBSCAN finds; everybody if it finds none.

    A point's density is that of its nearest other one (`min_samples` 1). From a half on there cannot be two such clusters.

    Args:
        distances: (N, N) float64 on the CPU, symmetric, 0 on the diagonal.
        fraction: in [.5, 1).

    Returns:
        (N,) bool; all true for N < 3, where no cluster could leave anybody out.

    Example:
        >>> line = torch.tensor([0.0, 0.1, 0.2, 9.0], dtype=torch.float64)
        >>> majority_cluster((line[:, None] - line).abs()).tolist()
        [True, True, True, False]
    """
    n = len(distances)
    if n < 3:
        return torch.ones(n, dtype=torch.bool)
    found = density_clusters(distances, min_cluster_size=math.floor(fraction * n) + 1) != OUTLIER
    return found if found.any() else torch.ones(n, dtype=torch.bool)
