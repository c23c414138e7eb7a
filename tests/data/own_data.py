"""What tests of data sets that users give share."""

from typing import Any

import datasets
import torch
from torch.utils.data import Dataset

from fl_lightning import FederatedDataModule
from fl_lightning.data import IID

N = 40
X = torch.randn(N, 2, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 4

NAMES = ["ant", "bee", "cat", "dog"]


class Made(Dataset):
    """Samples by a function of their number; attributes as given."""

    def __init__(self, make: Any, n: int = N, **attributes: Any) -> None:
        self.make, self.n, self.reads = make, n, 0
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.make(index)


def number(index: int) -> int:
    return int(Y[index])


def taken(train: Any, test: Any = None, **settings: Any) -> Any:
    """The data module, set up."""
    test = train if test is None else test
    data = FederatedDataModule.from_datasets(train, test, partition=IID(num_clients=1), **settings)
    data.setup("fit")
    return data


def batch(data: Any, count: int = 3) -> Any:
    return data.train.batch(torch.arange(count))


def pairs(**attributes: Any) -> Made:
    return Made(lambda i: (X[i], number(i)), **attributes)


def classes(names: list[str]) -> datasets.Features:
    return datasets.Features({"x": datasets.List(datasets.Value("float32")), "label": datasets.ClassLabel(names=names)})


class PassesOn(Dataset):
    """Some samples of another data set, of which it has all other attributes."""

    def __init__(self, base: Any, rows: list[int]) -> None:
        self.base, self.rows = base, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.base[self.rows[index]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["base"], name)
