"""Passes over samples for rules that train by themselves: batches of shuffled positions, and what stands there."""

from __future__ import annotations

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.data.base import Samples


def shuffled_batches(n: int, batch_size: int, generator: torch.Generator | None = None) -> list[Tensor]:
    """Positions (b,) int64 of one pass over n samples; a last batch of one joins the one before it.

    Args:
        n: samples.
        batch_size: at least 1.
        generator: of the CPU; torch's global one where left out.

    Example:
        >>> [len(batch) for batch in shuffled_batches(9, 4)]
        [4, 5]
    """
    batches = list(torch.randperm(n, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]  # BatchNorm cannot train on a single sample
    return batches


def read_batch(
    samples: Samples, indices: Tensor, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Model inputs and classes of samples on `device`, augmented where there is a generator."""
    inputs, targets = move_data_to_device(samples.batch(indices, generator), device)
    return inputs, targets
