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
            if isinstance(value, (int, float, str)):
                found[prefix + name] = value
            elif name[0] != "_" and isinstance(value, (list, dict, set)):
                found[prefix + name] = len(value)
    return found


UNCHANGED = EVERY_MODULES - {"training"}
"""Most attributes of a small module, which steps do not change."""
