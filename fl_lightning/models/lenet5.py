"""LeNet-5, the first convolutional network for MNIST, as it is trained today: with ReLU and max-pooling.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE
86(11), 1998, section II.B.
"""

from __future__ import annotations

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier

SIDES = (28, 32)


class LeNet5(Classifier):
    """Two 5 x 5 convolutions of 6 and 16 channels, each with ReLU and 2 x 2 max-pooling, then layers of 120, 84 and C units.

    The first convolution pads pictures of 28 pixels a side by 2, so that they are as those of 32, which it does not pad. With
    one channel and ten classes it has 61,706 parameters, with three channels 62,006; there are no buffers.

    Args:
        in_channels: channels of the images: 3 for colour, 1 for grey.
        image_size: height and width of the images in pixels, 28 or 32.
        num_classes: number of classes C, at least 1.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Differs from the paper, which has squashing functions, pooling with weights, a second convolution of chosen channels, and an
    output of distances: its 60,000 parameters are not these.

    Example:
        >>> LeNet5()(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        in_channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ConfigurationError(f"LeNet5.{name} must be at least 1, got {value}")
        if image_size not in SIDES:
            raise ConfigurationError(f"LeNet5.image_size must be 28 or 32, got {image_size}; CNN takes any")
        self.image_shape = (in_channels, image_size, image_size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, kernel_size=5, padding=(32 - image_size) // 2),
            nn.MaxPool2d(2),
            nn.ReLU(),  # the same as before pooling, gradients included, for a quarter of the ReLUs
            nn.Conv2d(6, 16, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, in_channels, image_size, image_size)."""
        if inputs.shape[1:] != self.image_shape:
            raise ConfigurationError(
                f"LeNet5.in_channels and LeNet5.image_size stand for images of shape {self.image_shape}, but the data's are "
                f"{tuple(inputs.shape[1:])}; set the two to match"
            )
        return self.classifier(self.features(inputs).flatten(1))
