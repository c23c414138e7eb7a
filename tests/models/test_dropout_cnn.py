import pytest
import torch
import torch.nn.functional as F

from fl_lightning.errors import ConfigurationError
from fl_lightning.models import DropoutCNN


def test_sizes_on_cifar10_and_femnist():
    femnist = DropoutCNN(in_channels=1, image_size=28, num_classes=62)
    assert sum(p.numel() for p in femnist.parameters()) == 1_206_590  # as Reddi et al. and FLUTE have it
    for model, channels, features, classes in ((DropoutCNN(), 3, 64 * 14 * 14, 10), (femnist, 1, 64 * 12 * 12, 62)):
        convolutions = (channels * 9 + 1) * 32 + (32 * 9 + 1) * 64
        assert sum(p.numel() for p in model.parameters()) == convolutions + (features + 1) * 128 + (128 + 1) * classes
        assert not list(model.buffers())


def test_forward_is_two_convolutions_a_pooling_and_two_linear_layers():
    torch.manual_seed(0)
    model = DropoutCNN(image_size=9, num_classes=3).eval()
    k1, b1, k2, b2, w1, c1, w2, c2 = model.double().parameters()
    images = torch.randn(4, 3, 9, 9).double()
    x = F.conv2d(F.conv2d(images, k1, b1).relu(), k2, b2).relu()
    x = F.max_pool2d(x, 2).permute(0, 2, 3, 1).reshape(4, -1)
    expected = F.linear(F.linear(x, w1, c1).relu(), w2, c2)
    found = model(images)
    torch.testing.assert_close(found, expected)
    losses = (F.cross_entropy(logits, torch.arange(4) % 3) for logits in (found, expected))
    for a, b in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


def test_both_dropouts_are_on_in_training_alone():
    torch.manual_seed(0)
    model, images = DropoutCNN(image_size=8), torch.randn(2, 3, 8, 8)
    zeros: list[float] = []
    for part in (model.classifier[1], model.classifier[4]):
        part.register_forward_hook(lambda _, inputs, __: zeros.append(float((inputs[0] == 0).float().mean())))
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert min(zeros[0], zeros[2]) > max(zeros[4], zeros[6]) + 0.05
    assert min(zeros[1], zeros[3]) > max(zeros[5], zeros[7]) + 0.1


def test_weights_lie_with_channels_innermost_and_within_glorots_bound():
    model = DropoutCNN(image_size=8)
    for name, fans in (("features.2.weight", 9 * (32 + 64)), ("classifier.1.weight", 64 * 2 * 2 + 128)):
        weight = model.get_parameter(name)
        bound = (6 / fans) ** 0.5
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
    assert model.get_parameter("features.2.weight").is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"in_channels": 0}, r"DropoutCNN\.in_channels must be at least 1"),
        ({"num_classes": 0}, r"DropoutCNN\.num_classes must be at least 1"),
        ({"image_size": 5}, r"DropoutCNN\.image_size must be at least 6"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, field):
    with pytest.raises(ConfigurationError, match=field):
        DropoutCNN(**settings)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(3, 32, 32\), but the data's are \(1, 8, 8\)"):
        DropoutCNN()(torch.zeros(2, 1, 8, 8))


def test_learns():
    torch.manual_seed(0)
    model = DropoutCNN(in_channels=1, image_size=8, num_classes=2)
    images, targets = torch.randn(32, 1, 8, 8), torch.arange(32) % 2
    images[targets == 1, :, :4] += 1.5
    optimizer = model.configure_optimizers()
    for step in range(60):
        optimizer.zero_grad()
        model.training_step((images, targets), step).backward()
        optimizer.step()
    model.eval()
    assert F.cross_entropy(model(images), targets).item() < 0.1
