"""MNIST and the tasks made in its image: grey pictures of 28 x 28 pixels, bright on black, held as bytes.

MNIST: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-Based Learning Applied to Document Recognition", Proceedings of the
IEEE 86(11), 1998. Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747. EMNIST: G. Cohen, S. Afshar, J. Tapson, A. van Schaik, "EMNIST: an
Extension of MNIST to Handwritten Letters", 2017, https://arxiv.org/abs/1702.05373.
"""

from __future__ import annotations

import string
from abc import abstractmethod
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.encoded_pictures import decode, hub_table, read_pictures
from fl_lightning.data.idx import idx_file, read_idx
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.parquet import found_files, parquet_files
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.standardize import Standardize
from fl_lightning.errors import ConfigurationError

SIDE = 28
SPLITS = ("train", "test")

Split = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]

UPPER, LOWER = tuple(string.ascii_uppercase), tuple(string.ascii_lowercase)
DIGITS = tuple(string.digits)
MERGED = (*DIGITS, *UPPER, *"abdefghnqrt")
"""Without the small letters that look like their capitals."""

EMNIST_CLASSES: dict[Split, tuple[str, ...]] = {
    "byclass": (*DIGITS, *UPPER, *LOWER),
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": LOWER,
    "digits": DIGITS,
    "mnist": DIGITS,
}


