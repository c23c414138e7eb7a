"""Updates that try decisions in float32."""

import numpy as np
import torch
from torch import Tensor

HOSTILE = ["random", "near", "copies", "ties", "small", "large", "huge", "denormal", "one huge", "zeros", "far from 0"]


def made_updates(kind: str, n: int, d: int, seed: int) -> Tensor:
    """(n, d) float32 updates of a kind."""
    rng = np.random.default_rng(seed)
    updates = rng.standard_normal((n, d))
    if kind == "near":  # clients that hardly differ
        updates = updates[0] * (1 + 1e-4 * rng.standard_normal((n, 1))) + 1e-6 * updates
    elif kind == "copies":
        updates[: n // 3] = updates[-1]
        updates[n // 3 : n // 2] = -updates[-1]
    elif kind == "ties":
        updates = rng.integers(-1, 2, (n, d)).astype(float)
    elif kind == "small":
        updates *= 1e-20
    elif kind == "large":
        updates *= 1e17 * 10.0 ** rng.integers(-3, 4, (n, 1))  # some products overflow in float32, and some do not
    elif kind == "huge":
        updates = 3e38 * np.tanh(updates)
    elif kind == "denormal":
        updates = rng.integers(-9, 10, (n, d)) * 2.0**-149
    elif kind == "one huge":
        updates[rng.integers(n)] = 3e38
    elif kind == "zeros":
        updates[::2] = 0.0
    elif kind == "far from 0":  # distances are small beside norms: the worst cancellation
        updates = 1000 + updates
    return torch.from_numpy(updates.astype(np.float32))
