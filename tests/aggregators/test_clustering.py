"""k-means and the gap statistic against all partitions of few points, and against planted clusters."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_lightning.aggregators.clustering import k_means, number_of_clusters


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dispersion(points: np.ndarray, labels: np.ndarray) -> float:
    return sum(float(((points[labels == c] - points[labels == c].mean(0)) ** 2).sum()) for c in set(labels.tolist()))


def least_dispersion(points: np.ndarray, k: int) -> float:
    """Over all ways to give each point one of k labels."""
    return min(dispersion(points, np.array(labels)) for labels in product(range(k), repeat=len(points)))


def planted(k: int, seed: int, size: int = 8) -> Tensor:
    """k groups of points, far apart beside their width."""
    angles = 2 * math.pi * torch.arange(k) / k
    centres = 10 * torch.stack([angles.cos(), angles.sin()], dim=1).double()
    return centres.repeat_interleave(size, 0) + 0.4 * torch.randn(k * size, 2, generator=drawn(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_dispersion_is_the_least_of_all_partitions(k: int) -> None:
    sets = torch.randn(6, 7, 2, generator=drawn(k), dtype=torch.float64)
    found = k_means(sets, k, drawn())
    for points, labels, value in zip(sets.numpy(), found.labels.numpy(), found.dispersion.tolist(), strict=True):
        assert dispersion(points, labels) == pytest.approx(value, rel=1e-12)
        assert value == pytest.approx(least_dispersion(points, k), rel=1e-12)


def test_few_different_points() -> None:
    points = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]).double()
    for k in (2, 3, 4):
        found = k_means(points, k, drawn())
        assert found.dispersion.tolist() == [0]
        assert len(set(found.labels[0].tolist())) == 2
    assert k_means(torch.ones(2, 1, 2).double(), 1, drawn()).labels.tolist() == [[0], [0]]
    assert k_means(torch.ones(1, 5, 2).double(), 3, drawn()).dispersion.tolist() == [0]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_planted_clusters_are_found(k: int) -> None:
    for seed in range(3):
        points = planted(k, seed)
        labels = k_means(points[None], k, drawn(seed)).labels[0]
        assert [len(set(group)) for group in labels.reshape(k, 8).tolist()] == [1] * k
        assert len(set(labels.tolist())) == k
        if k <= 2:
            assert number_of_clusters(points, 10, 5, drawn(seed)) == k


def dispersion_of_cuts(values: list[float], k: int) -> float:
    """On a line clusters are a choice of cuts."""
    ordered, best = np.sort(np.array(values)), math.inf
    for cuts in combinations(range(1, len(values)), k - 1):
        best = min(best, sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(ordered, cuts)))
    return best


def test_gap_statistic_is_its_definition() -> None:
    """Dispersions are those of all cuts, so found without k-means."""
    found = []
    for seed in range(12):
        groups = torch.tensor([0.0, 6.0, 30.0])[torch.arange(9) * (1 + seed % 3) // 9, None].double()
        points = groups + 0.3 * torch.randn(9, 1, generator=drawn(seed), dtype=torch.float64)
        low, high = points.amin(0), points.amax(0)
        references = low + torch.rand(5, 9, 1, generator=drawn(seed), dtype=torch.float64) * (high - low)
        gaps, errors = [], []
        for k in range(1, 7):
            logs = [math.log(dispersion_of_cuts(one.flatten().tolist(), k)) for one in references]
            gaps.append(sum(logs) / 5 - math.log(dispersion_of_cuts(points.flatten().tolist(), k)))
            errors.append(math.sqrt(1 + 1 / 5) * float(np.std(logs)))
        found.append(next((k for k in range(1, 6) if gaps[k - 1] >= gaps[k] - errors[k]), 6))
        assert number_of_clusters(points, 6, 5, drawn(seed)) == found[-1]
        assert number_of_clusters(points, 2, 5, drawn(seed)) == min(2, found[-1])
    assert {1, 2, 3} <= set(found)


def test_no_dispersion() -> None:
    assert number_of_clusters(torch.ones(6, 2).double(), 10, 5, drawn()) == 1
    assert number_of_clusters(torch.ones(1, 2).double(), 10, 5, drawn()) == 1
    assert number_of_clusters(torch.tensor([[0.0], [0.0], [0.0], [7.0], [7.0], [7.0]]).double(), 10, 5, drawn()) == 2
    for scale in (1e-40, 1e38):
        assert number_of_clusters(scale * planted(2, 0), 10, 5, drawn()) == 2
