"""Which class belongs to which row of an evaluation batch.

A function of the user's that joins samples may sort them, as is usual where they are padded, or leave some out. So predictions
are held against the classes that the batch itself carries, and these against those of the samples it was made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.map_samples import MapSamples
from fl_lightning.data.sample_form import TARGET_KEYS
from fl_lightning.errors import ConfigurationError


def classes_in(batch: Any, samples: Samples, indices: Tensor) -> Tensor:
    """The class of each row of a batch, (b,) int64; where samples have not one class, their targets (b, ...).

    Args:
        batch: what `samples.batch(indices)` gave.
        samples: the evaluation set.
        indices: (b,) int64 positions in it.

    Raises:
        ConfigurationError: if the batch carries no classes, or others than its samples have.
    """
    expected = samples.targets[indices.to(samples.targets.device)]
    if keeps_order(samples):
        return expected
    if not samples.outcome.one_class:
        for value in carried(batch, samples):
            if isinstance(value, Tensor) and torch.equal(value.to(expected), expected):
                return expected
        raise ConfigurationError(
            f"the evaluation batch does not carry the targets of its {len(expected)} samples, {tuple(expected.shape)}, in "
            "their order, so that Acc cannot be told; join samples into (inputs, targets) as they come"
        )
    found = [classes for value in carried(batch, samples) if (classes := as_classes(value)) is not None]
    wanted = expected.cpu()
    if any(torch.equal(classes, wanted) for classes in found):
        return expected
    for classes in found:
        if torch.equal(classes.sort().values, wanted.sort().values):
            return classes.to(expected.device)
    joined = getattr(samples, "collate_fn", type(samples).batch)
    name = getattr(joined, "__qualname__", type(joined).__name__)
    if not found:
        saying = "carries no classes as a tensor (b,) of whole numbers"
    elif all(len(classes) != len(wanted) for classes in found):
        saying = f"has {len(found[0])} rows"
    else:
        saying = "carries other classes than these samples have"
    raise ConfigurationError(
        f"the evaluation batch that {name} makes of {len(wanted)} samples {saying}, so that Acc cannot be told; join all "
        "samples, in any order, into (inputs, classes) or a mapping with the classes under the name that samples have for them"
    )


def keeps_order(samples: Samples) -> bool:
    """Whether batches are known to hold their samples in the order of their indices."""
    if isinstance(samples, MapSamples):
        return samples.collate_fn is default_collate
    if isinstance(samples, TensorSamples):
        return type(samples).batch is TensorSamples.batch
    return type(samples).__module__.partition(".")[0] == "fl_lightning"


def carried(batch: Any, samples: Samples) -> Iterator[Any]:
    """What may be a batch's classes: first what has the name or place that it has in samples, then the rest, also of parts."""
    key = getattr(samples, "target_key", 1)
    if isinstance(batch, Mapping):
        yield from (batch[name] for name in dict.fromkeys((key, *TARGET_KEYS)) if name in batch)
        parts = list(batch.values())
    elif isinstance(batch, (tuple, list)):
        yield from batch[key : key + 1] if isinstance(key, int) else ()
        parts = list(batch)
    else:  # an object such as graphs come in
        yield from (getattr(batch, str(name)) for name in (key, *TARGET_KEYS) if hasattr(batch, str(name)))
        return
    yield from parts
    for part in parts:
        if isinstance(part, (Mapping, tuple, list)):
            yield from carried(part, samples)


def as_classes(value: Any) -> Tensor | None:
    """Classes on the CPU, (b,) int64, of whole numbers (b,) or (b, 1), or of rows (b, C) that are largest at the class."""
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            value = torch.from_numpy(np.asarray(value))
        except (TypeError, ValueError):  # no numbers
            return None
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or value.dtype == torch.bool or value.is_complex():
        return None
    value = value.detach().cpu()
    if value.ndim == 2 and value.shape[1] > 1:
        return value.argmax(1) if bool(((value >= 0) & (value <= 1)).all()) and len(value) else None
    value = value.reshape(-1)
    return value.long() if not value.is_floating_point() or torch.equal(value, value.round()) else None
