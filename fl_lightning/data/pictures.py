"""Pictures as tensors: what a PIL image becomes, and which samples attacks on pictures can work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fl_lightning.errors import ConfigurationError

MODES = {"1": "L", "L": "L", "P": "RGB", "PA": "RGBA", "LA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
"""PIL's modes of 8 bits and less, and as what a picture of each is read."""

CHANNELS = (1, 3, 4)
"""How many a picture has: grey, colour, colour with transparency."""


def to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as (C, H, W) float32 in [0, 1], C being 1 for grey, 3 for colour and 4 with transparency.

    Raises:
        ConfigurationError: for modes of more than 8 bits per channel or other colours, such as I;16 and CMYK.

    Example:
        >>> to_tensor(Image.new("RGB", (4, 2), (255, 0, 51)))[:, 0, 0]
        tensor([1.0000, 0.0000, 0.2000])
    """
    if image.mode not in MODES:
        raise ConfigurationError(
            f"a picture has PIL's mode {image.mode}, for which there is no one way to a tensor; convert it in the data set, "
            "for example by image.convert('RGB')"
        )
    mode = MODES[image.mode]
    pixels = np.array(image if image.mode == mode else image.convert(mode), dtype=np.uint8)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1).contiguous().float() / 255


def is_picture(value: Any) -> bool:
    """Whether a sample's input is a picture (C, H, W) of bytes or floats, C being at most 4 or the least of the three."""
    return (
        isinstance(value, Tensor)
        and value.ndim == 3
        and (value.dtype == torch.uint8 or value.is_floating_point())
        and (value.shape[0] <= 4 or value.shape[0] <= min(value.shape[1:]))
    )


def has_channels_last(shape: Sequence[int]) -> bool:
    """Whether a picture's shape reads as (H, W, C), as NumPy and Hugging Face hold pictures, and not as (C, H, W).

    Maps of many channels, such as (512, 4, 4), are no wider than their last axis and not meant.

    >>> has_channels_last((28, 28, 1)), has_channels_last((3, 32, 32)), has_channels_last((512, 4, 4))
    (True, False, False)
    """
    first, middle, last = shape
    return last in CHANNELS and first not in CHANNELS and middle > last
