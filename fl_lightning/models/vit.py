"""A small vision transformer: pictures as sequences of patches.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
https://arxiv.org/abs/2010.11929, equations 1 to 4. The smallest of the usual sizes (192 numbers, 3 heads) is that of H. Touvron
et al., "Training data-efficient image transformers and distillation through attention", ICML 2021,
https://arxiv.org/abs/2012.12877.
"""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier

SPREAD = 0.02
"""Standard deviation of weights at the start."""


class ViT(Classifier):
    """A vision transformer for small images, which trains as a whole.

    Patches become vectors by a linear map, a learned vector goes before them, and learned positions are added. In each block
    attention and then a perceptron with GELU, both of normalised input, are added to it. The first vector, normalised, gives
    the classes.

    | network  | image_size | patch_size | dimension | depth | num_heads | num_classes | parameters |
    | -------- | ---------- | ---------- | --------- | ----- | --------- | ----------- | ---------- |
    | default  | 32         | 4          | 192       | 6     | 3         | 10          | 2,693,578  |
    | ViT-Ti   | 224        | 16         | 192       | 12    | 3         | 1000        | 5,717,416  |
    | ViT-B    | 224        | 16         | 768       | 12    | 12        | 1000        | 86,567,656 |

    There are no buffers, so all of it is aggregated as parameters, and no dropout.

    Args:
        in_channels: channels of the images: 3 for colour, 1 for grey.
        image_size: height and width of the images in pixels, a multiple of `patch_size`.
        patch_size: height and width of a patch.
        dimension: numbers per vector, a multiple of `num_heads`; the perceptron's hidden layer has four times as many.
        depth: blocks, at least 1.
        num_heads: heads of attention, at least 1.
        num_classes: number of classes C, at least 1.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> ViT(image_size=8, dimension=24, depth=1)(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 4,
        dimension: int = 192,
        depth: int = 6,
        num_heads: int = 3,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value in (
            ("in_channels", in_channels),
            ("image_size", image_size),
            ("patch_size", patch_size),
            ("dimension", dimension),
            ("depth", depth),
            ("num_heads", num_heads),
            ("num_classes", num_classes),
        ):
            if value < 1:
                raise ConfigurationError(f"ViT.{name} must be at least 1, got {value}")
        if image_size % patch_size:
            raise ConfigurationError(f"ViT.image_size must be a multiple of patch_size {patch_size}, got {image_size}")
        if dimension % num_heads:
            raise ConfigurationError(f"ViT.dimension must be a multiple of num_heads {num_heads}, got {dimension}")
        self.image_shape = (in_channels, image_size, image_size)
        self.patches = nn.Conv2d(in_channels, dimension, kernel_size=patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dimension))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image_size // patch_size) ** 2, dimension))
        self.blocks = nn.Sequential(*(Block(dimension, num_heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dimension, eps=1e-6)
        self.head = nn.Linear(dimension, num_classes)
        nn.init.trunc_normal_(self.positions, std=SPREAD)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=SPREAD)
                nn.init.zeros_(part.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, in_channels, image_size, image_size)."""
        if inputs.shape[1:] != self.image_shape:
            raise ConfigurationError(
                f"ViT.in_channels and ViT.image_size stand for images of shape {self.image_shape}, but the data's are "
                f"{tuple(inputs.shape[1:])}; set the two to match"
            )
        x = self.patches(inputs).flatten(2).transpose(1, 2)  # (b, patches, dimension)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x)[:, 0]))


class Block(nn.Module):
    """Attention, then a perceptron with GELU.

    Args:
        dimension: numbers per vector.
        num_heads: heads of attention, which divide them up.
    """

    def __init__(self, dimension: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dimension, eps=1e-6)
        self.qkv = nn.Linear(dimension, 3 * dimension)
        self.proj = nn.Linear(dimension, dimension)
        self.norm2 = nn.LayerNorm(dimension, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dimension, 4 * dimension), nn.GELU(), nn.Linear(4 * dimension, dimension))

    def forward(self, x: Tensor) -> Tensor:
        """(b, L, dimension) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        """softmax(Q K^T / sqrt(d)) V for each head of d numbers, mixed by a linear layer."""
        b, length, dimension = x.shape
        q, k, v = self.qkv(x).view(b, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (b, heads, L, d) each
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, length, dimension))
