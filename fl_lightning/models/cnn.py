"""A small convolutional network without batch normalisation, for images that a ResNet would be too slow for.

With kernels of 5 x 5 it is the MNIST network of B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Aguera y Arcas,
"Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
https://arxiv.org/abs/1602.05629, section 3, and with a wider hidden layer LEAF's for FEMNIST: S. Caldas et al., "LEAF: A
Benchmark for Federated Settings", 2018, https://arxiv.org/abs/1812.01097. It has no buffers, so all of it is aggregated as
parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier


class CNN(Classifier):
    """Per entry of `channels` a convolution, ReLU and 2 x 2 max-pooling; then a hidden layer and the classes.

    | network  | in_channels | image_size | kernel_size | hidden | num_classes | parameters |
    | -------- | ----------- | ---------- | ----------- | ------ | ----------- | ---------- |
    | default  | 3           | 32         | 3           | 512    | 10          | 2,122,186  |
    | McMahan  | 1           | 28         | 5           | 512    | 10          | 1,663,370  |
    | LEAF     | 1           | 28         | 5           | 2048   | 62          | 6,603,710  |

    Args:
        in_channels: channels of the images: 3 for colour, 1 for grey.
        image_size: height and width of the images in pixels. Every pooling halves it, rounding down, and at least one
            pixel must remain.
        channels: outputs of the convolutions, in order; at least one.
        kernel_size: rows and columns of the convolutions' kernels, an odd number, so that a convolution keeps the size.
        hidden: units of the hidden linear layer, at least 1.
        num_classes: number of classes C, at least 1.
        channels_last: whether images and convolution weights lie in memory with channels innermost, which is faster on
            GPUs with tensor cores and on CPUs; results agree up to rounding.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> model = CNN(in_channels=1, image_size=8, channels=[16, 32], hidden=64)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        hidden: int = 512,
        num_classes: int = 10,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value in (("in_channels", in_channels), ("hidden", hidden), ("num_classes", num_classes)):
            if value < 1:
                raise ConfigurationError(f"CNN.{name} must be at least 1, got {value}")
        if not channels or min(channels) < 1:
            raise ConfigurationError(
                f"CNN.channels must name at least one convolution, each with 1 or more channels, got {list(channels)}; "
                "[32, 64] is the default"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigurationError(f"CNN.kernel_size must be an odd number of at least 1, such as 3 or 5, got {kernel_size}")
        side = image_size >> len(channels)
        if side < 1:
            raise ConfigurationError(
                f"CNN.channels has {len(channels)} entries, so images are halved {len(channels)} times and need at "
                f"least {1 << len(channels)} pixels a side, but CNN.image_size is {image_size}; use fewer entries"
            )
        self.image_shape = (in_channels, image_size, image_size)
        blocks: list[nn.Module] = []
        for before, after in pairwise([in_channels, *channels]):
            # The same as ReLU before pooling, gradients included, for a quarter of the ReLUs.
            blocks += [nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2), nn.MaxPool2d(2), nn.ReLU()]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Linear(channels[-1] * side * side, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, in_channels, image_size, image_size)."""
        if inputs.shape[1:] != self.image_shape:
            raise ConfigurationError(
                f"CNN.in_channels and CNN.image_size stand for images of shape {self.image_shape}, but the data's are "
                f"{tuple(inputs.shape[1:])}; set the two to match"
            )
        features = self.features(inputs.contiguous(memory_format=self.memory_format))
        return self.classifier(features.flatten(1))
