"""What one sample of a data set looks like: where its class is and where its input, and what can be joined into batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fl_lightning.data.pictures import to_tensor
from fl_lightning.errors import ConfigurationError, enumerated

TARGET_KEYS = ("label", "labels", "target", "targets", "y")
"""Names under which a sample that is a mapping may carry its class."""

Key = str | int
"""The name of an entry of a mapping, or the place of one of a tuple."""


def class_entry(sample: Any, target_key: Key | None) -> Key:
    """Where the class is: of a pair in second place, of a mapping under one of `TARGET_KEYS`, else where `target_key` says.

    Raises:
        ConfigurationError: if there is no such entry, or it cannot be told which one it is.
    """
    if isinstance(sample, Mapping):
        found = [key for key in TARGET_KEYS if key in sample] if target_key is None else [target_key]
        entries = enumerated(sorted(map(str, sample)))
        if len(found) > 1:
            raise ConfigurationError(
                f"samples have the entries {entries}, of which any of {', '.join(map(str, found))} may be the class; say "
                "which one with target_key="
            )
        if not found or found[0] not in sample:
            raise ConfigurationError(
                f"samples have the entries {entries}, none of which is {target_key or 'the class'}; name it with target_key="
            )
        return found[0]
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        raise ConfigurationError(
            "samples must be (input, class) pairs or mappings with a class entry, got "
            f"{_kind(sample)}; wrap the data set in one that gives such samples"
        )
    if target_key is None and len(sample) != 2:
        raise ConfigurationError(
            f"samples have {len(sample)} parts ({enumerated(map(_kind, sample))}), not two; say which is the class with "
            "target_key=, counted from 0, or wrap the data set in one that gives (input, class)"
        )
    place = 1 if target_key is None else target_key
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(sample):
        raise ConfigurationError(
            f"target_key is {target_key!r}, but samples are tuples of {len(sample)}; give a place from 0 to {len(sample) - 1}"
        )
    return place


def input_entry(sample: Any, target: Key) -> Key | None:
    """Where the input is, if there is but one entry beside the class that is a tensor."""
    keys = list(sample) if isinstance(sample, Mapping) else range(len(sample))
    found = [key for key in keys if key != target and isinstance(sample[key], Tensor)]
    return found[0] if len(found) == 1 else None


def replaced(sample: Any, entries: dict[Key, Any]) -> Any:
    """The sample with other entries in place of its own; mappings become dicts, tuples with names stay what they are."""
    if isinstance(sample, Mapping):
        return {**sample, **entries}
    parts = [entries.get(place, part) for place, part in enumerate(sample)]
    return type(sample)(*parts) if hasattr(sample, "_fields") else tuple(parts)


def like(stated: Any, label: Tensor) -> Any:
    """A target as a tensor where the data set states one, else as a number or a list, as functions that join samples expect."""
    return label if isinstance(stated, Tensor) else label.tolist()


def plain(sample: Any) -> Any:
    """The sample with pictures, arrays and lists of numbers as tensors, as torch would join a list entry by entry.

    Floats in lists become torch's default dtype, whole numbers int64. Lists that are no regular array stay what they are.
    """
    keys = list(sample) if isinstance(sample, Mapping) else range(len(sample))
    changed = {key: _as_tensor(sample[key]) for key in keys if isinstance(sample[key], (list, Image.Image, np.ndarray))}
    return replaced(sample, changed) if changed else sample


def _as_tensor(value: Any) -> Any:
    if isinstance(value, Image.Image):
        return to_tensor(value)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value) if value.dtype.kind in "biuf" else value
    leaf = value
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    if not isinstance(leaf, (int, float, np.number)):
        return value
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return value
    if array.dtype.kind not in "biuf":
        return value
    return torch.from_numpy(array).to(torch.get_default_dtype() if array.dtype.kind == "f" else torch.int64)


def kinds(sample: Any, target: Key) -> dict[Key, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of its entries that are tensors, beside the class."""
    keys = list(sample) if isinstance(sample, Mapping) else range(len(sample))
    tensors = {key: sample[key] for key in keys if key != target and isinstance(sample[key], Tensor)}
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}


def form(sample: Any) -> Any:
    """What samples must have in common to stand in one batch: the entries' names or number, and tensors' shapes and dtypes."""
    if isinstance(sample, Mapping):
        return {key: form(value) for key, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(map(form, sample))
    if isinstance(sample, (Tensor, np.ndarray)) and sample.ndim:
        return f"{torch.as_tensor(sample).dtype} {tuple(sample.shape)}"
    return "text" if isinstance(sample, str) else "number"


def _kind(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
