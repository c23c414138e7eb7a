"""What a client's model predicts, whatever its own batches and outputs look like."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.hooks import num_arguments, transferred
from fl_lightning.modules.lightning_modules import overrides
from fl_lightning.modules.outputs import is_one_logit, read_logits

SUMS_TO_ONE = 1e-4
"""How far from 1 the sum of a row of probabilities may be."""


def predict(module: L.LightningModule, batch: Any) -> Tensor:
    """Logits for a batch as `training_step` takes it: by `predict_step` if the module has one, else by `forward` on the
    inputs of an `(inputs, targets)` batch. What of an output is logits says `read_logits`. The module's own hooks of batch
    transfer come first."""
    batch = transferred(module, batch, next(module.parameters()).device)
    if overrides(module, "predict_step"):
        output = module.predict_step(*(batch, 0, 0)[: num_arguments(module.predict_step)])
        logits = read_logits(output, f"predict_step of the client {type(module).__name__}")
    elif isinstance(batch, (tuple, list)):
        logits = read_logits(module(batch[0]), f"forward of the client {type(module).__name__}")
    else:
        raise ConfigurationError(
            f"batches are of type {type(batch).__name__}, not (inputs, targets); give {type(module).__name__} a "
            "predict_step(batch, batch_idx) that returns logits"
        )
    return logits if logits.ndim > 1 else with_batch_axis(logits, batch)


def with_batch_axis(logits: Tensor, batch: Any) -> Tensor:
    """Logits () or (C,) of a batch of one sample, as models with a `squeeze()` give them, as (1,) or (1, C)."""
    if logits.ndim == 0:
        return logits.reshape(1)
    targets = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    alone = isinstance(targets, Tensor) and targets.shape[:1] == (1,)
    return logits[None] if alone and len(logits) != 1 else logits


def predicted_classes(logits: Tensor) -> Tensor:
    """(b,) int64 classes of logits (b, C); logits (b,) or (b, 1) stand for two classes, split at 0.

    -1 where there is none: a logit is NaN, all are -inf, or several are +inf, so that no class is ahead. Finite logits that are
    equal stand for the first of their classes.

    >>> predicted_classes(torch.tensor([[0.1, 0.9], [0.2, torch.nan], [torch.inf, torch.inf], [0.0, torch.inf]]))
    tensor([ 1, -1, -1,  1])
    """
    if is_one_logit(logits):
        logits = logits.reshape(len(logits), 1)
        return (logits[:, 0] > 0).long().masked_fill_(logits[:, 0].isnan(), -1)
    most, classes = logits.max(dim=1)  # NaN where there is one
    several = (logits == torch.inf).sum(dim=1) > 1
    return classes.masked_fill_(most.isnan() | (most == -torch.inf) | several, -1)


def class_probabilities(logits: Tensor) -> Tensor:
    """(b, C) float32 probabilities of logits (b, C), or of (b,) or (b, 1) for two classes.

    A batch whose rows are probabilities already, as of models that end in a softmax, is left as it is.

    >>> class_probabilities(torch.tensor([0.0]))
    tensor([[0.5000, 0.5000]])
    """
    if is_one_logit(logits):
        second = logits.reshape(len(logits)).float().sigmoid()
        return torch.stack([1 - second, second], dim=1)
    logits = logits.float()
    return torch.where(are_probabilities(logits), logits, logits.softmax(dim=1))


def are_probabilities(rows: Tensor) -> Tensor:
    """() bool: whether all rows of (b, C) are at least 0 and sum to 1."""
    return (rows >= 0).all() & ((rows.sum(1) - 1).abs() < SUMS_TO_ONE).all()
