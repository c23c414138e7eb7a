"""VGG-11, a plain deep network of 3 x 3 convolutions.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
https://arxiv.org/abs/1409.1556, table 1, configuration A. Normalisations between its layers came later: S. Ioffe, C. Szegedy,
"Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift", ICML 2015,
https://arxiv.org/abs/1502.03167.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier
from fl_lightning.models.dropout import ByteDropout

CHANNELS = (64, 128, 256, 256, 512, 512, 512, 512)
"""Outputs of the convolutions, in order."""

POOLED = (0, 1, 3, 5, 7)
"""Those that a 2 x 2 max-pooling follows."""

PIXELS = 1 << len(POOLED)
"""A side, that one is left of."""

NUM_GROUPS = 32


class VGG11(Classifier):
    """Eight 3 x 3 convolutions with ReLU, five 2 x 2 max-poolings, and linear layers.

    | network           | image_size | norm  | hidden | num_classes | parameters  |
    | ----------------- | ---------- | ----- | ------ | ----------- | ----------- |
    | default           | 32         | batch | 0      | 10          | 9,231,114   |
    | without norm      | 32         | none  | 0      | 10          | 9,225,610   |
    | that of the paper | 224        | none  | 4096   | 1000        | 132,863,336 |

    Args:
        in_channels: channels of the images: 3 for colour, 1 for grey.
        image_size: height and width of the images in pixels, at least 32, which five poolings leave one of.
        norm: what follows each convolution: `batch` with running statistics (5,504) that the federation must aggregate beside
            the parameters, `group` of 32 groups without any, or `none`.
        hidden: units of each of the two hidden linear layers, with ReLU and dropout of 1/2; 0 leaves both out, as is usual for
            small images.
        num_classes: number of classes C, at least 1.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Differs from the paper: weights of convolutions are drawn by He's rule, as without it the network learns nothing for long.

    Example:
        >>> VGG11(in_channels=1)(torch.zeros(5, 1, 32, 32)).shape
        torch.Size([5, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        norm: Literal["batch", "group", "none"] = "batch",
        hidden: int = 0,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value, least in (
            ("in_channels", in_channels, 1),
            ("image_size", image_size, PIXELS),
            ("hidden", hidden, 0),
            ("num_classes", num_classes, 1),
        ):
            if value < least:
                raise ConfigurationError(f"VGG11.{name} must be at least {least}, got {value}")
        if norm not in ("batch", "group", "none"):
            raise ConfigurationError(f"VGG11.norm must be batch, group or none, got {norm}")
        self.image_shape = (in_channels, image_size, image_size)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((in_channels, *CHANNELS))):
            layers.append(nn.Conv2d(before, after, kernel_size=3, padding=1))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(after))
            elif norm == "group":
                layers.append(nn.GroupNorm(NUM_GROUPS, after))
            # The same as ReLU before pooling, gradients included, for a quarter of the ReLUs.
            layers += [nn.MaxPool2d(2), nn.ReLU()] if i in POOLED else [nn.ReLU()]
        self.features = nn.Sequential(*layers)
        sizes = [CHANNELS[-1] * (image_size // PIXELS) ** 2, *[hidden] * (2 if hidden else 0), num_classes]
        linear: list[nn.Module] = []
        for before, after in pairwise(sizes):
            linear += [nn.Linear(before, after), nn.ReLU(), ByteDropout(0.5)]
        self.classifier = nn.Sequential(*linear[:-2])
        for part in self.features:
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(part.get_parameter("bias"))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, in_channels, image_size, image_size)."""
        if inputs.shape[1:] != self.image_shape:
            raise ConfigurationError(
                f"VGG11.in_channels and VGG11.image_size stand for images of shape {self.image_shape}, but the data's are "
                f"{tuple(inputs.shape[1:])}; set the two to match"
            )
        return self.classifier(self.features(inputs).flatten(1))
