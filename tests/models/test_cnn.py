import pytest
import torch
import torch.nn.functional as F

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.cnn import CNN


def test_default_sizes():
    model = CNN()
    convolutions = (3 * 9 + 1) * 32 + (32 * 9 + 1) * 64
    assert sum(p.numel() for p in model.parameters()) == convolutions + (64 * 8 * 8 + 1) * 512 + (512 + 1) * 10
    assert not list(model.buffers())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("hidden", "classes", "count"), [(512, 10, 1_663_370), (2048, 62, 6_603_710)], ids=["McMahan", "LEAF"])
def test_networks_of_papers_have_as_many_parameters_as_theirs(hidden, classes, count):
    with torch.device("meta"):
        model = CNN(in_channels=1, image_size=28, kernel_size=5, hidden=hidden, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model(torch.zeros(2, 1, 28, 28, device="meta")).shape == (2, classes)


def test_forward_is_convolutions_with_relu_and_pooling_then_two_linear_layers():
    torch.manual_seed(0)
    model = CNN(in_channels=1, image_size=8, channels=[4, 6], hidden=7, num_classes=3)
    k1, b1, k2, b2, w1, c1, w2, c2 = model.parameters()
    images = torch.randn(5, 1, 8, 8)
    x = F.max_pool2d(F.conv2d(images, k1, b1, padding=1).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, k2, b2, padding=1).relu(), 2)
    expected = F.linear(F.linear(x.reshape(5, -1), w1, c1).relu(), w2, c2)
    found = model(images)
    assert torch.equal(found, expected)
    losses = (F.cross_entropy(logits, torch.arange(5) % 3) for logits in (found, expected))
    for a, b in zip(*(torch.autograd.grad(loss, list(model.parameters())) for loss in losses), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("image_size", "channels"), [(28, [8, 8, 8]), (9, [4]), (8, [4, 4, 4])])
def test_odd_sides_are_rounded_down(image_size, channels):
    model = CNN(in_channels=1, image_size=image_size, channels=channels, hidden=5, num_classes=4)
    assert model(torch.zeros(2, 1, image_size, image_size)).shape == (2, 4)


def test_learns():
    torch.manual_seed(0)
    model = CNN(in_channels=1, image_size=8, channels=[8], hidden=16, num_classes=2)
    images, targets = torch.randn(32, 1, 8, 8), torch.arange(32) % 2
    images[targets == 1, :, :4] += 1.5
    optimizer = model.configure_optimizers()
    losses = []
    for step in range(60):
        loss = model.training_step((images, targets), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"in_channels": 0}, r"CNN\.in_channels"),
        ({"hidden": 0}, r"CNN\.hidden"),
        ({"kernel_size": 4}, r"CNN\.kernel_size must be an odd number"),
        ({"kernel_size": -1}, r"CNN\.kernel_size must be an odd number"),
        ({"num_classes": 0}, r"CNN\.num_classes"),
        ({"channels": []}, r"CNN\.channels"),
        ({"channels": [8, 0]}, r"CNN\.channels"),
        ({"image_size": 8, "channels": [4, 4, 4, 4]}, r"CNN\.channels .* at least 16 pixels a side"),
        ({"image_size": 0}, r"CNN\.image_size is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, field):
    with pytest.raises(ConfigurationError, match=field):
        CNN(**settings)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(3, 32, 32\), but the data's are \(1, 8, 8\)"):
        CNN()(torch.zeros(2, 1, 8, 8))


def test_channels_last_gives_the_same_results():
    torch.manual_seed(0)
    plain, last = CNN(), CNN(channels_last=True)
    last.load_state_dict(plain.state_dict())
    assert last.get_parameter("features.3.weight").is_contiguous(memory_format=torch.channels_last)
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    losses = [model.training_step((images, targets), 0) for model in (plain, last)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)
