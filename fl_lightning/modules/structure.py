"""What a module is made of, to notice where a client's training makes it something else.

Updates are vectors whose places were given to parameters and buffers once, before the first round. A client that freezes, adds
or replaces some of them while it trains would have its update read wrongly, or leave them to the next client.
"""

from __future__ import annotations

from itertools import chain
from operator import is_

from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.trainable import parts_of, trainable


class Structure:
    """What a module is made of now. To see whether that is still so costs a pass over its parts, without their names.

    Attributes:
        parts: all parts of the module, as `modules()` gives them.
        trained: its parameters that ask for gradients, as `parameters()` gives them.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> before = Structure(net)
        >>> net.bias = None
        >>> before.same()
        False
    """

    def __init__(self, module: nn.Module) -> None:
        self.read(module)

    def read(self, module: nn.Module) -> None:
        """Remember what the module is made of now."""
        parts = self.parts = parts_of(module)
        self.trained = trainable(parts)
        self.all = [own for part in parts for own in (part._parameters, part._buffers, part._modules)]
        self.number = sum(map(len, self.all))
        self.within = [part._modules for part in parts if part._modules]
        self.children = [child for within in self.within for child in within.values()]
        self.own = [part._parameters for part in parts if part._parameters]
        self.parameters = [p for own in self.own for p in own.values()]
        self.keys = [list(own.keys()) for own in self.own]  # scripted parts have only that
        self.asking = [p is not None and p.requires_grad for p in self.parameters]
        self.buffers = [part._buffers for part in parts if part._buffers]
        self.shapes = [[(name, None if b is None else b.shape) for name, b in own.items()] for own in self.buffers]

    def same(self) -> bool:
        """Whether nothing but values has changed."""
        return (
            self.number == sum(map(len, self.all))
            and all(map(is_, self.parameters, chain.from_iterable([own.values() for own in self.own])))
            and all(map(is_, self.children, chain.from_iterable([within.values() for within in self.within])))
            and self.asking == [p is not None and p.requires_grad for p in self.parameters]
            and self.shapes == [[(name, None if b is None else b.shape) for name, b in own.items()] for own in self.buffers]
        )

    def check(self, module: nn.Module, by: str = "training", *, objects: bool = False) -> None:
        """Raise `ConfigurationError` if the module has other parameters than before, or buffers that checkpoints would miss.

        Parts without parameters and buffers that are not persistent may come and go, and are known from then on.

        Args:
            module: whose parts these are.
            by: who may have changed it, for messages.
            objects: whether a parameter may not be replaced by one of the same shape either.
        """
        if self.same():
            return
        change = self._change_of_parameters(module, objects=objects) or self._change_of_buffers()
        if change is not None:
            raise ConfigurationError(
                f"{by} changes what the client {type(module).__name__} is made of: {change}, but all clients' updates must "
                "mean the same tensors; freeze, unfreeze and make layers and buffers in the constructor"
            )
        self.read(module)

    def _change_of_parameters(self, module: nn.Module, *, objects: bool) -> str | None:
        flat = iter(zip(self.parameters, self.asking, strict=True))
        before = {id(own): {key: next(flat) for key in keys} for own, keys in zip(self.own, self.keys, strict=True)}
        for place, part in module.named_modules():
            prefix = f"{place}." if place else ""
            known = before.pop(id(part._parameters), {})
            for key, parameter in part._parameters.items():
                was, trained = known.pop(key, (None, False))
                if parameter is None or was is None or parameter.shape != was.shape:
                    if parameter is not was:
                        return f"its parameter {prefix}{key} is " + (
                            "gone" if parameter is None else "new, or of another shape"
                        )
                elif parameter.requires_grad != trained:
                    return f"requires_grad of {prefix}{key} becomes {parameter.requires_grad}"
                elif objects and parameter is not was:
                    return f"its parameter {prefix}{key} is another object than the server's optimizer has"
            if known:
                return f"its parameter {prefix}{next(iter(known))} is gone"
        gone = [p for left in before.values() for p, _ in left.values() if p is not None]
        return f"a parameter of shape {tuple(gone[0].shape)} is gone" if gone else None

    def _change_of_buffers(self) -> str | None:
        before = {id(own): dict(shapes) for own, shapes in zip(self.buffers, self.shapes, strict=True)}
        for part in self.parts:
            for name, buffer in part._buffers.items():
                was, shape = before.get(id(part._buffers), {}).get(name), None if buffer is None else buffer.shape
                if shape != was and name not in part._non_persistent_buffers_set:
                    described = [f"of shape {tuple(found)}" if found is not None else "nothing" for found in (was, shape)]
                    return f"the buffer {name} of a {type(part).__name__} was {described[0]}, and is {described[1]}"
        return None
