"""CIFAR-10: 60,000 colour images of 32 x 32 pixels in ten classes, held as bytes and augmented batch by batch.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto, 2009,
https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fl_lightning.data.colour_pictures import ColourPictures
from fl_lightning.data.encoded_pictures import read_pictures
from fl_lightning.data.standardize import Standardize

SHAPE = (3, 32, 32)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

normalize = Standardize(MEAN, STD)
"""Bytes (b, 3, h, w) to model input, standardised by channel with CIFAR-10's mean and deviation."""


class CIFAR10(ColourPictures):
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
    hub_name = "uoft-cs/cifar10"
    subfolder = "plain_text"
    columns = ("img", "label")
    shape = SHAPE
    num_classes = 10
    standardize = normalize


def read_parquet(folder: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Images and classes of one split from Parquet files in `folder`.

    Args:
        folder: holds `<split>.parquet`, `<split>-*.parquet` or `plain_text/<split>-*.parquet`.
        split: "train" or "test".

    Returns:
        Images (n, 3, 32, 32) uint8 and classes (n,) int64.
    """
    return read_pictures(folder, split, column="img", shape=SHAPE)
