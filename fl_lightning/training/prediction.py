"""What a client's model predicts, whatever its own batches and outputs look like."""

from __future__ import annotations

import inspect
import logging
from functools import cache
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError, cause
from fl_lightning.modules.hooks import transferred
from fl_lightning.modules.lightning_modules import overrides
from fl_lightning.modules.outputs import REMEDY, is_one_logit, read_logits
from fl_lightning.modules.undisturbed import undisturbed

log = logging.getLogger(__name__)

ENOUGH = 64
"""Samples for which the logits of a model do not all lie in [0, 1] by chance."""

SUMS_TO_ONE = 1e-4
"""How far from 1 the sum of a row of probabilities may be."""

RESHAPING = ("view", "reshape", "squeeze", "unsqueeze", "select", "slice", "alias", "clone", "tocopy", "unsafeview", "t")
"""Operations that leave the numbers of an output as they are."""


def predict(module: L.LightningModule, batch: Any) -> Tensor:
    """Logits for a batch as `training_step` takes it: by `predict_step` if the module has one, else by `forward` on the
    inputs of an `(inputs, targets)` batch. What of an output is logits says `read_logits`. The module's own hooks of batch
    transfer come first."""
    batch = transferred(module, batch, next(module.parameters()).device)
    if overrides(module, "predict_step"):
        output = module.predict_step(*(batch, 0, 0)[: num_arguments(type(module))])
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


@cache
def num_arguments(kind: type) -> int:
    """How many of (batch, batch_idx, dataloader_idx) a class's `predict_step` takes."""
    parameters = list(inspect.signature(kind.predict_step).parameters.values())[1:]  # pyrefly: ignore[missing-attribute]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return 2 if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(named)


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


def check_predictions(module: L.LightningModule, samples: Samples, num_classes: int, test: Samples | None = None) -> None:
    """Predict some samples, so that a model of another task is refused before training. The module stays as it is.

    Args:
        module: the client.
        samples: training samples.
        num_classes: of the task.
        test: samples that it will be evaluated on, which must be of the same form.

    Raises:
        ConfigurationError: predictions cannot be made, or are no logits of `num_classes` classes.
    """
    name, device = f"the client {type(module).__name__}", next(module.parameters()).device

    def look(count: int, samples: Samples = samples, of: str = "of the task") -> Tensor:
        batch = move_data_to_device(samples.batch(torch.arange(count)), device)
        try:
            return predict(module, batch)
        except ConfigurationError:
            raise
        except Exception as error:
            by = "predict_step(batch, batch_idx)" if overrides(module, "predict_step") else "forward(inputs)"
            raise ConfigurationError(
                f"{name} cannot predict {count} samples {of} by {by}: {cause(error)}; change it, or {REMEDY}"
            ) from error

    with undisturbed(module), torch.enable_grad():
        module.eval()
        count = min(2, len(samples))
        logits = look(count)
        check_logits(logits, count, num_classes, name)
        single = look(1)
        if single.shape != (1, *logits.shape[1:]):
            raise ConfigurationError(
                f"{name} gives an output of shape {tuple(logits.shape)} for {count} samples, but of shape "
                f"{tuple(single.shape)} for one, as may stand at the end of a test set; keep the batch's axis, "
                "as squeeze(1) and flatten(1) do"
            )
        if test is not None and len(test):
            forms = f"of shape {input_shape(test)} of the test set, though it can {input_shape(samples)} of training,"
            of_test = look(min(2, len(test)), test, forms)
            if of_test.shape[1:] != logits.shape[1:]:
                raise ConfigurationError(
                    f"{name} gives {tuple(logits.shape[1:])} outputs for training inputs of shape {input_shape(samples)}, but "
                    f"{tuple(of_test.shape[1:])} for test inputs of shape {input_shape(test)}; give both one shape"
                )
        last = last_operation(logits.grad_fn)
        logits = logits.detach()
        if is_one_logit(logits):
            if last == "sigmoid":
                raise ConfigurationError(
                    f"{name} gives one output after a sigmoid, but predictions are split at a logit of 0: return the logit "
                    "(with binary_cross_entropy_with_logits as loss), or give the module a predict_step that returns "
                    "torch.logit(p), or the two probabilities (b, 2)"
                )
            if inside(logits) and inside(logits := look(min(ENOUGH, len(samples))).detach()) and logits.unique().numel() > 1:
                log.warning(
                    "%s gives one output, which lies in [0, 1] for all of %d samples, as if it were a probability; it is taken "
                    "for a logit and split at 0",
                    name,
                    len(logits),
                )
        elif last == "softmax" or bool(are_probabilities(logits)):
            log.warning(
                "%s gives probabilities; Acc and ASR are right, but rules and attacks with a loss of their own (FLIP, A3FL) "
                "take them for logits: return logits or log-probabilities",
                name,
            )


def input_shape(samples: Samples) -> str:
    """The shape of one sample's input, as text."""
    batch = samples.batch(torch.zeros(1, dtype=torch.int64))
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return str(tuple(inputs.shape[1:])) if isinstance(inputs, Tensor) else f"as {type(inputs).__name__}"


def check_logits(logits: Tensor, count: int, num_classes: int, name: str) -> None:
    """Raise `ConfigurationError` if these are no logits of `count` samples for `num_classes` classes."""
    outputs = 2 if is_one_logit(logits) else logits.shape[1] if logits.ndim == 2 else 0
    if len(logits) != count or outputs < num_classes:
        raise ConfigurationError(
            f"{name} gives an output of shape {tuple(logits.shape)} for {count} samples, but the task has {num_classes} "
            f"classes; it must give logits (b, C) with C >= {num_classes}" + (f": {REMEDY}" if logits.ndim > 2 else "")
        )
    if (predicted_classes(logits.detach()) < 0).any():
        what = "NaN" if logits.isnan().any() else "infinite logits, among which no class is ahead,"
        raise ConfigurationError(
            f"{name} predicts {what} for the first {count} samples before any training; look for NaN and infinities in the "
            "data, or in what the module does to them"
        )
    if outputs > num_classes:
        log.warning("%s has %d outputs, but the task has %d classes; the others are never right", name, outputs, num_classes)


def inside(logits: Tensor) -> bool:
    """Whether all lie in [0, 1]."""
    return bool(((logits >= 0) & (logits <= 1)).all())


def last_operation(node: Any) -> str:
    """The operation that made an output's numbers, such as `sigmoid`; empty where autograd has not recorded it."""
    while node is not None:
        name = node.name().rstrip("0123456789").removesuffix("Backward").strip("_").lower()
        if name not in RESHAPING:
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return ""
