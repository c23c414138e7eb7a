"""Inner products of many updates in float32, with a proven bound on their errors, and single ones of them in float64.

The products of a thousand updates take half the time in float32, and most of what rules decide by them is clear from those
already. What is not is looked up in float64: all products of some updates, or some pairs.

However a library orders the additions of a sum of products, |computed - exact| <= gamma sum_k |x_k y_k| with
gamma = D u / (1 - D u), u half a unit in the last place and D the most roundings that a term goes through. By Cauchy and
Schwarz that is at most gamma ||x|| ||y||.

N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002, Section 3.1.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl_lightning.updates.blocks import MAX_BLOCKS, block_size
from fl_lightning.updates.shard import UpdateShard

COLUMNS = 1024
"""Coordinates that are multiplied at a time: the more, the larger the error in float32."""

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
        products: (N, N) float64, finite.
        errors: (N, N) float64, finite: |products - exact products| is at most this, and what float64 rounds.
        squares: (N,) float64, ||g_i||^2 as float64 has it.
        rounding: relative to ||g_i|| ||g_j||, what float64 rounds at most in a product.
    """

    products: Tensor
    errors: Tensor
    squares: Tensor
    rounding: float

    def known(self, rows: Tensor, columns: Tensor, products: Tensor) -> None:
        """Take up products that are known in float64, those of g_rows and g_columns, in place."""
        self.products[rows, columns] = products
        self.products[columns, rows] = products
        self.errors[rows, columns] = 0.0
        self.errors[columns, rows] = 0.0


def rough_gram(shard: UpdateShard) -> RoughGram:
    """What is known of `shard.gram()` after a product in float32. The updates are finite and on a CPU."""
    d = shard.num_coordinates
    squares = shard.reduce(lambda values: values.square_().sum(1)).cpu()
    products = shard.reduce(_products, dtype=torch.float32).double()
    pieces = -(-block_size(d) // COLUMNS)
    roundings = COLUMNS + pieces + ADDED_BLOCKS
    norms = squares.sqrt()
    lengths = norms[:, None] * norms
    errors = 1.01 * FLOAT32 * roundings * lengths + TINY * d * (1 + norms[:, None] + norms)
    # By Cauchy and Schwarz 0 is never farther off than this; and it stands for what float32 does not hold.
    most = 1.01 * lengths
    unknown = (lengths >= LARGE) | (errors >= most)
    products.masked_fill_(unknown, 0.0)
    return RoughGram(products, torch.where(unknown, most, errors), squares, 1.01 * FLOAT64 * (block_size(d) + ADDED_BLOCKS))


def _products(values: Tensor) -> Tensor:
    """(N, N) float32 of (N, c), a few columns at a time."""
    total = None
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in values.split(COLUMNS, dim=1):
            array = piece.numpy()
            of_piece = array @ array.T  # NumPy sees that both sides are one matrix and computes half of the product
            total = of_piece if total is None else np.add(total, of_piece, out=total)
    assert total is not None, "a block has columns"
    return torch.from_numpy(total)


def products_of_rows(shard: UpdateShard, rows: Tensor) -> Tensor:
    """(m, N) float64, the inner products of some updates ((m,) int64) with all."""
    return shard.reduce(lambda values: values[rows] @ values.T)


def products_of_pairs(shard: UpdateShard, pairs: Tensor) -> Tensor:
    """(p,) float64, the inner products of the pairs that are true in (N, N) bool, row by row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse matrices of this kind are called a beta feature
        wanted = pairs.double().to_sparse_csr()
    return shard.reduce(lambda values: torch.sparse.sampled_addmm(wanted, values, values.T, beta=0.0).values())
