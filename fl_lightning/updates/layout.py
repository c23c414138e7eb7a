"""A module's tensors as one flat vector, and back.

Two layouts describe a client: its trainable parameters, which rules aggregate, and its floating-point buffers (BatchNorm's
running statistics), which must never pass a sign mask. Integer buffers (BatchNorm's batch counter) have no meaningful
average and stay as the global model has them.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_lightning.errors import ConfigurationError


class Layout:
    """Where each named tensor of a module lies in a flat (d,) float32 vector.

    Tensors are looked up in the module at every use, because modules may replace their buffers while training.

    Args:
        select: lists the `(name, tensor)` pairs of a module, always in the same order.
        module: the module whose layout is taken.

    Attributes:
        names: the tensors' names, in vector order.
        sizes: their numbers of elements.
        num_coordinates: d, the sum of the sizes.
    """

    def __init__(self, select: Callable[[nn.Module], Iterator[tuple[str, Tensor]]], module: nn.Module) -> None:
        self._select = select
        named = list(select(module))
        self.names = [name for name, _ in named]
        self.shapes = [tensor.shape for _, tensor in named]
        self.sizes = [tensor.numel() for _, tensor in named]
        self.num_coordinates = sum(self.sizes)

    def tensors(self, module: nn.Module) -> list[Tensor]:
        """The module's own tensors, in vector order."""
        return [tensor.detach() for _, tensor in self._select(module)] if self.names else []

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Views of a (d,) vector, one for each tensor and of its shape."""
        return [piece.view(shape) for piece, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def read(self, module: nn.Module, pieces: list[Tensor]) -> None:
        """Write the module's values into such views."""
        if pieces:
            torch._foreach_copy_(pieces, self.tensors(module))

    def flatten(self, module: nn.Module) -> Tensor:
        """The module's values as a (d,) float32 vector."""
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
        vector = torch.empty(self.num_coordinates, device=device)
        self.read(module, self.pieces(vector))
        return vector

    def load(self, module: nn.Module, vector: Tensor) -> None:
        """Write a (d,) vector into the module's tensors."""
        for piece, tensor in zip(self.pieces(vector), self.tensors(module), strict=True):
            tensor.copy_(piece)

    def load_gradients(self, module: nn.Module, vector: Tensor) -> None:
        """Make a (d,) vector the `.grad` of the module's parameters."""
        for piece, (_, tensor) in zip(self.pieces(vector), self._select(module), strict=True):
            tensor.grad = piece.to(tensor.dtype)


def parameter_layout(module: nn.Module) -> Layout:
    """The trainable parameters, shared ones once.

    Raises:
        ConfigurationError: if there are none, or one is not a real floating-point tensor.
    """
    layout = Layout(trainable_parameters, module)
    if layout.num_coordinates == 0:
        raise ConfigurationError(f"the client {type(module).__name__} has no trainable parameter; nothing can be learned")
    for name, tensor in trainable_parameters(module):
        if not tensor.is_floating_point():
            raise ConfigurationError(f"the client's parameter {name} has dtype {tensor.dtype}; use a real floating-point type")
    return layout


def buffer_layout(module: nn.Module, *, nothing: bool = False) -> Layout:
    """The floating-point buffers that a checkpoint would hold; no buffer at all if `nothing`."""
    return Layout(_no_buffers if nothing else _floating_buffers, module)


class Snapshot:
    """All parameters and buffers of a module as they are now, in their own types: trained or not, saved or not.

    A client may change what no layout covers: counters, frozen copies of itself. `restore` undoes that too, so that nothing
    passes from one client to the next but through the server.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors = {name: tensor.clone() for name, tensor in named_state(module)}

    def restore(self, module: nn.Module) -> None:
        """Copy the values back into the module's tensors."""
        there = {name: tensor for name, tensor in named_state(module) if name in self._tensors}
        if there:
            torch._foreach_copy_(list(there.values()), [self._tensors[name] for name in there])


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer once, detached, with its first name."""
    parts = named_parts(module)
    for name, tensor in (*_parameters(parts), *_buffers(parts)):
        yield name, tensor.detach()


def named_parts(module: nn.Module) -> dict[nn.Module, str]:
    """The module and all in it, each once with its first name: what `named_modules` gives, in a fraction of its time.

    Of a small client's training such walks are a part that counts.
    """
    found: dict[nn.Module, str] = {}

    def visit(part: nn.Module, name: str) -> None:
        if part not in found:
            found[part] = name
            for child, inside in part._modules.items():
                if inside is not None:
                    visit(inside, f"{name}.{child}" if name else child)

    visit(module, "")
    return found


def clamp_variances(module: nn.Module) -> None:
    """Keep running variances from falling below zero, which rounding in old-minus-new differences could bring about."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_var is not None:
            part.running_var.clamp_(min=0)


def _no_buffers(_: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return iter(())


def trainable_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that a client's optimizer may change, once each, with their first names."""
    return ((name, parameter) for name, parameter in _parameters(named_parts(module)) if parameter.requires_grad)


def _floating_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    parts = named_parts(module)
    passing = {id(part._buffers[name]) for part in parts for name in part._non_persistent_buffers_set}
    return ((name, b) for name, b in _buffers(parts) if b.is_floating_point() and id(b) not in passing)


def _parameters(parts: dict[nn.Module, str]) -> Iterator[tuple[str, Tensor]]:
    return _once((place, part._parameters) for part, place in parts.items())


def _buffers(parts: dict[nn.Module, str]) -> Iterator[tuple[str, Tensor]]:
    return _once((place, part._buffers) for part, place in parts.items())


def _once(holders: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under the first of its names."""
    seen: set[int] = set()
    for place, tensors in holders:
        for name, tensor in tensors.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{place}.{name}" if place else name, tensor
