"""Tasks of colour pictures in Parquet files, held as bytes and augmented batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.data.encoded_pictures import decode, hub_table, label_names, read_tables, whole_numbers
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.parquet import parquet_files
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.data.standardize import Standardize

if TYPE_CHECKING:
    import pyarrow


class ColourPictures(FederatedDataModule):
    """A task of colour pictures (b, 3, h, w) in Parquet files; a subclass says where, of which size and of what.

    Args:
        partition: how training samples are dealt out to clients.
        path: the folder of the files; None fetches them from the Hugging Face Hub, once per machine.
        augment: whether training images are randomly cropped and flipped.
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.
    """

    hub_name: ClassVar[str]
    """Where the data set lives on the Hugging Face Hub."""

    subfolder: ClassVar[str]
    """Of a copy of that repository, in which its Parquet files lie."""

    splits: ClassVar[tuple[str, str]] = ("train", "test")
    """What the repository calls the samples for training and for testing."""

    columns: ClassVar[tuple[str, ...]]
    """Names of pictures, of classes and, where there are any, of keys."""

    shape: ClassVar[tuple[int, int, int]]
    """Channels, rows and columns of a picture."""

    num_classes: ClassVar[int]
    standardize: ClassVar[Standardize]

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
        self.written_names: tuple[str, ...] = ()  # of classes, as the tables have them

    def prepare_data(self) -> None:
        for split in self.splits:
            if self.path is None:
                hub_table(self.hub_name, split)
            else:
                parquet_files(self.path, split, self.subfolder)

    def load(self) -> Task:
        (pictures, classes, *keys), (tests, of_tests, *_) = (self.read(split) for split in self.splits)
        if not self.class_names and len(self.written_names) == self.num_classes:
            self.class_names = self.called(self.written_names)
        train = TensorSamples(pictures, classes, augment=crop_and_flip if self.augment else None, prepare=self.standardize)
        test = TensorSamples(tests, of_tests, prepare=self.standardize)
        return Task(train, test, num_classes=self.num_classes, keys=keys[0] if keys else None)

    def read(self, split: str) -> list[Tensor]:
        """Pictures (n, 3, h, w) uint8, classes (n,) int64 and, where the data have them, keys (n,) int64 of one split."""
        column, label, *keys = self.columns
        parts = []
        for table, name in self._tables(split):
            pictures, classes = decode(table, name, column=column, label=label, shape=self.shape)
            self.written_names = self.written_names or label_names(table, label)
            parts.append((pictures, classes, *(whole_numbers(table, name, key) for key in keys)))
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def called(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What classes are called that have these names in the tables."""
        return names

    def _tables(self, split: str) -> Iterator[tuple[pyarrow.Table, str]]:
        if self.path is None:
            yield hub_table(self.hub_name, split), f"{self.hub_name}, split {split}"
        else:
            yield from read_tables(self.path, split, self.columns, self.subfolder)
