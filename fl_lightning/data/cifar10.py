"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes, held as bytes and augmented batch by batch.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto, 2009,
https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.encoded_pictures import decode, hub_table, read_pictures
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.parquet import parquet_files
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet

HUB_NAME = "uoft-cs/cifar10"
"""Where the data set lives on the Hugging Face Hub."""

SHAPE = (3, 32, 32)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
PADDING = 4


class CIFAR10(FederatedDataModule):
    """CIFAR-10, with model inputs (b, 3, 32, 32) float32, normalised by channel.

    Args:
        partition: how training samples are dealt out to clients.
        path: a folder that holds `train.parquet` and `test.parquet`, or a copy of the Hub repository with
            `plain_text/train-*.parquet` and `plain_text/test-*.parquet`; columns `img` and `label`. None fetches
            "uoft-cs/cifar10" from the Hugging Face Hub, once per machine.
        augment: whether training images are randomly cropped and flipped.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or the Hub cannot be reached.
    """

    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(
        self,
        partition: Partition,
        *,
        path: str | None = None,
        augment: bool = True,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        self.path = path
        self.augment = augment

    def prepare_data(self) -> None:
        for split in ("train", "test"):
            if self.path is None:
                hub_table(HUB_NAME, split)
            else:
                parquet_files(self.path, split)

    def load(self) -> Task:
        parts = []
        for split in ("train", "test"):
            if self.path is None:
                images, targets = decode(hub_table(HUB_NAME, split), f"{HUB_NAME}, split {split}", column="img", shape=SHAPE)
            else:
                images, targets = read_parquet(self.path, split)
            augment = crop_and_flip if self.augment and split == "train" else None
            parts.append(TensorSamples(images, targets, augment=augment, prepare=normalize))
        return Task(parts[0], parts[1], num_classes=10)


def normalize(images: Tensor) -> Tensor:
    """Bytes to model input: scaled to [0, 1], then standardised by channel with CIFAR-10's mean and deviation.

    Args:
        images: (b, 3, h, w) uint8.

    Returns:
        (b, 3, h, w) float32.
    """
    scale, shift = _scale_and_shift(images.device)
    return torch.addcmul(shift, images.float(), scale)


@cache
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand per channel, (3, 1, 1) float32 each; made once per device, as every copy stalls a GPU."""
    with torch.inference_mode(False):  # evaluation may ask first, but training must be able to use them in backward
        mean, std = torch.tensor([MEAN, STD], dtype=torch.float64).view(2, 3, 1, 1)
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


@dataclass(frozen=True)
class CropAndFlip:
    """Shift every image by up to 4 pixels in each direction, filling with black, and mirror it with probability 1/2.

    This is a random crop from the image padded by 4 pixels, then a random horizontal flip. Raw images are padded, so
    the border is black, not the mean colour. Any two of these are equal, so that copies of data sets can be joined.
    """

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        """Offsets from the top and from the left, and whether to mirror, of b images: (3, b) int64."""
        offsets = torch.randint(0, 2 * PADDING + 1, (2, b), generator=generator)
        return torch.cat([offsets, torch.randint(0, 2, (1, b), generator=generator)])

    def apply(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Images (b, c, h, w) of any dtype on any device to new ones of the same kind."""
        b, _, h, w = inputs.shape
        top, left, flip = drawn.to(inputs.device, non_blocking=True)
        padded = F.pad(inputs, (PADDING,) * 4)
        windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (b, c, 9, 9, h, w), a view
        cropped = windows[torch.arange(b, device=inputs.device), :, top, left]
        return torch.where(flip.bool().view(b, 1, 1, 1), cropped.flip(3), cropped)

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw for images from a CPU generator, and apply."""
        return self.apply(inputs, self.draw(len(inputs), generator))


crop_and_flip = CropAndFlip()


def read_parquet(folder: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Images and classes of one split from Parquet files in `folder`.

    Args:
        folder: holds `<split>.parquet`, `<split>-*.parquet` or `plain_text/<split>-*.parquet`.
        split: "train" or "test".

    Returns:
        Images (n, 3, 32, 32) uint8 and classes (n,) int64.
    """
    return read_pictures(folder, split, column="img", shape=SHAPE)
