"""What a client's model predicts, whatever its own batches and outputs look like."""

from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.hooks import transferred


def predict(module: L.LightningModule, batch: Any) -> Tensor:
    """Logits for a batch as `training_step` takes it: by `predict_step` if the module has one, else by `forward` on the
    inputs of an `(inputs, targets)` batch. The module's own hooks of batch transfer come first."""
    batch = transferred(module, batch, next(module.parameters()).device)
    if type(module).predict_step is not L.LightningModule.predict_step:
        return module.predict_step(batch, 0)
    if not isinstance(batch, (tuple, list)):
        raise ConfigurationError(
            f"batches are of type {type(batch).__name__}, not (inputs, targets); give {type(module).__name__} a "
            "predict_step(batch, batch_idx) that returns logits"
        )
    return module(batch[0])


def is_one_logit(logits: Tensor) -> bool:
    """Whether logits are (b,) or (b, 1), which stand for two classes."""
    return logits.ndim == 1 or logits.shape[1:] == (1,)


def predicted_classes(logits: Tensor) -> Tensor:
    """(b,) int64 classes of logits (b, C); logits (b,) or (b, 1) stand for two classes, split at 0."""
    return (logits.reshape(len(logits)) > 0).long() if is_one_logit(logits) else logits.argmax(dim=1)


def class_probabilities(logits: Tensor) -> Tensor:
    """(b, C) float32 probabilities of logits (b, C), or of (b,) or (b, 1) for two classes.

    >>> class_probabilities(torch.tensor([0.0]))
    tensor([[0.5000, 0.5000]])
    """
    if is_one_logit(logits):
        second = logits.reshape(len(logits)).float().sigmoid()
        return torch.stack([1 - second, second], dim=1)
    return logits.float().softmax(dim=1)


def check_predictions(module: L.LightningModule, samples: Samples, num_classes: int) -> None:
    """Predict two samples, so that a model of another task is refused before training."""
    count = min(2, len(samples))
    training, device = module.training, next(module.parameters()).device
    module.eval()
    with torch.no_grad():
        logits = predict(module, move_data_to_device(samples.batch(torch.arange(count)), device))
    module.train(training)
    outputs = 2 if is_one_logit(logits) else logits.shape[1] if logits.ndim == 2 else 0
    if len(logits) != count or outputs < num_classes:
        raise ConfigurationError(
            f"the client {type(module).__name__} gives an output of shape {tuple(logits.shape)} for {count} samples, but the "
            f"task has {num_classes} classes; it must give logits (b, C) with C >= {num_classes}"
        )
