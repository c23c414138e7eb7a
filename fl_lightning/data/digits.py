"""Handwritten digits that scikit-learn ships: 1,797 images of 8 x 8 pixels, for runs of seconds without a download.

The data are the test part of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.edge_pool import LoadedPool
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.partition import Partition
from fl_lightning.data.root import RootSet
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator

MEAN_INK = 0.3
"""What is subtracted from pixels in [0, 1]: their mean over the data set, rounded."""


class Digits(FederatedDataModule):
    """The ten digits, with inputs (b, 1, 8, 8) float32 in [-0.3, 0.7] of mean about 0.

    The test set takes `test_fraction` of every class and is the same whatever the seed.

    Args:
        partition: how training samples are dealt out to clients.
        test_fraction: share of every class that is held out for testing, in (0, 1).
        eval_batch_size: samples per evaluation batch, at least 1.
        seed: the experiment's seed; the partition is drawn from it.
        root: samples that the server keeps for itself; see `FederatedDataModule`.

    Example:
        >>> data = Digits(IID(num_clients=20))
        >>> data.setup("fit")
        >>> len(data.clients), len(data.train)
        (20, 1438)
    """

    def __init__(
        self,
        partition: Partition,
        *,
        test_fraction: float = 0.2,
        eval_batch_size: int = 1000,
        seed: int = 0,
        root: RootSet | None = None,
    ) -> None:
        super().__init__(partition, eval_batch_size=eval_batch_size, seed=seed, root=root)
        _check_fraction("data.test_fraction", test_fraction)
        self.test_fraction = test_fraction

    def load(self) -> Task:
        images, targets = _digits()
        train, test = _split(self.test_fraction)
        return Task(TensorSamples(images[train], targets[train]), TensorSamples(images[test], targets[test]), num_classes=10)


class RotatedDigits(LoadedPool):
    """Images of one digit on their side, as an edge-case pool for `Digits`.

    Upright digits are all that clients hold, so a turned one is rare, yet a person would still read it. Training images
    of the pool are turned training images of `Digits`, and test images turned test images, so nothing leaks.

    Args:
        digit: the digit whose images are turned, 0 to 9; it is also their true label.
        turns: quarter turns anticlockwise, 1 to 3.
        test_fraction: must equal that of `Digits`, or images cross from its test set into this pool's training part.

    Example:
        >>> pool = RotatedDigits(digit=1)
        >>> len(pool.train()), len(pool.test())
        (146, 36)
    """

    def __init__(self, *, digit: int = 1, turns: int = 1, test_fraction: float = 0.2) -> None:
        if not 0 <= digit <= 9:
            raise ConfigurationError(f"pool.digit must be from 0 to 9, got {digit}")
        if not 1 <= turns <= 3:
            raise ConfigurationError(f"pool.turns must be 1, 2 or 3 quarter turns, got {turns}")
        _check_fraction("pool.test_fraction", test_fraction)
        self.label = digit
        self.turns = turns
        self.test_fraction = test_fraction

    def load(self) -> tuple[TensorSamples, TensorSamples]:
        images, targets = _digits()
        train, test = (part[targets[part] == self.label] for part in _split(self.test_fraction))
        return self._turned(images[train], targets[train]), self._turned(images[test], targets[test])

    def _turned(self, images: Tensor, targets: Tensor) -> TensorSamples:
        return TensorSamples(images.rot90(self.turns, dims=(2, 3)).contiguous(), targets)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) float32 and classes (1797,) int64."""
    package = find_spec("sklearn")  # which takes most of a second to import, for the sake of a file
    assert package is not None, "fl_lightning requires it"
    assert package.submodule_search_locations, "it is a package"
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    pixels, targets = table[:, :-1], table[:, -1]  # (1797, 64) amounts of ink from 0 to 16
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - MEAN_INK
    return images, torch.as_tensor(targets, dtype=torch.int64)


@cache
def _split(test_fraction: float) -> tuple[Tensor, Tensor]:
    """Positions of training and test images; the same share of every class is held out."""
    targets = _digits()[1]
    train, test = [], []
    for label in range(10):
        indices = torch.nonzero(targets == label).squeeze(1)
        held_out = round(test_fraction * len(indices))
        if not 0 < held_out < len(indices):
            raise ConfigurationError(
                f"test_fraction {test_fraction} leaves digit {label} with {len(indices) - held_out} training and "
                f"{held_out} test images; both must be at least 1, as with 0.2"
            )
        # The split belongs to the data, so it does not depend on the experiment's seed.
        indices = indices[torch.randperm(len(indices), generator=generator(0, "digits split", label))]
        test.append(indices[:held_out])
        train.append(indices[held_out:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def _check_fraction(name: str, value: float) -> None:
    if not (math.isfinite(value) and 0 < value < 1):
        raise ConfigurationError(f"{name} must lie between 0 and 1, got {value}; 0.2 is usual")
