"""What tests of the adaptive attack share."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.aggregators import Invariant

LEVELS: list[Any] = ["previous_round", "oracle", "shadow", "colluders"]

TAU = 0.4
RULE = Invariant(tau=TAU)


def votes_by_hand(rows: Tensor) -> Tensor:
    """Columns whose sum of signs exceeds tau times the number of rows."""
    signs = np.sign(rows.numpy()).sum(0)
    return torch.from_numpy(np.abs(signs) > TAU * len(rows))


def by_hand(own: Tensor, passing: Tensor, elsewhere: Tensor | None = None, max_scale: float = 10.0) -> Tensor:
    """One malicious row, coordinate by coordinate in float64; where nothing passes the others stay or become `elsewhere`."""
    norm = math.sqrt(math.fsum(g * g for g in own.tolist()))
    inside = math.sqrt(math.fsum(g * g for g, passes in zip(own.tolist(), passing.tolist(), strict=True) if passes))
    scale = min(max_scale, norm / max(inside, 1e-12))
    result = own.double() if elsewhere is None else elsewhere.double()
    for k in range(len(own)):
        if passing[k]:
            result[k] = scale * float(own[k])
    return result.float()
