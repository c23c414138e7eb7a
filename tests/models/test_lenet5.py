import pytest
import torch
import torch.nn.functional as F

from fl_lightning.errors import ConfigurationError
from fl_lightning.models import LeNet5


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 61_706),
        ({"image_size": 32}, 61_706),
        ({"in_channels": 3, "image_size": 32}, 62_006),
        ({"num_classes": 62}, 61_706 + 52 * 85),
    ],
)
def test_parameter_counts(settings, count):
    model = LeNet5(**settings)
    assert sum(p.numel() for p in model.parameters()) == count
    assert not list(model.buffers())


def test_forward_is_two_convolutions_and_three_layers():
    torch.manual_seed(0)
    model = LeNet5(num_classes=3).double()
    k1, b1, k2, b2, w1, c1, w2, c2, w3, c3 = model.parameters()
    images = torch.randn(4, 1, 28, 28).double()
    x = F.max_pool2d(F.conv2d(F.pad(images, (2, 2, 2, 2)), k1, b1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, k2, b2).relu(), 2).reshape(4, 400)
    expected = F.linear(F.linear(F.linear(x, w1, c1).relu(), w2, c2).relu(), w3, c3)
    found = model(images)
    torch.testing.assert_close(found, expected)  # float64: sums of some hundred products of numbers of about 1
    losses = (F.cross_entropy(logits, torch.arange(4) % 3) for logits in (found, expected))
    for a, b in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"in_channels": 0}, r"LeNet5\.in_channels must be at least 1"),
        ({"num_classes": 0}, r"LeNet5\.num_classes must be at least 1"),
        ({"image_size": 8}, r"LeNet5\.image_size must be 28 or 32, got 8"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, field):
    with pytest.raises(ConfigurationError, match=field):
        LeNet5(**settings)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(1, 28, 28\), but the data's are \(3, 32, 32\)"):
        LeNet5()(torch.zeros(2, 3, 32, 32))
