"""Residual networks: ResNet-18 and ResNet-34, for large images or for small ones, and ResNet-20 for CIFAR.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
https://arxiv.org/abs/1512.03385, table 1 (18 and 34 layers) and section 4.2 (20 layers). Group normalisation: Y. Wu, K. He,
"Group Normalization", ECCV 2018, https://arxiv.org/abs/1803.08494. Parameters of the networks of table 1 are named and
initialised as torchvision's are, so its checkpoints load where shapes agree.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, train ResNet-18 on CIFAR-10 and count 11,689,512 parameters: that is
`stem="imagenet"` with 1000 outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier

NUM_GROUPS = 32
"""Groups of a group normalisation, where the number of channels is a multiple of it."""

Norm = Literal["batch", "group"]
Stem = Literal["imagenet", "cifar"]


class ResNet(Classifier):
    """What the networks below share: a stem, stages of residual blocks, the mean over pixels, and the classes.

    Args:
        blocks: residual blocks of each stage.
        projection: whether shortcuts between different shapes are 1 x 1 convolutions; otherwise they have no parameters.
        num_classes, stem, norm, width, channels_last, optimizer: as for `ResNet18`.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        projection: bool,
        num_classes: int,
        stem: Stem,
        norm: Norm,
        width: int,
        channels_last: bool,
        optimizer: OptimizerCallable,
    ) -> None:
        super().__init__(optimizer=optimizer)
        name = type(self).__name__
        for field, value in (("num_classes", num_classes), ("width", width)):
            if value < 1:
                raise ConfigurationError(f"{name}.{field} must be at least 1, got {value}")
        if stem not in ("imagenet", "cifar"):
            raise ConfigurationError(f"{name}.stem must be imagenet or cifar, got {stem}")
        if norm not in ("batch", "group"):
            raise ConfigurationError(f"{name}.norm must be batch or group, got {norm}")
        if channels_last and width % 8:
            raise ConfigurationError(
                f"{name}.width must be a multiple of 8 with channels_last, got {width}: otherwise a convolution of oneDNN "
                "writes beyond its memory, on CPUs with AVX2"
            )
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(
            3, width, kernel_size=7 if large else 3, stride=2 if large else 1, padding=3 if large else 1, bias=False
        )
        self.bn1 = _norm(norm, width)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if large else nn.Identity()
        self.num_stages = len(blocks)
        before = width
        for i, depth in enumerate(blocks):
            after = width << i
            first = ResidualBlock(before, after, stride=2 if i else 1, norm=norm, projection=projection)
            rest = [ResidualBlock(after, after, stride=1, norm=norm, projection=projection) for _ in range(depth - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *rest))
            before = after
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # normalisations start as weight 1, bias 0 by themselves
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of images (b, 3, h, w) of any size."""
        x = inputs.contiguous(memory_format=self.memory_format)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.num_stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class ResNet18(ResNet):
    """ResNet-18 for colour images: four stages of two residual blocks.

    | stem     | outputs | width | parameters |
    | -------- | ------- | ----- | ---------- |
    | imagenet | 1000    | 64    | 11,689,512 |
    | imagenet | 10      | 64    | 11,181,642 |
    | imagenet | 100     | 64    | 11,227,812 |
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
        stem: Stem = "cifar",
        norm: Norm = "batch",
        width: int = 64,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(
            blocks=(2, 2, 2, 2),
            projection=True,
            num_classes=num_classes,
            stem=stem,
            norm=norm,
            width=width,
            channels_last=channels_last,
            optimizer=optimizer,
        )


class ResNet34(ResNet):
    """ResNet-34 for colour images: stages of three, four, six and three residual blocks.

    With the stem `imagenet` and 1000 outputs it has 21,797,672 parameters, with `cifar` and ten 21,282,122; at width 64 there
    are 17,024 running statistics.

    Args:
        num_classes: number of outputs C, at least 1.
        stem: as for `ResNet18`.
        norm: as for `ResNet18`.
        width: channels of the first stage, at least 1; later stages have 2, 4 and 8 times as many.
        channels_last: as for `ResNet18`.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> ResNet34(width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        num_classes: int = 10,
        stem: Stem = "cifar",
        norm: Norm = "batch",
        width: int = 64,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(
            blocks=(3, 4, 6, 3),
            projection=True,
            num_classes=num_classes,
            stem=stem,
            norm=norm,
            width=width,
            channels_last=channels_last,
            optimizer=optimizer,
        )


class ResNet20(ResNet):
    """ResNet-20 for colour images as small as CIFAR's: three stages of three residual blocks, of 16, 32 and 64 channels.

    Where a block changes the shape, its shortcut takes every second pixel and adds channels of zeros, so that it has no
    parameters. With ten classes there are 269,722 in all (the paper says .27 million), with a hundred 275,572, and 1,376
    running statistics.

    Args:
        num_classes: number of outputs C, at least 1.
        norm: as for `ResNet18`.
        width: channels of the first stage, at least 1; later stages have 2 and 4 times as many.
        channels_last: as for `ResNet18`.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> ResNet20()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    recordable = True

    def __init__(
        self,
        *,
        num_classes: int = 10,
        norm: Norm = "batch",
        width: int = 16,
        channels_last: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    ) -> None:
        super().__init__(
            blocks=(3, 3, 3),
            projection=False,
            num_classes=num_classes,
            stem="cifar",
            norm=norm,
            width=width,
            channels_last=channels_last,
            optimizer=optimizer,
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions added to the input, which is fitted to them where shapes differ.

    Args:
        before: channels of the input.
        after: channels of the output.
        stride: of the first convolution.
        norm: kind of normalisation.
        projection: whether a 1 x 1 convolution fits the input; otherwise pixels are skipped, and channels of zeros added.
    """

    def __init__(self, before: int, after: int, *, stride: int, norm: Norm, projection: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = _norm(norm, after)
        self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1, bias=False)
        self.bn2 = _norm(norm, after)
        self.downsample: nn.Module | None = None
        if stride == 1 and before == after:
            return
        if projection:
            convolution = nn.Conv2d(before, after, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, _norm(norm, after))
        else:
            self.downsample = SkipAndPad(stride, after - before)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, before, h, w) to (b, after, h / stride, w / stride), rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class SkipAndPad(nn.Module):
    """Every `stride`-th pixel of rows and columns, and `more` channels of zeros behind those that there are."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, c, h, w) to (b, c + more, h / stride, w / stride), rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


def _norm(kind: Norm, channels: int) -> nn.BatchNorm2d | nn.GroupNorm:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(math.gcd(NUM_GROUPS, channels), channels)
