"""Tiny ImageNet: 110,000 colour images of 64 x 64 pixels in 200 of ImageNet's classes.

Y. Le, X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS231N, 2015,
http://cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf. ImageNet: J. Deng, W. Dong, R. Socher, L.-J. Li, K. Li, L.
Fei-Fei, "ImageNet: A Large-Scale Hierarchical Image Database", CVPR 2009.
"""

from __future__ import annotations

from pathlib import Path

from fl_lightning.data.colour_pictures import ColourPictures
from fl_lightning.data.standardize import Standardize
from fl_lightning.errors import ConfigurationError, in_one_line


class TinyImageNet(ColourPictures):
    """Tiny ImageNet, with model inputs (b, 3, 64, 64) float32, normalised by channel; 500 training images of each class.

    The 10,000 images for validation are the test set, as those for testing were never published with their classes. Some images
    are grey, and become colour images. Classes are numbered in the order of their WordNet names, such as n01443537, and called
    so where the files have these; where `path` also holds the original's `words.txt`, by its first word for each, such as
    goldfish, unless that stands for two. All images together take 1.4 GB of memory.

    Args:
        partition: how training samples are dealt out to clients.
        path: a folder that holds `train.parquet` and `valid.parquet`, or a copy of the Hub repository with
            `data/train-*.parquet` and `data/valid-*.parquet`; columns `image` and `label`. None fetches
            "zh-plus/tiny-imagenet" from the Hugging Face Hub, once per machine.
        augment: whether training images are randomly cropped, after padding by 4 pixels, and flipped.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or the Hub cannot be reached, or `words.txt`
            is no text.
    """

    hub_name = "zh-plus/tiny-imagenet"
    subfolder = "data"
    splits = ("train", "valid")
    columns = ("image", "label")
    shape = (3, 64, 64)
    num_classes = 200
    standardize = Standardize((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))

    def called(self, names: tuple[str, ...]) -> tuple[str, ...]:
        words = {} if self.path is None else read_words(Path(self.path) / "words.txt")
        first = [words.get(name, name) for name in names]
        return tuple(name if first.count(word) > 1 else word for name, word in zip(names, first, strict=True))


def read_words(file: Path) -> dict[str, str]:
    """The first word for each WordNet name in lines `n01443537<tab>goldfish, Carassius auratus`; nothing without a file.

    Raises:
        ConfigurationError: it cannot be read as text.
    """
    if not file.exists():
        return {}
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read as text: {in_one_line(error)}; mend it, or move it away") from error
    pairs = (line.partition("\t") for line in lines)
    return {name.strip(): word for name, _, words in pairs if (word := words.partition(",")[0].strip())}
