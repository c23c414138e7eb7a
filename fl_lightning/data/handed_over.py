"""What is no map-style data set, told before anything is read of it, with what to hand over in its place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError, enumerated, in_one_line


def check_map_style(dataset: Any, whose: str) -> None:
    """Raise `ConfigurationError` unless this is a data set of known length that gives any sample by its number."""
    remedy = _remedy(dataset)
    if remedy is None and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        remedy = "give a data set with __len__ and __getitem__ that yields (input, class) pairs or mappings"
    if remedy is not None:
        raise ConfigurationError(f"the {whose} data are {_name(dataset)}, no map-style data set; {remedy}")
    try:
        length = len(dataset)
    except Exception as error:  # whatever a data set of the user's may do
        raise ConfigurationError(
            f"the {whose} data, {_name(dataset)}, have no length ({in_one_line(error)}); give a data set with __len__"
        ) from error
    if length == 0:
        raise ConfigurationError(f"the {whose} data set is empty; give one with at least one sample")


def _remedy(dataset: Any) -> str | None:
    """What to hand over in place of this, where it is of a kind that is known to be none."""
    if isinstance(dataset, Samples):
        return None
    if isinstance(dataset, type):
        return f"give an instance, {dataset.__name__}(...), in place of the class"
    if isinstance(dataset, DataLoader):
        return "give the data set that it reads, its attribute dataset; clients' batches are made from model.local.batch_size"
    if isinstance(dataset, IterableDataset):
        return "samples are dealt out by their number; load them into a list, or take the data without streaming"
    if isinstance(dataset, (str, bytes)) or hasattr(dataset, "__fspath__"):
        return "give the data set itself, not the place of its files"
    if isinstance(dataset, (Tensor, np.ndarray)):
        return "give torch.utils.data.TensorDataset(inputs, classes)"
    if (
        isinstance(dataset, tuple)
        and len(dataset) == 2
        and all(isinstance(part, (Tensor, np.ndarray, list)) for part in dataset)
    ):
        return "give torch.utils.data.TensorDataset(inputs, classes), both as tensors"
    if isinstance(dataset, Mapping):
        keys = enumerated(sorted(map(str, dataset)))
        return f"it has the entries {keys}; give one of them, such as its split for training, or a data set made from them"
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(dataset, (pandas.DataFrame, pandas.Series)):
        return "give TensorDataset(torch.tensor(table[inputs].to_numpy()), torch.tensor(table[label].to_numpy()))"
    if hasattr(dataset, "train_dataloader"):
        return "give the data sets that its loaders read"
    return None


def _name(dataset: Any) -> str:
    return f"the class {dataset.__name__}" if isinstance(dataset, type) else f"of type {type(dataset).__name__}"
