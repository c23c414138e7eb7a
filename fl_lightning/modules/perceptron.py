"""Which modules are nothing but linear layers with ReLU between them, so that their derivatives can be written down."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Dense(NamedTuple):
    """A linear layer: a weight (out, in) and a bias (out,)."""

    weight: Tensor
    bias: Tensor


def perceptron_layers(module: nn.Module) -> list[Dense] | None:
    """The linear layers of a module whose class says `perceptron = True` in its own body; None for any other.

    Such a class promises that `forward` flattens its inputs and then applies `layers`, which are linear ones with ReLU between
    them, and nothing else. Whoever has put hooks, other layers or another `forward` into an instance gets None.

    Example:
        >>> from fl_lightning.models import MLP
        >>> [tuple(layer.weight.shape) for layer in perceptron_layers(MLP(sizes=(4, 3, 2)))]
        [(3, 4), (2, 3)]
    """
    if not vars(type(module)).get("perceptron", False) or not isinstance(module.layers, nn.Sequential):
        return None
    found: list[Dense] = []
    for i, layer in enumerate(module.layers):
        if type(layer) is not (nn.ReLU if i % 2 else nn.Linear):
            return None
        if isinstance(layer, nn.Linear):
            if layer.bias is None or layer.weight.dtype != torch.float32 or layer.bias.dtype != torch.float32:
                return None
            found.append(Dense(layer.weight.detach(), layer.bias.detach()))
    parts = list(module.modules())
    if len(module.layers) % 2 == 0 or any("forward" in vars(part) or any(getattr(part, of) for of in HOOKS) for part in parts):
        return None
    return found
