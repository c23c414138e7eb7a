import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning import ConfigurationError
from fl_lightning.analysis.separability import gram, hull, separability

TRIANGLE = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])


def seen(points, point):
    return hull(gram(points - torch.as_tensor(point)))


@pytest.mark.parametrize("point", [[0.0, 0.0], [4.0, 0.0], [1.0, 1.0], [2.0, 1.5]])
def test_vertex_edge_and_interior_have_no_distance(point):
    assert seen(TRIANGLE, point).distance < 1e-6 * 5


@pytest.mark.parametrize(
    ("point", "distance", "weights"),
    [
        ([2.0, -2.0], 2.0, [0.5, 0.5, 0.0]),  # an edge is nearest
        ([7.0, -4.0], 5.0, [0.0, 1.0, 0.0]),  # a corner
        ([2.6, 2.3], 1.0, [0.0, 0.5, 0.5]),  # the hypotenuse, whose normal is (.6, .8)
    ],
)
def test_outside_a_triangle(point, distance, weights):
    found = seen(TRIANGLE, point)
    assert found.distance == pytest.approx(distance, abs=1e-6)
    np.testing.assert_allclose(found.weights, weights, atol=1e-6)
    assert found.diameter == pytest.approx(5.0)


@given(st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([1e-4, 1.0, 1e4]))
def test_convex_combinations_lie_in_the_hull(seed, n, scale):
    draws = np.random.default_rng(seed)
    points = scale * draws.normal(size=(n, 8))
    inside = draws.dirichlet(np.ones(n)) @ points
    found = hull((points - inside) @ (points - inside).T)
    assert found.distance <= 1e-6 * found.diameter
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1)


@given(st.integers(0, 10_000), st.integers(2, 5))
def test_the_nearest_point_satisfies_its_condition(seed, n):
    """<x, v_i> >= <x, x> for all i characterises the shortest vector x of the hull of v_1, ..., v_n."""
    points = np.random.default_rng(seed).normal(size=(n, 3)) + 1.0
    found = hull(points @ points.T)
    nearest = found.weights @ points
    assert (points @ nearest >= nearest @ nearest - 1e-7).all()
    assert found.distance == pytest.approx(np.linalg.norm(nearest), abs=1e-7)


def test_controls_leave_one_out():
    corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    near, far = separability(corner, torch.tensor([1.0, 1.2])), separability(corner, torch.tensor([9.0, 0.5]))
    # A corner of the square is sqrt(2)/2 away from the diagonal that the others span.
    assert [control.ratio for control in near.controls] == pytest.approx([0.5] * 4, abs=1e-7)
    assert near.malicious.ratio == pytest.approx(0.2 / 2**0.5)
    assert not near.informative
    assert far.malicious.distance == pytest.approx(8.0)
    assert far.informative


def test_points_that_are_one():
    found = seen(torch.ones(3, 4), torch.zeros(4))
    assert (found.distance, found.diameter, found.ratio) == (pytest.approx(2.0), 0.0, float("inf"))
    assert seen(torch.ones(3, 4), torch.ones(4)).ratio == 0.0


def test_inner_products_are_added_in_double_precision():
    points = torch.full((2, 600_000), 1e-3)
    points[0, 0] = 1e4
    expected = points.double().numpy() @ points.double().numpy().T
    np.testing.assert_allclose(gram(points), expected, rtol=1e-13)


def test_too_few_models():
    with pytest.raises(ConfigurationError, match="at least 3 benign models, got 2"):
        separability(torch.zeros(2, 3), torch.zeros(3))
