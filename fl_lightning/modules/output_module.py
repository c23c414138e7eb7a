"""The layer of a client that gives its logits, as a module."""

from __future__ import annotations

from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError, enumerated


def output_module(module: nn.Module, who: str, name: str | None = None) -> nn.Module:
    """The layer with the logits' weight (C, ...), whose input are a sample's features.

    Args:
        module: the client.
        who: asks, for messages.
        name: the layer's in the client, such as `net.4`; left out, the one that has the model's last parameter.

    Raises:
        ConfigurationError: there is none, or it has parts of its own or no weight.

    Example:
        >>> output_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "Mine")
        Linear(in_features=3, out_features=2, bias=True)
    """
    layers = {path: layer for path, layer in module.named_modules() if path and not [*layer.children()]}
    if name is None:
        last = next(reversed([path for path, _ in module.named_parameters()]), "")
        layer = layers.get(last.rpartition(".")[0])
    else:
        layer = layers.get(name)
    weight = getattr(layer, "weight", None)
    if layer is not None and isinstance(weight, Tensor) and weight.ndim > 1:
        return layer
    known = enumerated(path for path, layer in layers.items() if getattr(layer, "weight", None) is not None)
    raise ConfigurationError(
        f"{who} looks at the output layer of the client {type(module).__name__}, with a weight (C, ...), but "
        f"{name or 'what has its last parameter'} is none; name the layer that gives the logits, of these: {known}"
    )
