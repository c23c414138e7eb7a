"""The network with dropout that frameworks for federated learning are compared on: FEMNIST and CIFAR-10 in small batches.

S. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konecny, S. Kumar, H. B. McMahan, "Adaptive Federated Optimization",
ICLR 2021, https://arxiv.org/abs/2003.00295 (EMNIST character recognition). On CIFAR-10 it is `simple_cnn` of the benchmarks of
F. Granqvist et al., "pfl-research: Simulation Framework for Accelerating Research in Private Federated Learning", NeurIPS 2024,
https://arxiv.org/abs/2404.06430.
"""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier
from fl_lightning.models.dropout import ByteDropout

CHANNELS = (32, 64)
"""Outputs of the two convolutions."""

HIDDEN = 128

LEAST_PIXELS = 6
"""A side: the convolutions take four pixels off, and of two pooling leaves one."""


class DropoutCNN(Classifier):
    """Two 3 x 3 convolutions without padding (32 and 64 channels, ReLU), 2 x 2 max-pooling, dropout of 1/4, a hidden layer of
    128 with ReLU, dropout of 1/2, and the classes.

    Weights are drawn by X. Glorot and Y. Bengio's uniform rule (AISTATS 2010), as pfl and TensorFlow have it. Channels lie
    innermost in memory, which is faster on CPUs and on GPUs with tensor cores, also for the hidden layer, as in TensorFlow.

    Args:
        in_channels: channels of the images: 3 for colour, 1 for grey.
        image_size: height and width of the images in pixels, at least 6.
        num_classes: number of classes C, at least 1.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> model = DropoutCNN(in_channels=1, image_size=8, num_classes=62)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 62])
    """

    recordable = True

    def __init__(
        self,
        *,
        in_channels: int = 3,
        image_size: int = 32,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ConfigurationError(f"DropoutCNN.{name} must be at least 1, got {value}")
        if image_size < LEAST_PIXELS:
            raise ConfigurationError(
                f"DropoutCNN.image_size must be at least {LEAST_PIXELS}, got {image_size}: two convolutions without padding "
                "and a pooling leave nothing of less"
            )
        self.image_shape = (in_channels, image_size, image_size)
        first, second = CHANNELS
        side = (image_size - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, first, kernel_size=3),
            nn.ReLU(),
            nn.Conv2d(first, second, kernel_size=3),
            nn.MaxPool2d(2),
            nn.ReLU(),  # the same as before pooling, gradients included, for a quarter of the ReLUs
        )
        self.classifier = nn.Sequential(
            ByteDropout(0.25),
            nn.Linear(second * side * side, HIDDEN),
            nn.ReLU(),
            ByteDropout(0.5),
            nn.Linear(HIDDEN, num_classes),
        )
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(part.weight)
        self.to(memory_format=torch.channels_last)  # pyrefly: ignore[no-matching-overload]

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, in_channels, image_size, image_size)."""
        if inputs.shape[1:] != self.image_shape:
            raise ConfigurationError(
                f"DropoutCNN.in_channels and DropoutCNN.image_size stand for images of shape {self.image_shape}, but the "
                f"data's are {tuple(inputs.shape[1:])}; set the two to match"
            )
        features = self.features(inputs.contiguous(memory_format=torch.channels_last))
        return self.classifier(features.permute(0, 2, 3, 1).flatten(1))  # as they lie, so that nothing is copied
