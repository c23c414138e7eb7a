"""Samples held whole in tensors, of such as are read one by one."""

from __future__ import annotations

import torch

from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import global_draws


def in_tensors(samples: Samples, why: str) -> TensorSamples:
    """The same samples with the inputs that triggers are written into, read once, without triggers that they carry.

    Args:
        samples: `TensorSamples` are given back as they are.
        why: what they are read for, for a message.

    Raises:
        ConfigurationError: if they have no such inputs of one shape, or draw random numbers, and so change.
    """
    if isinstance(samples, TensorSamples):
        return samples
    before = global_draws()
    inputs = samples.raw(torch.arange(len(samples)))
    if inputs is None or global_draws() != before:
        found = (
            "have no tensors of one shape as inputs" if inputs is None else "are transformed at random whenever they are read"
        )
        raise ConfigurationError(
            f"samples {found}, but {why}; load them into TensorSamples (its argument augment= takes random transforms)"
        )
    return TensorSamples(inputs, samples.targets, outcome=samples.outcome)
