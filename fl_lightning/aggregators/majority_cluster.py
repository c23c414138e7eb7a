"""The one cluster that has most of the clients, by HDBSCAN: what rules share that trust the majority.

R. J. G. B. Campello, D. Moulavi, J. Sander, "Density-Based Clustering Based on Hierarchical Density Estimates", PAKDD 2013,
https://doi.org/10.1007/978-3-642-37456-2_14.
"""

import math

import torch
from torch import Tensor


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
    from sklearn.cluster import HDBSCAN  # slow to import  # pyrefly: ignore[missing-module-attribute]

    n = len(distances)
    if n < 3:
        return torch.ones(n, dtype=torch.bool)
    clustering = HDBSCAN(
        min_cluster_size=math.floor(fraction * n) + 1,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    )
    found = torch.from_numpy(clustering.fit_predict(distances.numpy())) >= 0
    return found if found.any() else torch.ones(n, dtype=torch.bool)
