import pytest
import torch
from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.resnet import ResidualBlock, ResNet, ResNet18, ResNet20, ResNet34, SkipAndPad
from fl_lightning.modules.recordable import is_recordable


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(network: type[ResNet] = ResNet18, **settings) -> ResNet:
    """A model without numbers, where only its shapes matter."""
    with torch.device("meta"):
        return network(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"stem": "imagenet", "num_classes": 1000}, 11_689_512),
        ({"stem": "imagenet", "num_classes": 10}, 11_181_642),
        ({"stem": "cifar", "num_classes": 10}, 11_173_962),
        ({"stem": "cifar", "num_classes": 10, "width": 32}, 2_797_610),
        ({"norm": "group"}, 11_173_962),
    ],
)
def test_parameter_counts(settings, expected):
    assert count(on_meta(**settings)) == expected


@pytest.mark.parametrize(
    ("network", "settings", "expected", "statistics"),
    [
        (ResNet18, {"stem": "imagenet", "num_classes": 100, "norm": "group"}, 11_227_812, 0),
        (ResNet34, {"stem": "imagenet", "num_classes": 1000}, 21_797_672, 17_024),  # torchvision's
        (ResNet34, {}, 21_282_122, 17_024),
        (ResNet20, {}, 269_722, 1_376),  # 0.27M in the paper's table 6
        (ResNet20, {"num_classes": 100, "norm": "group"}, 275_572, 0),
    ],
)
def test_counts_of_the_family(network, settings, expected, statistics):
    model = on_meta(network, **settings)
    assert is_recordable(model)
    assert count(model) == expected
    assert sum(b.numel() for b in model.buffers() if b.is_floating_point()) == statistics
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, settings.get("num_classes", 10))


def test_resnet20_has_twenty_layers_with_weights_and_halves_twice():
    model, seen = on_meta(ResNet20), []
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()) == 20
    for i in (1, 2, 3):
        stage = model.get_submodule(f"layer{i}")
        stage.register_forward_hook(lambda _module, _inputs, output: seen.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 3, 32, 32, device="meta"))
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_resnet34_has_as_many_blocks_as_the_table_says():
    model = on_meta(ResNet34)
    assert [sum(1 for _ in model.get_submodule(f"layer{i}").children()) for i in (1, 2, 3, 4)] == [3, 4, 6, 3]
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in model.modules()) == 33


def test_shortcuts_without_parameters_skip_pixels_and_add_zeros():
    x = torch.randn(2, 3, 5, 4)
    found = SkipAndPad(2, 3)(x)
    assert found.shape == (2, 6, 3, 2)
    assert torch.equal(found[:, :3], x[:, :, [0, 2, 4]][..., [0, 2]])
    assert not found[:, 3:].any()
    block = ResidualBlock(3, 6, stride=2, norm="batch", projection=False)
    nn.init.zeros_(block.bn2.weight)
    torch.testing.assert_close(block(x), found.relu())


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_running_statistics(stem):
    model = on_meta(stem=stem)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 20
    assert sum(b.numel() for b in model.buffers() if b.is_floating_point()) == 9_600
    assert sum(not b.is_floating_point() for b in model.buffers()) == 20


def test_group_normalisation_has_no_buffers_and_32_groups_where_they_divide():
    model = on_meta(norm="group")
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert not list(model.buffers())
    assert len(norms) == 20
    assert {m.num_groups for m in norms} == {32}
    assert {m.num_groups for m in on_meta(norm="group", width=24).modules() if isinstance(m, nn.GroupNorm)} == {8, 16, 32}


@pytest.mark.parametrize(("stem", "sides"), [("imagenet", [8, 4, 2, 1]), ("cifar", [32, 16, 8, 4])])
def test_resolution_of_the_stages(stem, sides):
    model = on_meta(stem=stem, width=8)
    seen = []
    for i in (1, 2, 3, 4):
        model.get_submodule(f"layer{i}").register_forward_hook(
            lambda _module, _inputs, output: seen.append(tuple(output.shape[1:]))
        )
    assert model(torch.zeros(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert seen == [(8 * 2**i, side, side) for i, side in enumerate(sides)]


def test_names_are_torchvisions():
    names = set(on_meta().state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.1.bn2.bias", "fc.bias"} <= names
    assert {n for n in names if "downsample" in n and "weight" in n} == {
        f"layer{stage}.0.downsample.{part}.weight" for stage in (2, 3, 4) for part in (0, 1)
    }
    assert len(names) == 122


def test_initial_values():
    torch.manual_seed(0)
    model = ResNet18(width=16)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / (2 * module.weight.numel()) ** 0.5)
            assert module.weight.abs().max() > 2.5 * expected  # normal, not uniform
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_block_adds_its_input():
    block = ResidualBlock(8, 8, stride=1, norm="batch")
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x.relu())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_channels_last_gives_the_same_results(norm):
    torch.manual_seed(0)
    plain, last = ResNet18(width=8, norm=norm), ResNet18(width=8, norm=norm, channels_last=True)
    last.load_state_dict(plain.state_dict())
    kernel = last.get_parameter("layer1.0.conv1.weight")
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    images, targets = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    losses = [model.training_step((images, targets), 0) for model in (plain, last)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for a, b in zip(plain.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "settings"),
    [(ResNet18, {"stem": "imagenet"}), (ResNet18, {"norm": "group"}), (ResNet20, {}), (ResNet34, {"stem": "imagenet"})],
)
def test_learns(network, settings):
    torch.manual_seed(0)
    model = network(width=8, num_classes=2, **settings)
    images, targets = torch.randn(16, 3, 16, 16), torch.arange(16) % 2
    images[targets == 1, 0] += 1
    optimizer = model.configure_optimizers()
    losses = []
    for step in range(25):
        loss = model.training_step((images, targets), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


WRONG = [{"num_classes": 0}, {"width": 0}, {"norm": "layer"}]


@pytest.mark.parametrize(
    ("network", "settings"),
    [(network, wrong) for network in (ResNet18, ResNet20, ResNet34) for wrong in WRONG]
    + [(network, {"stem": "vgg"}) for network in (ResNet18, ResNet34)],
)
def test_settings_that_cannot_work_are_refused(network, settings):
    with pytest.raises(ConfigurationError, match=rf"{network.__name__}\.{next(iter(settings))} must be .* got"):
        on_meta(network, **settings)


def test_channels_last_needs_a_width_that_onednn_can_do():
    with pytest.raises(ConfigurationError, match=r"ResNet18\.width must be a multiple of 8 with channels_last, got 4"):
        ResNet18(width=4, channels_last=True)
