"""Inner products of many updates in float32, with a proven bound on their errors, and single ones of them in float64.

The products of a thousand updates take half the time in float32, and most of what rules decide by them is clear from those
already. What is not is looked up in float64: all products of some updates, or some pairs.

However a library orders the additions of a sum of products, |computed - exact| <= gamma sum_k |x_k y_k| with
gamma = D u / (1 - D u), u half a unit in the last place and D the most roundings that a term goes through. By Cauchy and
Schwarz that is at most gamma ||x|| ||y||.

N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002, Section 3.1.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl_lightning.updates.blocks import BLOCK_UNIT, MAX_BLOCKS, block_size
from fl_lightning.updates.shard import UpdateShard

IN_A_ROW = 128
"""Coordinates whose squares are added up in float32; those sums in float64."""

COLUMNS, FEW_COLUMNS = 2 * BLOCK_UNIT, 128
"""Coordinates that are multiplied at a time, and where products are to be known better."""

ROWS = 200
"""Rows that are then multiplied at a time."""

ADDED_AT_ONCE = 8 * BLOCK_UNIT
"""Coordinates whose products are added up in place, if blocks are no larger."""

SPARSE = 1 / 4
"""Share of all pairs of some rows from which on it is faster to take all of them."""

ADDED_BLOCKS = MAX_BLOCKS.bit_length() + 2
"""Most roundings that a block's sum goes through on its way to the total: pairs, pairs of pairs and so on, and one to spare."""

FLOAT32, FLOAT64 = 2.0**-24, 2.0**-53
"""Half a unit in the last place of 1."""

TINY = 2.0**-125
"""What an operation in float32 loses at most where results are too small for it, also if those are taken as 0: twice that."""

LARGE = 2.0**126
"""Sums of products below this do not overflow in float32."""


class RoughGram(NamedTuple):
    """Inner products of N updates, on the CPU.

    Attributes:
        products: (N, N) float64, finite; that of an update with itself is not among them.
        errors: (N, N) float64, finite: |products - exact products| is at most this, and what float64 rounds.
        squares: (N,) float64, ||g_i||^2.
        squares_errors: (N,) float64, likewise.
        rounding: relative to ||g_i|| ||g_j||, what float64 rounds at most in a product.
    """

    products: Tensor
    errors: Tensor
    squares: Tensor
    squares_errors: Tensor
    rounding: float

    def correct(self, pairs: Tensor, products: Tensor, squares: Tensor) -> None:
        """Take up what is known in float64, in place.

        Args:
            pairs: (N, N) bool.
            products: (p,), of these pairs, row by row.
            squares: (N,).
        """
        rows, columns = pairs.nonzero(as_tuple=True)
        self.products[rows, columns] = self.products[columns, rows] = products
        self.errors[rows, columns] = self.errors[columns, rows] = 0.0
        self.squares.copy_(squares)
        self.squares_errors.zero_()


def rough_gram(shard: UpdateShard, *, fine: bool) -> RoughGram:
    """What is known of `shard.gram()` after a product in float32.

    Args:
        shard: finite updates on a CPU.
        fine: whether few coordinates are multiplied at a time: errors are a tenth as large, and it may take a tenth longer.
    """
    d, size = shard.num_coordinates, block_size(shard.num_coordinates)
    height = max(1, ADDED_AT_ONCE // size).bit_length() - 1  # 2 to its power blocks at a time
    columns, multiply = (FEW_COLUMNS, _fine_products) if fine else (COLUMNS, _products)
    squares = shard.reduce(_squares, dtype=torch.float32)
    squares_errors = 1.01 * FLOAT32 * (IN_A_ROW + 1) * squares + TINY * d
    if not squares.isfinite().all():
        squares = exact_squares(shard)
        squares_errors = torch.zeros_like(squares)
    products = shard.reduce(lambda values: multiply(values, columns), dtype=torch.float32, height=height).double().triu_(1)
    products += products.T.clone()
    norms = (squares + squares_errors).sqrt()
    lengths = norms[:, None] * norms
    roundings = columns + -(-(size << height) // columns) + ADDED_BLOCKS
    errors = 1.01 * FLOAT32 * roundings * lengths + TINY * d * (1 + norms[:, None] + norms)
    # By Cauchy and Schwarz 0 is never farther off than this; and it stands for what float32 does not hold.
    most = 1.01 * lengths
    unknown = (lengths >= LARGE) | (errors >= most)
    products.masked_fill_(unknown, 0.0)
    rounding = 1.01 * FLOAT64 * (size + ADDED_BLOCKS)
    return RoughGram(products, torch.where(unknown, most, errors), squares, squares_errors, rounding)


def exact_squares(shard: UpdateShard) -> Tensor:
    """(N,) float64, ||g_i||^2."""
    return shard.reduce(lambda values: torch.from_numpy(np.vecdot(values.numpy(), values.numpy())))


def exact_products(shard: UpdateShard, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """In float64, (p,) the inner products of the pairs that are true in (N, N) bool, row by row; (N,) the squares."""
    rows = pairs.any(dim=1).nonzero().flatten()
    dense = bool(pairs[rows].float().mean() > SPARSE) if len(rows) else False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse matrices of this kind are called a beta feature
        wanted = pairs.double().to_sparse_csr()

    def products(values: Tensor) -> Tensor:
        array = values.numpy()
        if dense:
            found = torch.from_numpy(array[rows.numpy()] @ array.T).flatten()
        else:
            found = torch.sparse.sampled_addmm(wanted, values, values.T, beta=0.0).values()
        return torch.cat([found, torch.from_numpy(np.vecdot(array, array))])

    found, squares = shard.reduce(products).tensor_split([-len(pairs)])
    return (found.view(len(rows), -1)[pairs[rows]] if dense else found), squares


def _squares(values: Tensor) -> Tensor:
    """(N,) float64 of (N, c) float32."""
    array, whole = values.numpy(), values.shape[1] // IN_A_ROW * IN_A_ROW
    rows = array[:, :whole].reshape(len(array), -1, IN_A_ROW)
    with np.errstate(over="ignore"):
        squares = np.vecdot(rows, rows).sum(axis=1, dtype=np.float64) + np.vecdot(array[:, whole:], array[:, whole:])
    return torch.from_numpy(squares)


def _products(values: Tensor, columns: int) -> Tensor:
    """(N, N) float32 of (N, c), some columns at a time."""
    total = None
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in values.split(columns, dim=1):
            array = piece.numpy()
            of_piece = array @ array.T  # NumPy sees that both sides are one matrix and computes half of the product
            total = of_piece if total is None else np.add(total, of_piece, out=total)
    assert total is not None, "a block has columns"
    return torch.from_numpy(total)


def _fine_products(values: Tensor, columns: int) -> Tensor:
    """The same above the diagonal: half of the products is taken, and added in place, so that columns may be few."""
    total = values.new_zeros(len(values), len(values))
    with whole_float32():
        for piece in values.split(columns, dim=1):
            for first in range(0, len(values), ROWS):
                part = total[first : first + ROWS, first:]
                torch.addmm(part, piece[first : first + ROWS], piece[first:].T, out=part)
    return total


@contextmanager
def whole_float32() -> Iterator[None]:
    """Products on a CPU are float32 in here, also if a user has asked for faster ones: some CPUs round factors then."""
    products = torch.backends.mkldnn.matmul  # pyrefly: ignore[missing-attribute]
    asked = products.fp32_precision
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision = asked
