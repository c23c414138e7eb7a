"""The network that paints a trigger of its own into every picture.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015,
https://arxiv.org/abs/1505.04597, in small; without its connections across it is an auto-encoder.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2
"""How often a picture is halved."""


class TriggerGenerator(nn.Module):
    """G, from pictures (b, C, H, W) of values in [0, 1] to as many of values in (-1, 1), by 3 x 3 convolutions.

    Each convolution is normalised over all of a picture's maps (GroupNorm of one group), so that what one picture gets does not
    depend on the others in its batch.

    Args:
        channels: C.
        width: maps at full size; twice as many wherever the picture is halved.
        across: whether maps of the way down are seen on the way up, as in a U-Net.

    Example:
        >>> TriggerGenerator(3, width=4)(torch.zeros(2, 3, 9, 5)).shape
        torch.Size([2, 3, 9, 5])
    """

    def __init__(self, channels: int, *, width: int = 16, across: bool = True) -> None:
        super().__init__()
        maps = [width * 2**level for level in range(LEVELS + 1)]
        self.channels, self.across = channels, across
        self.down = nn.ModuleList(layer(a, b) for a, b in pairwise([channels, *maps]))
        self.up = nn.ModuleList(layer(b + a * across, a) for a, b in reversed([*pairwise(maps)]))
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x, seen = pictures, list[Tensor]()
        for level, part in enumerate(self.down):
            x = part(F.avg_pool2d(x, 2, ceil_mode=True) if level else x)
            seen.append(x)
        for part, before in zip(self.up, reversed(seen[:-1]), strict=True):
            x = F.interpolate(x, size=before.shape[2:])
            x = part(torch.cat([x, before], dim=1) if self.across else x)
        return torch.tanh(self.out(x))


def layer(before: int, after: int) -> nn.Module:
    """Maps (b, before, H, W) to (b, after, H, W)."""
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(1, after), nn.ReLU())
