"""A module's tensors as one flat vector, and back.

Two layouts describe a client: its trainable parameters, which rules aggregate, and its floating-point buffers (BatchNorm's
running statistics), which must never pass a sign mask. Integer buffers (BatchNorm's batch counter) have no meaningful
average and stay as the global model has them.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.frozen_base import base_marks, base_names
from fl_lightning.updates.copying import copy_each
from fl_lightning.updates.layers import Layer, layers_of


class Layout:
    """Where each named tensor of a module lies in a flat (d,) float32 vector.

    Tensors are looked up in the module at every use, because modules may replace their buffers while training.

    Args:
        select: lists the `(name, tensor)` pairs of a module, always in the same order.
        module: the module whose layout is taken.

    Attributes:
        names: the tensors' names, in vector order.
        shapes: theirs.
        sizes: their numbers of elements.
        layers: all of that, and where each begins in the vector.
        num_coordinates: d, the sum of the sizes.
    """

    def __init__(self, select: Callable[[nn.Module], Iterator[tuple[str, Tensor]]], module: nn.Module) -> None:
        self._select = select
        named = list(select(module))
        self.names = [name for name, _ in named]
        self.shapes = [tensor.shape for _, tensor in named]
        self.sizes = [tensor.numel() for _, tensor in named]
        self.layers: list[Layer] = layers_of(self.names, self.shapes)
        self.num_coordinates = sum(self.sizes)

    def tensors(self, module: nn.Module) -> list[Tensor]:
        """The module's own tensors, in vector order."""
        return [tensor.detach() for _, tensor in self._select(module)] if self.names else []

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Views of a (d,) vector, one for each tensor and of its shape."""
        return [piece.view(shape) for piece, shape in zip(vector.split(self.sizes), self.shapes, strict=True)]

    def flatten(self, module: nn.Module) -> Tensor:
        """The module's values as a (d,) float32 vector."""
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), None)
        vector = torch.empty(self.num_coordinates, device=device)
        copy_each(self.pieces(vector), self.tensors(module))
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
    layout = Layout(_trainable_parameters, module)
    if layout.num_coordinates == 0:
        raise ConfigurationError(f"the client {type(module).__name__} has no trainable parameter; nothing can be learned")
    for name, tensor in _trainable_parameters(module):
        if not tensor.is_floating_point():
            raise ConfigurationError(f"the client's parameter {name} has dtype {tensor.dtype}; use a real floating-point type")
    return layout


def buffer_layout(module: nn.Module, *, nothing: bool = False) -> Layout:
    """The floating-point buffers that a checkpoint would hold; no buffer at all if `nothing`.

    Buffers with a value that is not finite, such as a mask of -inf, have no average and stay as the global model has them.
    """
    fixed = {name for name, b in _floating_buffers(module) if not b.isfinite().all()}
    if not fixed or nothing:
        return Layout(_no_buffers if nothing else _floating_buffers, module)
    return Layout(lambda of: ((name, b) for name, b in _floating_buffers(of) if name not in fixed), module)


class Snapshot:
    """All parameters and buffers of a module as they are now, in their own types: trained or not, saved or not.

    A client may change what no layout covers: counters, frozen copies of itself. `restore` undoes that too, so that nothing
    passes from one client to the next but through the server. A frozen base is not copied, but seen to be untouched.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tensors = {name: tensor.clone() for name, tensor in named_state(module)}
        self._marks = base_marks(module)

    def __len__(self) -> int:
        """How many tensors that are."""
        return len(self._tensors)

    @property
    def tensors(self) -> list[Tensor]:
        """The values, in the order of `named_state`."""
        return list(self._tensors.values())

    def restore(self, module: nn.Module) -> None:
        """Copy the values back into the module's tensors.

        Raises:
            ConfigurationError: its frozen base was written into.
        """
        if base_marks(module) != self._marks:
            raise ConfigurationError(
                f"the client {type(module).__name__} writes into its frozen base as it trains, of which there is one for all "
                "clients; let it change parameters that ask for gradients, or buffers"
            )
        there = [(name, tensor) for name, tensor in named_state(module) if name in self._tensors]
        for name, tensor in there:
            if tensor.shape != self._tensors[name].shape:  # a buffer that grows, such as a cache
                part, _, own = name.rpartition(".")
                setattr(module.get_submodule(part), own, self._tensors[name].clone())
        there = [(tensor, self._tensors[name]) for name, tensor in there if tensor.shape == self._tensors[name].shape]
        copy_each([tensor for tensor, _ in there], [value for _, value in there])


def named_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer but those of a frozen base, detached, with its name."""
    base, named = base_names(module), (*module.named_parameters(), *module.named_buffers())
    return ((name, tensor.detach()) for name, tensor in named if name not in base)


def clamp_variances(module: nn.Module) -> None:
    """Keep running variances from falling below zero, which rounding in old-minus-new differences could bring about."""
    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.running_var is not None:
            part.running_var.clamp_(min=0)


def _no_buffers(_: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return iter(())


def _trainable_parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _floating_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict(keep_vars=True)
    return ((name, b) for name, b in module.named_buffers() if b.is_floating_point() and name in kept)
