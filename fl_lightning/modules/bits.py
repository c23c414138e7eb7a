"""Tensors by their bits: NaN is then itself, and -0 is not 0."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size in bytes."""


def as_integers(tensor: Tensor) -> Tensor:
    """(n,) the values one after the other as integers of their size, two of 64 bits for one of 128."""
    return _in_a_row(tensor.detach().resolve_conj().resolve_neg()).view(INTEGERS[min(8, tensor.dtype.itemsize)])


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one type and shape, on one device, and equal to the bit.

    >>> same_bits(torch.tensor(torch.nan), torch.tensor(torch.nan)), same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    (True, False)
    """
    alike = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return alike and torch.equal(as_integers(one), as_integers(other))


def as_bytes(tensor: Tensor) -> bytes:
    """The values as they lie in memory, one after the other.

    >>> as_bytes(torch.tensor([1, 2], dtype=torch.uint8))
    b'\\x01\\x02'
    """
    return _in_a_row(tensor.detach().cpu()).view(torch.uint8).numpy().tobytes()


def named_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, in this order."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_in_a_row(tensor.detach().cpu()).view(torch.uint8).numpy().data)  # as it lies: matrices may be large
    return digest.hexdigest()


def tensors_sha256(named: Mapping[str, Tensor]) -> str:
    """The same in the order of the names: equal for equal tensors, in whatever order a file has them."""
    return named_sha256(sorted(named.items()))


def _in_a_row(tensor: Tensor) -> Tensor:
    """(n,) with stride 1, which a view of another type needs: of a single value PyTorch takes any stride for contiguous."""
    flat = tensor.reshape(-1)
    return flat if flat.stride() == (1,) else flat.clone(memory_format=torch.contiguous_format)
