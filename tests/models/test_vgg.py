import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models import VGG11, vgg


@pytest.fixture
def narrow(monkeypatch):
    """The network with few channels, as the real one is slow."""
    monkeypatch.setattr(vgg, "CHANNELS", (4, 4, 6, 6, 8, 8, 8, 8))
    monkeypatch.setattr(vgg, "NUM_GROUPS", 2)


@pytest.mark.parametrize(
    ("settings", "expected", "statistics"),
    [
        ({}, 9_231_114, 5_504),
        ({"norm": "none"}, 9_225_610, 0),
        ({"norm": "group", "num_classes": 100}, 9_231_114 + 90 * 513, 0),
        ({"image_size": 224, "norm": "none", "hidden": 4096, "num_classes": 1000}, 132_863_336, 0),  # torchvision's
    ],
)
def test_parameter_counts(settings, expected, statistics):
    with torch.device("meta"):
        model = VGG11(**settings)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert sum(b.numel() for b in model.buffers() if b.is_floating_point()) == statistics
    side = settings.get("image_size", 32)
    assert model(torch.zeros(2, 3, side, side, device="meta")).shape == (2, settings.get("num_classes", 10))


def test_forward_is_eight_convolutions_five_poolings_and_linear_layers(narrow):
    torch.manual_seed(0)
    model = VGG11(in_channels=1, image_size=64, norm="none", hidden=7, num_classes=3).double().eval()
    *convolutions, w1, c1, w2, c2, w3, c3 = model.parameters()
    assert len(convolutions) == 16
    images = torch.randn(2, 1, 64, 64).double()
    x = images
    for i in range(8):
        x = F.conv2d(x, convolutions[2 * i], convolutions[2 * i + 1], padding=1).relu()
        x = F.max_pool2d(x, 2) if i in (0, 1, 3, 5, 7) else x
    assert x.shape == (2, 8, 2, 2)
    x = F.linear(F.linear(x.reshape(2, -1), w1, c1).relu(), w2, c2).relu()
    torch.testing.assert_close(model(images), F.linear(x, w3, c3))


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_a_normalisation_follows_each_convolution(narrow, norm, kind):
    layers = list(VGG11(norm=norm).features)
    after = [type(layers[i + 1]) for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert after == [kind] * 8


def test_weights_are_drawn_by_hes_rule():
    torch.manual_seed(0)
    weight = VGG11().get_parameter("features.4.weight")  # of 128 channels
    expected = (2 / (9 * 128)) ** 0.5
    assert weight.std().item() == pytest.approx(expected, rel=5 / (2 * weight.numel()) ** 0.5)


@pytest.mark.parametrize("settings", [{}, {"norm": "group"}, {"norm": "none"}])
def test_learns(narrow, settings):
    torch.manual_seed(0)
    model = VGG11(num_classes=2, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), **settings)
    images, targets = torch.randn(16, 3, 32, 32), torch.arange(16) % 2
    images[targets == 1, 0] += 1
    optimizer = model.configure_optimizers()
    for step in range(60):
        optimizer.zero_grad()
        loss = model.training_step((images, targets), step)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2  # at first about .7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 0}, r"VGG11\.in_channels must be at least 1"),
        ({"image_size": 28}, r"VGG11\.image_size must be at least 32, got 28"),
        ({"hidden": -1}, r"VGG11\.hidden must be at least 0"),
        ({"num_classes": 0}, r"VGG11\.num_classes must be at least 1"),
        ({"norm": "layer"}, r"VGG11\.norm must be batch, group or none, got layer"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message), torch.device("meta"):
        VGG11(**settings)


def test_images_of_another_shape_are_refused(narrow):
    with pytest.raises(ConfigurationError, match=r"\(3, 32, 32\), but the data's are \(1, 28, 28\)"):
        VGG11()(torch.zeros(2, 1, 28, 28))
