"""What the steps of a module depend on, for those who record them: its tensors by name, and what it keeps beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
from torch import Tensor, nn

from fl_lightning.modules.kept_python import EVERY_MODULES


def is_recordable(module: L.LightningModule) -> bool:
    """Whether its class says that a step depends on nothing but parameters, buffers and the batch."""
    return bool(vars(type(module)).get("recordable", False))


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of each part, under every name that they have in it."""
    for prefix, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    yield f"{prefix}.{name}" if prefix else name, tensor


def aliases(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """For each name of a parameter or buffer the first name that the same tensor goes by."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def python_state(module: nn.Module) -> dict[str, Any]:
    """What a module's steps may depend on beside tensors: plain attributes, and how long its lists are, by name."""
    return plain_attributes(module.named_modules())


def plain_attributes(parts: Iterable[tuple[str, nn.Module]]) -> dict[str, Any]:
    """The same of given parts."""
    found: dict[str, Any] = {}
    for place, part in parts:
        attributes = vars(part)
        prefix = f"{place}." if place else ""
        for name in attributes.keys() - UNCHANGED:
            value = attributes[name]
            if isinstance(value, PLAIN):
                found[prefix + name] = value
            elif name[0] != "_" and isinstance(value, CONTAINERS):
                found[prefix + name] = len(value)
    return found


class PythonState:
    """What `python_state` gives, and whether it is so still.

    Args:
        parts: of a module, by name.

    Example:
        >>> layer = nn.Dropout()
        >>> state = PythonState([("", layer)])
        >>> layer.p = 0.1
        >>> state.same()
        False
    """

    def __init__(self, parts: list[tuple[str, nn.Module]]) -> None:
        self.parts, self.state = parts, plain_attributes(parts)
        held = [vars(part) for _, part in parts]
        self.objects = [(own, len(own), [(name, own[name]) for name in own.keys() - UNCHANGED]) for own in held]
        containers = [value for _, _, values in self.objects for _, value in values if isinstance(value, CONTAINERS)]
        self.containers = [(container, len(container)) for container in containers]

    def same(self) -> bool:
        """Whether it is. Most attributes are the very same objects, which is seen in a seventh of the time."""
        for own, size, values in self.objects:
            if len(own) != size:
                return self._equal()
            for name, value in values:
                now = own.get(name)
                if now is not value and (name not in own or isinstance(now, KINDS) or isinstance(value, KINDS)):
                    return self._equal()
        return all(len(container) == size for container, size in self.containers) or self._equal()

    def _equal(self) -> bool:
        return plain_attributes(self.parts) == self.state


PLAIN, CONTAINERS = (int, float, str), (list, dict, set)
KINDS = (*PLAIN, *CONTAINERS)
"""Of attributes that are looked at."""

UNCHANGED = EVERY_MODULES - {"training"}
"""Most attributes of a small module, which steps do not change."""
