import pytest
import torch
import torch.nn.functional as F

from fl_lightning.errors import ConfigurationError
from fl_lightning.models import ViT
from fl_lightning.models.vit import Block

LARGE = {"image_size": 224, "patch_size": 16, "depth": 12, "num_classes": 1000}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 2_693_578),
        (LARGE, 5_717_416),  # ViT-Ti/16
        ({**LARGE, "dimension": 768, "num_heads": 12}, 86_567_656),  # ViT-B/16
    ],
)
def test_parameter_counts(settings, expected):
    with torch.device("meta"):
        model = ViT(**settings)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert not list(model.buffers())


def test_attention_is_that_of_a_loop_over_heads():
    torch.manual_seed(0)
    block = Block(6, num_heads=2).double()
    x = torch.randn(3, 5, 6).double()
    q, k, v = block.qkv(x).split(6, dim=-1)
    heads = []
    for own in (slice(0, 3), slice(3, 6)):
        weights = (q[..., own] @ k[..., own].transpose(1, 2) / 3**0.5).softmax(-1)
        heads.append(weights @ v[..., own])
    torch.testing.assert_close(block.attention(x), block.proj(torch.cat(heads, dim=-1)))


def test_forward_is_patches_blocks_and_a_head_on_the_first_vector():
    torch.manual_seed(0)
    model = ViT(image_size=4, patch_size=2, dimension=6, depth=2, num_heads=2, num_classes=3).double()
    torch.nn.init.normal_(model.class_token)
    images = torch.randn(2, 3, 4, 4).double()
    weight, bias = model.patches.parameters()
    weight = weight.flatten(1)
    rows = []
    for image in images:
        patches = [image[:, i : i + 2, j : j + 2].flatten() @ weight.T + bias for i in (0, 2) for j in (0, 2)]
        rows.append(torch.stack([model.class_token[0, 0], *patches]))
    x = torch.stack(rows) + model.positions
    for block in model.blocks:
        assert isinstance(block, Block)
        x = x + block.attention(F.layer_norm(x, (6,), eps=1e-6))  # normalisations start as weight 1, bias 0
        hidden = F.gelu(block.mlp[0](F.layer_norm(x, (6,), eps=1e-6)))
        x = x + block.mlp[2](hidden)
    torch.testing.assert_close(model(images), model.head(F.layer_norm(x[:, 0], (6,), eps=1e-6)))


def test_places_matter_by_positions_alone():
    torch.manual_seed(0)
    model = ViT(image_size=8, patch_size=4, dimension=12, depth=1)
    images = torch.randn(2, 3, 8, 8)
    swapped = torch.cat([images[..., 4:], images[..., :4]], dim=-1)  # two columns of patches
    assert not torch.allclose(model(images), model(swapped), atol=1e-4)
    torch.nn.init.zeros_(model.positions)
    torch.testing.assert_close(model(images), model(swapped))


def test_learns():
    torch.manual_seed(0)
    model = ViT(image_size=8, dimension=24, depth=2, num_classes=2, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    images, targets = torch.randn(32, 3, 8, 8), torch.arange(32) % 2
    images[targets == 1, :, :4] += 1
    optimizer = model.configure_optimizers()
    for step in range(40):
        optimizer.zero_grad()
        loss = model.training_step((images, targets), step)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # at first about .7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({name: 0}, rf"ViT\.{name} must be at least 1, got 0") for name in ("in_channels", "image_size", "patch_size")),
        *(
            ({name: 0}, rf"ViT\.{name} must be at least 1, got 0")
            for name in ("dimension", "depth", "num_heads", "num_classes")
        ),
        ({"image_size": 30}, r"ViT\.image_size must be a multiple of patch_size 4, got 30"),
        ({"dimension": 100}, r"ViT\.dimension must be a multiple of num_heads 3, got 100"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ViT(**settings)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(3, 32, 32\), but the data's are \(1, 28, 28\)"):
        ViT(depth=1)(torch.zeros(2, 1, 28, 28))
