"""Pictures of PIL as tensors, against their own pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from fl_lightning.data.pictures import is_picture, to_tensor
from fl_lightning.errors import ConfigurationError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("1", 1), ("P", 3), ("LA", 4)])
def test_every_pixel_is_where_it_was(mode, channels):
    image = Image.fromarray(PIXELS).convert(mode)
    shown = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    found = to_tensor(image)
    assert (found.shape, found.dtype) == ((channels, 5, 7), torch.float32)
    for row in range(5):
        for column in range(7):
            pixel = shown.getpixel((column, row))
            expected = torch.tensor(pixel if isinstance(pixel, tuple) else [pixel]) / 255
            assert torch.equal(found[:, row, column], expected)


@pytest.mark.parametrize("mode", ["CMYK", "HSV", "I", "F", "I;16", "YCbCr"])
def test_other_modes_are_refused(mode):
    with pytest.raises(ConfigurationError, match=f"PIL's mode {mode}"):
        to_tensor(Image.new(mode, (2, 2)))


def test_pictures_have_channels_first():
    assert is_picture(torch.zeros(3, 32, 32))
    assert is_picture(torch.zeros(12, 32, 32, dtype=torch.uint8))
    assert not is_picture(torch.zeros(32, 32, 3))
    assert not is_picture(torch.zeros(3, 32, 32, dtype=torch.int64))
    assert not is_picture(torch.zeros(32, 32))
    assert not is_picture("a text")
