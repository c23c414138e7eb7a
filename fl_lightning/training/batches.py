"""The batches that a client trains on in a round: how many, how large, and in which order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

LEAST_EPOCHS = 1e-6


def epoch_parts(n: int, epochs: float, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """The sizes of an epoch's batches and how many of them are taken, for each local epoch; nothing without samples."""
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [batch_size + 1]
    left = epochs if n else 0.0
    while left > LEAST_EPOCHS / 2:  # what rounding leaves of a whole number is no part of an epoch
        part = min(left, 1.0)
        yield sizes, min(len(sizes), max(1, math.ceil(part * n / batch_size - 1e-9)))
        left -= part


def epoch_batches(
    n: int, epochs: float, batch_size: int, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, list[int]]]:
    """The batches of each local epoch, the last of which may be a part of one.

    Args:
        n: samples of the client.
        epochs: passes over them.
        batch_size: B.
        generator: CPU generator that the shuffles are drawn from.
        device: where the indices are wanted.

    Yields:
        Of one epoch: all samples' indices ((n,) int64) in the order in which they are taken, and the sizes of the batches.
    """
    for sizes, count in epoch_parts(n, epochs, batch_size):  # a GPU with steps to do need not be waited for
        yield torch.randperm(n, generator=generator).to(device, non_blocking=True), sizes[:count]


def resident(batch: Any, device: torch.device) -> Any:
    """The batch on `device`; pairs of tensors that are there already, as of `TensorSamples`, are not searched through."""
    if type(batch) is tuple:
        for part in batch:
            if type(part) is not Tensor or part.device != device:
                break
        else:
            return batch
    return move_data_to_device(batch, device)
