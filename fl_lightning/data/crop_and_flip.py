"""The augmentation of small pictures: a random crop of the padded picture, and a random mirroring."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING = 4


@dataclass(frozen=True)
class CropAndFlip:
    """Shift every image by up to 4 pixels in each direction, filling with black, and mirror it with probability 1/2.

    This is a random crop from the image padded by 4 pixels, then a random horizontal flip. Raw images are padded, so
    the border is black, not the mean colour. Any two of these are equal, so that copies of data sets can be joined.
    """

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        """Offsets from the top and from the left, and whether to mirror, of b images: (3, b) int64."""
        offsets = torch.randint(0, 2 * PADDING + 1, (2, b), generator=generator)
        return torch.cat([offsets, torch.randint(0, 2, (1, b), generator=generator)])

    def apply(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Images (b, c, h, w) of any dtype on any device to new ones of the same kind."""
        b, _, h, w = inputs.shape
        top, left, flip = drawn.to(inputs.device, non_blocking=True)
        padded = F.pad(inputs, (PADDING,) * 4)
        windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (b, c, 9, 9, h, w), a view
        cropped = windows[torch.arange(b, device=inputs.device), :, top, left]
        return torch.where(flip.bool().view(b, 1, 1, 1), cropped.flip(3), cropped)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw for images from a CPU generator, and apply."""
        return self.apply(inputs, self.draw(len(inputs), generator))


crop_and_flip = CropAndFlip()
