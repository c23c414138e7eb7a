"""Which of the things that a model returns are its logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fl_lightning.errors import ConfigurationError, enumerated

REMEDY = "give the module a predict_step(batch, batch_idx) that returns logits (b, C) and nothing else"


def read_logits(output: Any, of: str) -> Tensor:
    """The logits in what a model returned.

    A tensor is taken as it is. Of a mapping, a dataclass, a named tuple or another object it is `logits`, else the only
    tensor in it. Of a tuple or list it is the only tensor (b, C), (b,) or (b, 1) in it, such as the logits of
    `(logits, hidden states)` or `(loss, logits)`.

    Args:
        output: what was returned.
        of: who returned it, for messages.

    Raises:
        ConfigurationError: there is no such tensor, or it could be one of several.

    Example:
        >>> read_logits({"logits": torch.zeros(2, 3), "loss": torch.zeros(())}, "forward of Net").shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return _floating(output, of)
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return _floating(named, f"`logits` of what {of} returns")
    fields = _fields(output)
    tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
    if isinstance(output, (tuple, list)) and len(tensors) > 1:
        flat = {name: value for name, value in tensors.items() if value.ndim in (1, 2) and value.is_floating_point()}
        tensors = flat if len(flat) == 1 else tensors
    if len(tensors) == 1:
        return _floating(next(iter(tensors.values())), of)
    found = enumerated(f"{name}: {_describe(value)}" for name, value in fields.items())
    what = f"a {type(output).__name__}" + (f" of {found}" if found else "")
    which = "in which any of several tensors could be the logits" if tensors else "in which there are no logits"
    raise ConfigurationError(f"{of} returns {what}, {which}; {REMEDY}")


def is_one_logit(logits: Tensor) -> bool:
    """Whether logits are (b,) or (b, 1), which stand for two classes."""
    return logits.ndim == 1 or logits.shape[1:] == (1,)


def class_logits(module: nn.Module, inputs: Tensor, who: str) -> Tensor:
    """(b, C) float32 logits of the module's `forward`; one logit z for two classes becomes (0, z).

    Args:
        module: in any mode.
        inputs: (b, ...).
        who: asks for them, for messages.

    Raises:
        ConfigurationError: `forward` returns anything else.
    """
    return as_class_logits(module(inputs), module, who)


def as_class_logits(output: Any, module: nn.Module, who: str) -> Tensor:
    """The same of what `forward` has returned already."""
    of = f"forward(inputs) of the client {type(module).__name__}, whose logits {who} needs,"
    logits = read_logits(output, of)
    if logits.ndim not in (1, 2):
        raise ConfigurationError(f"{of} returns a tensor of shape {tuple(logits.shape)}; it must return logits (b, C)")
    return (F.pad(logits.reshape(-1, 1), (1, 0)) if is_one_logit(logits) else logits).float()


def logits_with(module: nn.Module, weights: Mapping[str, Tensor], inputs: Tensor, who: str) -> Tensor:
    """(b, C) float32 logits that the module's `forward` gives with other weights; its own buffers stay as they are.

    Args:
        module: in any mode.
        weights: parameters by name, in place of its own; gradients pass to both.
        inputs: (b, ...).
        who: asks for them, for messages.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return as_class_logits(functional_call(module, {**weights, **buffers}, (inputs,)), module, who)


def pair_of(batch: Any, who: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch that has just these; `ConfigurationError` for any other."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise ConfigurationError(
        f"{who} needs batches (inputs, targets) of two tensors, got {_describe(batch)}; give such samples, or use another "
        "attack"
    )


def _fields(output: Any) -> dict[str, Any]:
    """What an output consists of, by name or number."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        return {str(name): value for name, value in zip(names, output, strict=True)}
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return {}


def _floating(tensor: Tensor, of: str) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "nested" if tensor.is_nested else f"sparse ({tensor.layout})"
        raise ConfigurationError(f"{of} gives a tensor that is {kind}; return dense logits (b, C), as .to_dense() gives them")
    if not tensor.is_floating_point():
        raise ConfigurationError(
            f"{of} gives a tensor of {tensor.dtype}, which are classes or flags rather than logits; return the logits that "
            "they were made of"
        )
    return tensor


def _describe(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
