import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_lightning.aggregators.hessian_products import hessian_products

HESSIAN = np.diag([2.0, 5.0, 1.0])


def applied(steps: np.ndarray, changes: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """H v for rows v."""
    rows = torch.from_numpy(np.concatenate([steps, changes, vectors]))
    return (hessian_products(rows @ rows.T, len(steps)) @ rows).numpy()


def bfgs(steps: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """The matrix itself, by one update for each pair."""
    matrix = np.eye(steps.shape[1]) * (changes[-1] @ steps[-1]) / (steps[-1] @ steps[-1])
    for s, y in zip(steps, changes, strict=True):
        moved = matrix @ s
        matrix = matrix - np.outer(moved, moved) / (s @ moved) + np.outer(y, y) / (y @ s)
    return matrix


def test_by_hand() -> None:
    steps = np.eye(3)[:2]
    vectors = np.array([[1.0, 1, 0], [0, 0, 1], [1, 2, 3]])
    np.testing.assert_allclose(applied(steps, steps @ HESSIAN, vectors), [[2, 5, 0], [0, 0, 5], [2, 10, 15]], atol=1e-12)
    steps = np.array([[1.0, 1, 0], [0, 1, 1]])
    found = applied(steps, steps @ HESSIAN, steps)
    np.testing.assert_allclose(found, [[2.044248, 6.025074, -1.025074], [0, 5, 1]], atol=1e-6)
    wrong = applied(-steps, steps @ HESSIAN, steps)
    assert not wrong.any()  # the sign of the steps turned round: no positive curvature


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 1000), st.floats(-6, 6))
def test_is_the_matrix_of_bfgs(pairs: int, seed: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((8, 8))
    hessian = 10.0**power * (root @ root.T + np.eye(8))
    steps, vectors = rng.standard_normal((pairs, 8)), rng.standard_normal((3, 8))
    changes = steps @ hessian
    matrix = bfgs(steps, changes)
    found = applied(steps, changes, vectors)
    condition = np.linalg.cond(matrix) * np.linalg.cond(steps) ** 2
    np.testing.assert_allclose(found, vectors @ matrix, atol=1e-13 * condition * np.abs(matrix).max())
    np.testing.assert_allclose(applied(steps, changes, steps[-1:]), changes[-1:], atol=1e-13 * condition * np.abs(matrix).max())


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3))),
        (np.ones((1, 3)), np.zeros((1, 3))),
        (np.zeros((1, 3)), np.ones((1, 3))),
        (np.array([[0.0, 0, 0], [1, 1, 1]]), np.ones((2, 3))),  # singular
        (np.ones((1, 3)), -np.ones((1, 3))),
        (1e200 * np.ones((1, 3)), 1e200 * np.ones((1, 3))),  # products are not finite
    ],
)
def test_where_there_is_no_hessian_it_is_zero(steps: np.ndarray, changes: np.ndarray) -> None:
    assert not applied(steps, changes, np.array([[1.0, 2.0, 3.0]])).any()
