"""What must be alike on all ranks, as each of them loads and deals out data by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.module import FederatedDataModule

COMPARED = 1000
"""Samples of each set that ranks compare, of those in tensors; others may draw when they are read."""


def to_be_alike(data: FederatedDataModule) -> dict[str, Tensor]:
    """What decides who trains on what, by what it is in words, after the data's `setup`."""
    assert data.task is not None, "setup() has not run"
    sets = {"training": data.task.train, "test": data.task.test}
    some = {name: torch.arange(0, len(held), -(-len(held) // COMPARED)) for name, held in sets.items()}
    distinct = {id(indices): indices for indices in data.clients}  # as clients may share all samples
    return {
        **{f"the {name} samples' classes": held.targets for name, held in sets.items()},
        **{f"the {name} samples": held.raw(some[name]) for name, held in sets.items() if isinstance(held, TensorSamples)},
        "the clients' numbers of samples": data.sizes,
        "the samples of the clients": torch.cat(list(distinct.values())),
    }
