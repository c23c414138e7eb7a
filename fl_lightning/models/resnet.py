"""ResNet-18, for large images or for small ones.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385, table 1 (18 layers). Group normalisation: Y. Wu, K. He, "Group Normalization", ECCV
2018, https://arxiv.org/abs/1803.08494. Parameters are named and initialised as torchvision's are, so its checkpoints
load where shapes agree.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, train it on CIFAR-10 and count 11,689,512 parameters: that is
`stem="imagenet"` with 1000 outputs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier

BLOCKS_PER_STAGE = 2
NUM_GROUPS = 32
"""Groups of a group normalisation, where the number of channels is a multiple of it."""

Norm = Literal["batch", "group"]


class ResNet18(Classifier):
    """ResNet-18 for colour images.

    | stem     | outputs | width | parameters |
    | -------- | ------- | ----- | ---------- |
    | imagenet | 1000    | 64    | 11,689,512 |
    | imagenet | 10      | 64    | 11,181,642 |
    | cifar    | 10      | 64    | 11,173,962 |
    | cifar    | 10      | 32    |  2,797,610 |

    Args:
        num_classes: number of outputs C, at least 1. More than the task has classes is allowed: the spare ones are only
            ever pushed down.
        stem: `imagenet` starts with a 7 x 7 convolution of stride 2 and a max-pooling, which divide a side by 4;
            `cifar` with a 3 x 3 convolution that keeps it. The four stages divide by 8 again.
        norm: `batch` has running statistics (9,600 at width 64) that the federation must aggregate beside the
            parameters; `group` has none and as many parameters, and 32 groups, or as many as divide both 32 and the
            channels.
        width: channels of the first stage, at least 1; later stages have 2, 4 and 8 times as many.
        channels_last: whether images and convolution weights lie in memory with channels innermost, which is faster on
            GPUs with tensor cores and on CPUs under bfloat16; results agree up to rounding.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> ResNet18(width=16)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        num_classes: int = 10,
        stem: Literal["imagenet", "cifar"] = "cifar",
        norm: Norm = "batch",
        width: int = 64,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(optimizer=optimizer)
        for name, value in (("num_classes", num_classes), ("width", width)):
            if value < 1:
                raise ConfigurationError(f"ResNet18.{name} must be at least 1, got {value}")
        if stem not in ("imagenet", "cifar"):
            raise ConfigurationError(f"ResNet18.stem must be imagenet or cifar, got {stem}")
        if channels_last and width % 8:
            raise ConfigurationError(
                f"ResNet18.width must be a multiple of 8 with channels_last, got {width}: otherwise a convolution of oneDNN "
                "writes beyond its memory, on CPUs with AVX2"
            )
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(
            3, width, kernel_size=7 if large else 3, stride=2 if large else 1, padding=3 if large else 1, bias=False
        )
        self.bn1 = _norm(norm, width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if large else nn.Identity()
        self.layer1 = _stage(width, width, stride=1, norm=norm)
        self.layer2 = _stage(width, 2 * width, stride=2, norm=norm)
        self.layer3 = _stage(2 * width, 4 * width, stride=2, norm=norm)
        self.layer4 = _stage(4 * width, 8 * width, stride=2, norm=norm)
        self.fc = nn.Linear(8 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # normalisations start as weight 1, bias 0 by themselves
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, 3, h, w) of any size."""
        x = inputs.contiguous(memory_format=self.memory_format)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions added to the input, which a 1 x 1 convolution fits to them where shapes differ.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: of the first convolution.
        norm: kind of normalisation.
    """

    def __init__(self, before: int, after: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = _norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.bn2 = _norm(norm, after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False), _norm(norm, after)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, before, h, w) to (b, after, h / stride, w / stride), rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


def _stage(before: int, after: int, *, stride: int, norm: Norm) -> nn.Sequential:
    """The blocks of one resolution, of which the first may change it."""
    first = ResidualBlock(before, after, stride=stride, norm=norm)
    rest = [ResidualBlock(after, after, stride=1, norm=norm) for _ in range(BLOCKS_PER_STAGE - 1)]
    return nn.Sequential(first, *rest)


def _norm(kind: Norm, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(NUM_GROUPS, channels), channels)
    raise ConfigurationError(f"ResNet18.norm must be batch or group, got {kind}")
