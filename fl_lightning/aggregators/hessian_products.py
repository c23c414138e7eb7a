"""Products with an approximate Hessian, from steps of the model and the changes of its gradient (L-BFGS, compact form).

R. H. Byrd, J. Nocedal, R. B. Schnabel, "Representations of Quasi-Newton Matrices and Their Use in Limited Memory Methods",
Mathematical Programming 63, 1994, https://doi.org/10.1007/BF01582063.
"""

import torch
from torch import Tensor

SINGULAR = 1e-12
"""A matrix, its diagonal scaled to 1, whose smallest eigenvalue is at most this share of the largest has no inverse."""


def hessian_products(products: Tensor, pairs: int) -> Tensor:
    """H v as a combination of steps s, changes y and the vectors v themselves, given nothing but inner products.

    With S and Y the m steps and changes as columns, the last ones being the newest, A = S'Y, L the part of A below its
    diagonal and D the diagonal,

        H v = sigma v - [sigma S, Y] K^-1 [sigma S'v; Y'v],  K = [[sigma S'S, L], [L', -D]],  sigma = y_m's_m / s_m's_m.

    So H s_m = y_m, and H is exact for a quadratic function in the space of steps that are conjugate. Where sigma is not
    positive, K has no inverse, or there is no pair, H is 0.

    Args:
        products: (2 m + q, 2 m + q) float64 on the CPU, inner products of s_1 .. s_m, y_1 .. y_m, v_1 .. v_q.
        pairs: m.

    Returns:
        (q, 2 m + q) float64, a row of factors for each v.

    Example:
        >>> import torch
        >>> vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]], dtype=torch.float64)  # s, y = 2 s, v = 3 s
        >>> hessian_products(vectors @ vectors.T, 1) @ vectors
        tensor([[6., 0.]], dtype=torch.float64)
    """
    m, q = pairs, len(products) - 2 * pairs
    nothing = torch.zeros(q, len(products), dtype=torch.float64)
    steps, across = products[:m, :m], products[:m, m : 2 * m]
    if not m or not steps[-1, -1] > 0 or not across[-1, -1] > 0:
        return nothing
    sigma = across[-1, -1] / steps[-1, -1]
    below = across.tril(-1)
    middle = torch.cat([torch.cat([sigma * steps, below], dim=1), torch.cat([below.T, -torch.diag(across.diagonal())], dim=1)])
    right = torch.cat([sigma * products[:m, 2 * m :], products[m : 2 * m, 2 * m :]])
    size = middle.diagonal().abs().sqrt()
    scale = torch.where(size > 0, 1 / size, 1.0)
    scaled = middle * scale * scale[:, None]
    if not scaled.isfinite().all():
        return nothing
    values, vectors = torch.linalg.eigh(scaled)
    if values.abs().min() <= SINGULAR * values.abs().max():
        return nothing
    solved = scale[:, None] * (vectors @ ((vectors.T @ (scale[:, None] * right)) / values[:, None]))
    factors = torch.cat([-sigma * solved[:m].T, -solved[m:].T, sigma * torch.eye(q, dtype=torch.float64)], dim=1)
    return factors if factors.isfinite().all() else nothing
