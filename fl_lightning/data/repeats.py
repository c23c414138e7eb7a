"""Rows of a table that repeat an earlier one, found without a sorted copy of the table."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MULTIPLIER = -0x61C8864680B583EB
"""An odd number of 64 bits, 2^64 over the golden ratio, as a signed one."""


def without_repeats(features: Tensor, targets: Tensor) -> Tensor:
    """(m,) int64, the first of all rows that are alike in features ((n, f) float32, finite) and class ((n,)), ascending.

    Rows of one 64-bit digest are compared number by number, so that digests decide nothing by themselves.

    Example:
        >>> without_repeats(torch.tensor([[1.0], [2.0], [1.0], [1.0]]), torch.tensor([0, 0, 0, 1]))
        tensor([0, 1, 3])
    """
    digests = row_digests(features, targets)
    ordered = digests.sort().values
    several = ordered[1:][ordered[1:] == ordered[:-1]].unique()
    rows = torch.nonzero(torch.isin(digests, several)).flatten()
    first = torch.ones(len(targets), dtype=torch.bool)
    if len(rows):
        alike = torch.cat([features[rows], targets[rows, None].to(features.dtype)], dim=1).numpy()
        first[rows] = False
        first[rows[torch.from_numpy(np.unique(alike, axis=0, return_index=True)[1])]] = True
    return torch.nonzero(first).flatten()


def row_digests(features: Tensor, targets: Tensor) -> Tensor:
    """(n,) int64, the same for rows that are alike, column by column."""
    found = targets * MULTIPLIER
    for column in features.T:
        bits = (column + 0.0).view(torch.int32)  # minus zero plus zero is zero
        found = (found ^ bits) * MULTIPLIER
        found ^= found >> 29
    return found
