"""Means of finite numbers are finite, also where float32 does not hold their sum.

An attacker may report 3e38 at every coordinate. The median of such numbers is 3e38, but their sum in float32 is an infinity. So
what is not finite is computed once more, in float64. All other bits are as they were: in a round without such numbers nothing
is done but to look at one sum.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MOST = torch.finfo(torch.float32).max
"""Rules cut what they remember to this, so that no attacker, however loud, leaves an infinity there."""

ROUNDING = 2.0**-23
"""Shares that are rounded to float32 may add up to more than 1 by this much, and so lift a mean above the largest number."""

AT_ONCE = 2**16
"""Columns that are taken to float64 at a time."""


def all_finite(*tensors: Tensor) -> bool:
    """Whether no entry is NaN or infinite. Both survive in a sum, so that one pass, and one look, is enough where none is."""
    sums = [tensor.sum() for tensor in tensors]
    if sums and math.isfinite(
        sums[0].item() if len(sums) == 1 else torch.stack([total.float() for total in sums]).sum().item()
    ):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def mend(means: Tensor, pieces: Iterable[tuple[slice, Tensor]], function: Callable[[Tensor], Tensor]) -> Tensor:
    """Means, where they are not finite computed again in float64; in place.

    Args:
        means: (S,) float32 that `function`, or what does the same faster, has made of each column; other types are left alone.
        pieces: the columns, (N, c) finite float32 each, with their places among the S.
        function: (N, c) float64 -> (c,), each output a function of its own column.

    Returns:
        `means`. What is beyond float32 in earnest, and not by the rounding of shares, is an infinity still.

    Example:
        >>> values = torch.full((4, 1), 3e38)
        >>> mend(values.mean(0), [(slice(0, 1), values)], lambda columns: columns.mean(0))
        tensor([3.0000e+38])
    """
    if means.dtype != torch.float32 or all_finite(means):
        return means
    for columns, piece in pieces:
        part = means[columns]
        for lost in (~part.isfinite()).nonzero().flatten().split(AT_ONCE):
            exact = function(piece.index_select(1, lost).double())
            within = exact.abs() <= MOST * (1 + ROUNDING)
            part[lost] = torch.where(within, exact.clamp(-MOST, MOST), exact).float()
    return means
