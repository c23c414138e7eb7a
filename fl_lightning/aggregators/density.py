"""Clusters of few clients by density, among as many outliers as there are.

R. J. G. B. Campello, D. Moulavi, J. Sander, "Density-Based Clustering Based on Hierarchical Density Estimates", PAKDD 2013,
https://doi.org/10.1007/978-3-642-37456-2_14 (HDBSCAN), by scikit-learn.
"""

import torch
from torch import Tensor

OUTLIER = -1
"""The label of who belongs to no cluster."""


def density_clusters(
    distances: Tensor, *, min_cluster_size: int, min_samples: int = 1, allow_single_cluster: bool = True
) -> Tensor:
    """The clusters that HDBSCAN finds.

    Args:
        distances: (N, N) float64 on CPU, finite, symmetric, 0 on the diagonal.
        min_cluster_size: fewest members of a cluster, at least 2.
        min_samples: k, at least 1: points lie no nearer to each other than to their (k - 1)-th neighbours. With 1 that changes
            nothing. Of fewer points than k all are counted.
        allow_single_cluster: whether all may be one cluster, from which outliers fall off; else there are two or none.

    Returns:
        (N,) int64: 0, 1, ... or `OUTLIER`.

    Example:
        >>> line = torch.tensor([0.0, 1.0, 2.0, 50.0, 51.0, 90.0], dtype=torch.float64)
        >>> density_clusters((line[:, None] - line).abs(), min_cluster_size=2)
        tensor([0, 0, 0, 1, 1, 1])
    """
    from sklearn.cluster import HDBSCAN  # slow to import  # pyrefly: ignore[missing-module-attribute]

    n = len(distances)
    if n < 2:
        return torch.full((n,), OUTLIER)
    clustering = HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min(min_samples, n),
        metric="precomputed",
        allow_single_cluster=allow_single_cluster,
        copy=True,
    )
    return torch.from_numpy(clustering.fit_predict(distances.numpy())).long()
