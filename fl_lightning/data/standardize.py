"""Bytes of pictures as models take them: scaled to [0, 1], then less a mean and divided by a deviation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Standardize:
    """Bytes to model input: scaled to [0, 1], then less a mean and divided by a deviation. Two with equal numbers are equal.

    Args:
        mean: of pixels in [0, 1]; one number, or one for each channel.
        std: their standard deviation, as many numbers; with mean 1 and deviation -1 black becomes white.

    Example:
        >>> Standardize(0.5, 0.25)(torch.tensor([0, 255], dtype=torch.uint8)).round()
        tensor([-2.,  2.])
        >>> Standardize((0.5, 0.0), (0.25, 1.0))(torch.full((1, 2, 1, 1), 255, dtype=torch.uint8)).flatten().round()
        tensor([2., 1.])
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __call__(self, pictures: Tensor) -> Tensor:
        """(b, ...) uint8 to the same in float32; (b, C, h, w) where there is a number for each channel."""
        scale, shift = _numbers(self, pictures.device)
        return torch.addcmul(shift, pictures.float(), scale)


@cache
def _numbers(of: Standardize, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand, () or (C, 1, 1) float32 each, made once per device, as every copy stalls a GPU."""
    with torch.inference_mode(False):  # evaluation may ask first, but training must be able to use them in backward
        mean, std = torch.tensor([of.mean, of.std], dtype=torch.float64)
        if mean.ndim:
            mean, std = mean[:, None, None], std[:, None, None]
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)
