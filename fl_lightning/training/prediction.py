"""Whether what a client's model predicts can be evaluated."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError, cause
from fl_lightning.modules.lightning_modules import overrides
from fl_lightning.modules.outputs import REMEDY, is_one_logit
from fl_lightning.modules.predicting import are_probabilities, predict
from fl_lightning.modules.undisturbed import undisturbed

log = logging.getLogger(__name__)

ENOUGH = 64
"""Samples for which the logits of a model do not all lie in [0, 1] by chance."""

RESHAPING = ("view", "reshape", "squeeze", "unsqueeze", "select", "slice", "alias", "clone", "tocopy", "unsafeview", "t")
"""Operations that leave the numbers of an output as they are."""


def check_predictions(module: L.LightningModule, samples: Samples, num_classes: int, test: Samples | None = None) -> None:
    """Predict some samples, so that a model of another task is refused before training. The module stays as it is.

    Args:
        module: the client.
        samples: training samples.
        num_classes: of the task.
        test: samples that it will be evaluated on, which must be of the same form.

    Raises:
        ConfigurationError: predictions cannot be made, or are not what the task asks for, such as logits of `num_classes`.
    """
    name, device = f"the client {type(module).__name__}", next(module.parameters()).device

    def look(count: int, samples: Samples = samples, of: str = "of the task", first: int = 0) -> Tensor:
        batch = move_data_to_device(samples.batch(torch.arange(first, first + count)), device)
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
        outcome = samples.outcome
        outcome.check_output(logits, samples.targets[:count].to(logits.device), num_classes, name)
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
        for part in [samples] if test is None else [samples, test]:
            for row in part.extremes().unique().tolist():
                look(1, part, "of the task, of those that ask most of it,", row)
        last = last_operation(logits.grad_fn)
        logits = logits.detach()
        if outcome.split_at_zero and last == "sigmoid":
            raise ConfigurationError(
                f"{name} gives labels after a sigmoid, but predictions are split at logits of 0: return the logits (with "
                "binary_cross_entropy_with_logits as loss)"
            )
        if not outcome.one_class:
            return
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
