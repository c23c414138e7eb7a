"""LightningModules of `lightning` and of `pytorch_lightning`: the same in two packages that do not know each other.

Many packages still derive their modules from the second. A client may be of either, and so may its parts. Nothing here imports
`pytorch_lightning`: who has such a module has it imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import nn

PACKAGES = ("lightning", "pytorch_lightning")


@cache
def lightning_base(kind: type) -> type | None:
    """The LightningModule that a class is derived from; None for other classes.

    >>> lightning_base(nn.Linear) is None
    True
    """
    named = (of for of in kind.__mro__ if of.__name__ == "LightningModule" and of.__module__.split(".")[0] in PACKAGES)
    return next(named, None)


def defines(kind: type, name: str) -> bool:
    """Whether a class has a hook or method that is not LightningModule's."""
    return getattr(kind, name, None) is not getattr(lightning_base(kind) or L.LightningModule, name)


def overrides(module: nn.Module, name: str) -> bool:
    """Whether a LightningModule has a hook or method of its own, in its class or set on itself."""
    return name in vars(module) or defines(type(module), name)


def lightning_parts(parts: Iterable[nn.Module]) -> list[Any]:
    """Those of a module's parts that are LightningModules."""
    return [part for part in parts if isinstance(part, ClientModule)]


def attach(module: nn.Module, trainer: L.Trainer, device: torch.device) -> None:
    """Tell parts that `lightning` does not know for its own of their Trainer and device, as it tells its own."""
    for part in lightning_parts(module.modules()):
        if not isinstance(part, L.LightningModule):
            part.trainer = trainer
            part.to(device)


if TYPE_CHECKING:
    ClientModule = L.LightningModule
else:

    class EitherPackage(type):
        """The type of `ClientModule`."""

        def __instancecheck__(cls, instance: Any) -> bool:
            return lightning_base(type(instance)) is not None

        def __subclasscheck__(cls, kind: type) -> bool:
            return isinstance(kind, type) and lightning_base(kind) is not None

        def __subclasses__(cls) -> list[type]:
            return L.LightningModule.__subclasses__()

    class ClientModule(metaclass=EitherPackage):
        """Any LightningModule, of either package: what a configuration may name as a client."""
