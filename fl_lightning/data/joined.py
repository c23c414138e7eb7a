"""Several data sets as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.utils.data import ConcatDataset, default_collate

from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.map_samples import MapSamples
from fl_lightning.data.sample_form import input_entry
from fl_lightning.data.table import Rows


def join(parts: Sequence[Samples]) -> Samples:
    """All samples of `parts`, one part after the other; samples keep the triggers that they carry.

    Tensors of one kind (same shape, dtype and transforms) become one tensor; anything else is collated sample by sample,
    without augmentation on the device.
    """
    parts = [part for part in parts if len(part)]
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, TensorSamples) and all(
        isinstance(part, TensorSamples)
        and part.inputs.shape[1:] == first.inputs.shape[1:]
        and part.inputs.dtype == first.inputs.dtype
        and part.augment == first.augment
        and part.prepare == first.prepare
        and part.targets.shape[1:] == first.targets.shape[1:]
        for part in parts
    ):
        tensors = [part for part in parts if isinstance(part, TensorSamples)]
        device = first.inputs.device
        stamps, start = [], 0
        for part in tensors:
            for stamp, rows in part.stamps:
                carries = torch.zeros(sum(map(len, tensors)), dtype=torch.bool, device=device)
                carries[start : start + len(part)] = rows
                stamps.append((stamp, carries))
            start += len(part)
        return TensorSamples(
            torch.cat([part.inputs.to(device) for part in tensors]),
            torch.cat([part.targets.to(device) for part in tensors]),
            augment=first.augment,
            prepare=first.prepare,
            stamps=stamps,
            feature_names=first.feature_names,
            outcome=first.outcome,
        )
    lazy = next((part for part in parts if isinstance(part, MapSamples)), None)
    collate_fn = default_collate if lazy is None else lazy.collate_fn
    target_key = None if lazy is None else lazy.target_key
    targets = torch.cat([part.targets.cpu() for part in parts])
    return MapSamples(ConcatDataset(parts), targets, collate_fn=collate_fn, target_key=target_key, outcome=first.outcome)


def named_as(samples: Samples, like: Samples) -> Samples:
    """Pairs as mappings, with the names of others that have one input and a class; anything else as it is."""
    if not (isinstance(samples, TensorSamples) and isinstance(like, MapSamples) and len(samples) and len(like)):
        return samples
    sample = like[0]
    entry = input_entry(sample, like.target_key) if isinstance(sample, Mapping) and len(sample) == 2 else None
    if entry is None:
        return samples
    inputs, targets = samples.batch(torch.arange(len(samples)))
    rows = Rows({str(entry): inputs.cpu(), str(like.target_key): targets.cpu()})
    return MapSamples(rows, targets.cpu(), collate_fn=like.collate_fn, target_key=like.target_key, outcome=samples.outcome)
