"""Updates and weights as they are handed over where there is no federation: looked at once, and made float32 tensors."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_lightning.errors import ConfigurationError, first_line

EXPECTED = {
    "updates": "must be a (N, d) tensor of numbers, one client's update a row",
    "weights": "must be N sample counts, one for each row of the updates",
    "malicious": "must be N truth values, one for each row of the updates",
    "root": "must be the server's own update, as long as a row of the updates",
}


def checked_updates(updates: Any) -> Tensor:
    """(N, d) float32 of a tensor, an array, or a list of rows; not detached from a tensor's memory where that is float32.

    Raises:
        ConfigurationError: for what is no matrix of real numbers.

    Example:
        >>> checked_updates([[1, 2], [3, 4]])
        tensor([[1., 2.],
                [3., 4.]])
    """
    matrix = as_tensor("updates", updates)
    if matrix.ndim != 2:
        remedy = "flatten each update, as by updates.flatten(1)" if matrix.ndim > 2 else "of a single update make updates[None]"
        raise ConfigurationError(f"updates {EXPECTED['updates']}, got the shape {tuple(matrix.shape)}; {remedy}")
    return matrix.to(torch.float32)


def checked_weights(weights: Any, updates: Tensor) -> Tensor:
    """(N,) float32 sample counts beside (N, d) updates, on their device; 1 each where `weights` is None.

    Raises:
        ConfigurationError: unless there is one for each row, none is negative, infinite or NaN, and not all are 0.
    """
    if weights is None:
        return torch.ones(len(updates), device=updates.device)
    counts = along_rows("weights", weights, updates).to(torch.float32)
    for i, count in enumerate(counts.tolist()):
        if not 0 <= count < float("inf"):
            raise ConfigurationError(f"weights {EXPECTED['weights']}, at least 0 and finite, but weights[{i}] is {count}")
    if len(counts) and not counts.any():
        raise ConfigurationError(f"weights {EXPECTED['weights']}, but all {len(counts)} are 0, so that no update would count")
    return counts


def checked_malicious(malicious: Any, updates: Tensor) -> Tensor:
    """(N,) bool beside (N, d) updates, on their device; no row where `malicious` is None.

    Raises:
        ConfigurationError: unless there is one for each row.
    """
    if malicious is None:
        return torch.zeros(len(updates), dtype=torch.bool, device=updates.device)
    flags = along_rows("malicious", malicious, updates)
    if flags.dtype != torch.bool:
        raise ConfigurationError(f"malicious {EXPECTED['malicious']}, got {flags.dtype}; a list of numbers is not a mask")
    return flags


def checked_root(root: Any, updates: Tensor) -> Tensor:
    """(d,) float32 beside (N, d) updates, on their device.

    Raises:
        ConfigurationError: unless it has the shape of a row.
    """
    vector = as_tensor("root", root)
    if vector.shape != updates.shape[1:]:
        raise ConfigurationError(
            f"root must have the shape of an update, {tuple(updates.shape[1:])}, got {tuple(vector.shape)}; it is the update "
            "that the server found on clean samples of its own"
        )
    return vector.to(updates.device, torch.float32)


def along_rows(name: str, given: Any, updates: Tensor) -> Tensor:
    vector, n = as_tensor(name, given), len(updates)
    if vector.shape != (n,):
        raise ConfigurationError(f"{name} {EXPECTED[name]}, so {n} here, got the shape {tuple(vector.shape)}")
    return vector.to(updates.device)


def as_tensor(name: str, given: Any) -> Tensor:
    """A detached tensor of real numbers."""
    try:
        if isinstance(given, (list, tuple)) and given and all(isinstance(entry, Tensor) for entry in given):
            given = torch.stack(tuple(given))
        tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError, RuntimeError) as error:
        what = type(given).__name__ + (f" of {type(given[0]).__name__}" if isinstance(given, (list, tuple)) and given else "")
        raise ConfigurationError(f"{name} {EXPECTED[name]}, got a {what} that is none ({first_line(error)})") from error
    if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise ConfigurationError(f"{name} {EXPECTED[name]}, got {kind}; make it a dense tensor of real numbers")
    return tensor.detach()
