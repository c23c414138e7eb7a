from itertools import permutations

import pytest
import torch

from fl_lightning.aggregators.density import OUTLIER, density_clusters

SEVEN_AND_THREE = torch.ones(10, 10, dtype=torch.float64)
SEVEN_AND_THREE[:7, :7] = SEVEN_AND_THREE[7:, 7:] = 0


def test_two_blocks() -> None:
    assert density_clusters(SEVEN_AND_THREE, min_cluster_size=2).tolist() == 7 * [0] + 3 * [1]
    found = density_clusters(SEVEN_AND_THREE, min_cluster_size=5, min_samples=3)
    assert found.tolist() == 7 * [0] + 3 * [OUTLIER]


def test_whether_all_may_be_one_cluster() -> None:
    alike = torch.zeros(10, 10, dtype=torch.float64)
    assert density_clusters(alike, min_cluster_size=2).tolist() == 10 * [0]
    assert density_clusters(alike, min_cluster_size=2, allow_single_cluster=False).tolist() == 10 * [OUTLIER]


def test_library_defaults_find_nothing_among_ten_ordinary_clients() -> None:
    points = torch.randn(10, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = density_clusters(torch.cdist(points, points), min_cluster_size=5, min_samples=5, allow_single_cluster=False)
    assert found.tolist() == 10 * [OUTLIER]


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_points(n: int) -> None:
    distances = torch.zeros(n, n, dtype=torch.float64)
    before = distances.clone()
    found = density_clusters(distances, min_cluster_size=2, min_samples=5)
    assert (found.shape, found.dtype) == ((n,), torch.int64)
    assert found.tolist() == ([OUTLIER] * n if n < 2 else [0] * n)
    assert torch.equal(distances, before)


def test_the_nearest_two_share_a_cluster_whatever_the_order_of_points_that_tie() -> None:
    distances = 1 - torch.eye(4, dtype=torch.float64)
    distances[2, 3] = distances[3, 2] = 2 / 3
    for order in map(list, permutations(range(4))):  # the others join them in some orders, see density_clusters
        labels = density_clusters(distances[order][:, order], min_cluster_size=2)[torch.tensor(order).argsort()]
        assert labels[2] == labels[3] != OUTLIER
