"""Mean and variance across clients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fl_lightning.updates.division import divide_


def moments(values: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each column, in float64, whose range holds the squares of all float32 numbers.

    Rows are added one after the other, each in an operation of its own, so that bits do not depend on the width. Clients that
    all agree have a variance of exactly 0, and so has a single one.

    Args:
        values: (N, c), or its N rows.
    """
    n = len(values)
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for row in values:
        total += row
    mean = divide_(total, n)
    spread = torch.zeros_like(total)
    for row in values:
        spread += (row - mean).square()
    return mean, divide_(spread, max(1, n - 1))