class GreyPictures(FederatedDataModule):
    """A task of grey pictures (b, 1, 28, 28) in IDX or Parquet files; a subclass says where and of what.

    Args:
        partition: how training samples are dealt out to clients.
        path: the folder of the files; None fetches them from the Hub where the task is there.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.
    """

    hub: tuple[str, str] | None = None
    """Repository on the Hugging Face Hub and the folder of its Parquet files."""

    standardize = Standardize(0.0, 1.0)

    def __init__(
        self,
        partition: Partition,
        *,
        path: str | None = None,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        self.path = path

    @abstractmethod
    def idx_names(self, split: str) -> tuple[str, str]:
        """The names of the IDX files with pictures and with classes of "train" or "test"."""

    def prepare_data(self) -> None:
        for split in SPLITS:
            if self.path is None:
                hub_table(self._hub()[0], split)
            elif (folder := Path(self.path)) and not self._idx(folder, split):
                parquet_files(folder, split, self._subfolder())

    def load(self) -> Task:
        train, test = (TensorSamples(*self.read(split), prepare=self.standardize) for split in SPLITS)
        return Task(train, test, num_classes=len(self.class_names))

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        """Pictures (n, 1, 28, 28) uint8, upright, and classes (n,) int64 from 0, of "train" or "test"."""
        shape = (1, SIDE, SIDE)
        if self.path is None:
            name = self._hub()[0]
            return decode(hub_table(name, split), f"{name}, split {split}", column="image", shape=shape)
        folder = Path(self.path)
        if (files := self._idx(folder, split)) is None:
            return read_pictures(folder, split, column="image", shape=shape, subfolder=self._subfolder())
        pictures, classes = read_idx(files[0], 3), read_idx(files[1], 1)
        if pictures.shape[1:] != (SIDE, SIDE):
            raise ConfigurationError(f"{files[0]} holds pictures of {pictures.shape[1]} x {pictures.shape[2]}, not 28 x 28")
        if len(pictures) != len(classes):
            raise ConfigurationError(
                f"{files[0]} holds {len(pictures)} pictures, but {files[1]} {len(classes)} classes; fetch both again"
            )
        return torch.from_numpy(pictures.copy()).unsqueeze(1), torch.from_numpy(classes.astype("int64"))

    def _hub(self) -> tuple[str, str]:
        if self.hub is None:
            raise ConfigurationError(f"data.path must name the folder of the files of {type(self).__name__}, got None")
        return self.hub

    def _subfolder(self) -> str:
        """Where Parquet files may lie in the folder."""
        return self.hub[1] if self.hub else "data"

    def _idx(self, folder: Path, split: str) -> tuple[Path, Path] | None:
        """Pictures and classes in IDX files; None where there is neither.

        Raises:
            ConfigurationError: one of both is missing, or both, where the other split has them and Parquet has not this one.
        """
        names = self.idx_names(split)
        pictures, classes = (idx_file(folder, name) for name in names)
        if pictures is None and classes is None:
            others = [name for other in SPLITS if other != split for name in self.idx_names(other)]
            if any(idx_file(folder, name) for name in others) and not found_files(folder, split, self._subfolder()):
                raise ConfigurationError(f"{folder} holds {others[0]}, but no {names[0]} and {names[1]}; fetch these as well")
            return None
        if pictures is None or classes is None:
            raise ConfigurationError(f"{folder} holds one of {names[0]} and {names[1]}; give a folder with both, or compressed")
        return pictures, classes


class MNIST(GreyPictures):
    """Handwritten digits: 60,000 training and 10,000 test pictures, inputs (b, 1, 28, 28) float32 of mean 0 and deviation 1.

    Ink is bright, paper 0, as in all of this kind; LEAF's FEMNIST is the other way round.

    Args:
        partition: how training samples are dealt out to clients.
        path: a folder with the four IDX files (`train-images-idx3-ubyte` and so on, also with `.gz`), or with `train.parquet`
            and `test.parquet` (columns `image` and `label`), or a copy of the repository on the Hub. None fetches
            "ylecun/mnist" from the Hugging Face Hub, once per machine.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or the Hub cannot be reached.

    Triggers are written into bytes: white is 255.
    """

    class_names = DIGITS
    hub = ("ylecun/mnist", "mnist")
    standardize = Standardize(0.1307, 0.3081)

    def idx_names(self, split: str) -> tuple[str, str]:
        part = {"train": "train", "test": "t10k"}[split]
        return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


class FashionMNIST(MNIST):
    """Articles of clothing: 60,000 training and 10,000 test pictures in ten classes, in files named as MNIST's are.

    Args:
        partition: how training samples are dealt out to clients.
        path: a folder with the four IDX files, or with Parquet files, as for `MNIST`. None fetches
            "zalando-datasets/fashion_mnist" from the Hugging Face Hub, once per machine.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged, or the Hub cannot be reached.

    MNIST's files have the same names and sizes, so that nothing but their pictures tells them from these.
    """

    class_names = (
        *("T-shirt", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    )
    hub = ("zalando-datasets/fashion_mnist", "fashion_mnist")
    standardize = Standardize(0.2860, 0.3530)


class EMNIST(GreyPictures):
    """Handwritten characters by NIST's own files, which hold every picture transposed; inputs as those of `MNIST`.

    | split    | classes | training | test    |
    | -------- | ------- | -------- | ------- |
    | byclass  | 62      | 697,932  | 116,323 |
    | bymerge  | 47      | 697,932  | 116,323 |
    | balanced | 47      | 112,800  | 18,800  |
    | letters  | 26      | 124,800  | 20,800  |
    | digits   | 10      | 240,000  | 40,000  |
    | mnist    | 10      | 60,000   | 10,000  |

    Classes are digits, then capitals, then small letters; `bymerge` and `balanced` have 11 of these, `letters` takes both
    cases for one.

    Args:
        partition: how training samples are dealt out to clients.
        path: a folder with `emnist-<split>-train-images-idx3-ubyte` and so on, also with `.gz`, as in the archive
            https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip, or with `train.parquet` and `test.parquet` (columns `image`
            and `label`) of the same split.
        split: which of the six.
        transposed: whether pictures lie in the files as NIST has them, with rows and columns exchanged; false for copies in
            which they stand upright.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Raises:
        ConfigurationError: before training, if the files are not there or damaged.

    Nothing in these files names the writer. Pixels' mean and deviation are those of `byclass`, from memory, for all splits.
    """

    standardize = Standardize(0.1736, 0.3317)

    def __init__(
        self,
        partition: Partition,
        *,
        path: str,
        split: Split = "byclass",
        transposed: bool = True,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, path=path, eval_batch_size=eval_batch_size, seed=seed, root=root)
        if split not in EMNIST_CLASSES:
            raise ConfigurationError(f"data.split must be one of {', '.join(EMNIST_CLASSES)}, got {split!r}")
        if not isinstance(transposed, bool):
            raise ConfigurationError(f"data.transposed must be true or false, got {transposed!r}")
        self.split, self.transposed = split, transposed
        self.class_names = EMNIST_CLASSES[split]

    def idx_names(self, split: str) -> tuple[str, str]:
        return f"emnist-{self.split}-{split}-images-idx3-ubyte", f"emnist-{self.split}-{split}-labels-idx1-ubyte"

    def read(self, split: str) -> tuple[Tensor, Tensor]:
        pictures, classes = super().read(split)
        if self.transposed:
            pictures = pictures.transpose(2, 3).contiguous()
        if self.split != "letters":
            return pictures, classes
        if len(classes) and not (classes.min() >= 1 and classes.max() <= len(LOWER)):
            raise ConfigurationError(
                f"the {split} files of letters in {self.path} hold classes from {int(classes.min())} to {int(classes.max())}, "
                f"but they count from 1 to {len(LOWER)}; fetch them again, or set data.split to what they are of"
            )
        return pictures, classes - 1
