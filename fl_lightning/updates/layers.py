"""Where the parameter tensors of a model lie among its coordinates, by name and shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from fl_lightning.errors import ConfigurationError, enumerated


class Layer(NamedTuple):
    """A parameter tensor of the model.

    Attributes:
        name: as in the client's `named_parameters()`; empty where rows have no model.
        shape: of the tensor.
        start: its first coordinate of d; row-major, as `tensor.flatten()` has them.

    Example:
        >>> weight, bias = layers_of(["head.weight", "head.bias"], [(3, 4), (3,)])
        >>> bias, bias.size, bias.stop
        (Layer(name='head.bias', shape=(3,), start=12), 3, 15)
    """

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        """The coordinate after its last one."""
        return self.start + self.size

    def columns(self, first: int, width: int) -> slice:
        """Which of the coordinates first .. first + width - 1 are its own, counted from `first`; an empty slice for none.

        >>> Layer("", (4,), 2).columns(3, 10)
        slice(0, 3, None)
        """
        low = min(max(self.start - first, 0), width)
        return slice(low, max(low, min(self.stop - first, width)))


def layers_of(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[Layer]:
    """Tensors of these names and shapes, one after the other."""
    starts = accumulate((math.prod(shape) for shape in shapes), initial=0)
    return [Layer(name, tuple(shape), start) for name, shape, start in zip(names, shapes, starts, strict=False)]


def as_layers(given: Sequence[Layer | int]) -> list[Layer]:
    """Layers as they are; sizes, as of rows without a model, stand for vectors without a name.

    >>> as_layers([2, 3])
    [Layer(name='', shape=(2,), start=0), Layer(name='', shape=(3,), start=2)]
    """
    if all(isinstance(layer, Layer) for layer in given):
        return [layer for layer in given if isinstance(layer, Layer)]
    sizes = [layer.size if isinstance(layer, Layer) else layer for layer in given]
    return layers_of([""] * len(sizes), [(size,) for size in sizes])


def output_layer(
    layers: Sequence[Layer], who: str, module: str | None = None, *, remedy: str = "name the layer that gives the logits"
) -> tuple[Layer, Layer]:
    """Weight and bias of the layer that gives the logits, for rules that look at that one.

    Args:
        layers: of the model, as `check_model` and `UpdateShard.layers` have them.
        who: asks, for messages: the name of the rule.
        module: the layer's name in the client, such as `net.4`, of whose parameters `weight` and `bias` are taken; left out,
            the model's last two parameter tensors.
        remedy: what to do where there are no such two, for messages.

    Returns:
        The weight, of shape (C, ...), and the bias, (C,).

    Raises:
        ConfigurationError: there are no two such tensors.

    Example:
        >>> [layer.name for layer in output_layer(layers_of(["conv", "w", "b"], [(8, 1, 3, 3), (3, 8), (3,)]), "Mine")]
        ['w', 'b']
    """
    named = {layer.name: layer for layer in layers}
    if module is None:
        pair = list(layers[-2:])
        where = "the model's last parameter tensors are"
    else:
        pair = [named[name] for name in (f"{module}.weight", f"{module}.bias") if name in named]
        where = f"the parameters of {module} are"
    if len(pair) == 2 and len(pair[0].shape) > 1 and pair[1].shape == pair[0].shape[:1]:
        return pair[0], pair[1]
    found = enumerated(f"{layer.name or 'unnamed'} {layer.shape}" for layer in pair) or "none"
    raise ConfigurationError(
        f"{who} looks at the output layer, a weight (C, ...) and a bias (C,), but {where} {found}; {remedy} "
        f"(the model has {enumerated(layer.name or 'unnamed' for layer in layers)}), or use another rule"
    )
