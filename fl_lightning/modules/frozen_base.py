"""The part of a client that nobody trains, such as the pretrained network under its adapters.

It is held once per rank: no round copies, sends or saves it. Where weights are saved a digest stands for it, by which whoever
reads them sees that they belong to the base that was built here.

E. Hu, Y. Shen, P. Wallis, et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685, leave all of a pretrained network as it is.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.bits import named_sha256

SHOWN = 12
"""Digits of a digest in a message."""

SHA256 = "base_sha256"
"""The buffer that stands for the base in what is saved."""


class FrozenBase(nn.Module):
    """A module whose frozen parameters are left out of `state_dict`, of copies, and of all that travels between ranks.

    The constructor calls `freeze_base` at its end; parameters that do not ask for gradients then are the base. Buffers are not
    part of it. Weights that are loaded must have been saved on the same base. It may be the client or a module inside it.

    Example:
        >>> class Net(FrozenBase):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.head = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2)
        ...         self.freeze_base()
        >>> list(Net().state_dict())
        ['base_sha256', 'head.weight', 'head.bias']
    """

    base_names: frozenset[str] = frozenset()
    """Of the frozen parameters, all names that one goes by."""

    base_settings: str = ""
    """What else the digest stands for."""

    base_sha256: Tensor

    def freeze_base(self, settings: str = "") -> None:
        """Make what does not ask for gradients now the base, and take its digest, a buffer (32,) uint8.

        Args:
            settings: what no tensor shows and trained weights mean nothing without, such as the scale of adapters.
        """
        self.base_settings = settings
        named = self.named_parameters(remove_duplicate=False)
        self.base_names = frozenset(name for name, parameter in named if not parameter.requires_grad)
        self.register_buffer(SHA256, self.digest_of_base())

    def base(self) -> dict[str, Tensor]:
        """The frozen parameters by name."""
        named = self.named_parameters(remove_duplicate=False)
        return {name: parameter.detach() for name, parameter in named if name in self.base_names}

    def digest_of_base(self) -> Tensor:
        """(32,) uint8 on the CPU, the SHA-256 of the base as it is now."""
        told = hashlib.sha256(f"{named_sha256(sorted(self.base().items()))} {self.base_settings}".encode())
        return torch.tensor(list(told.digest()), dtype=torch.uint8)

    def check_base(self, when: str) -> None:
        """Raise `ConfigurationError` if the base has other values than at first; `when` is for the message."""
        if not torch.equal(self.digest_of_base(), self.base_sha256.cpu()):
            raise ConfigurationError(
                f"{when} the frozen base of {type(self).__name__} is not what it was: something writes into parameters that do "
                "not ask for gradients; let it train its own, or have them ask for gradients, so that they are exchanged"
            )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Without the base; for the rest see `nn.Module.state_dict`."""
        state, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name in self.base_names:
            state.pop(prefix + name, None)
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # pyrefly: ignore[bad-override]
        """Compare the digest of the base, and let the modules inside find it where they look for their own parameters."""
        found = state_dict.get(prefix + SHA256)
        if isinstance(found, Tensor) and not torch.equal(found.cpu(), self.base_sha256.cpu()):
            there, here = (bytes(of.cpu().tolist()).hex()[:SHOWN] for of in (found, self.base_sha256))
            raise ConfigurationError(
                f"the weights were trained on another frozen base (SHA-256 {there}...) than that of {type(self).__name__} here "
                f"({here}...); build it as it was then: the same model, revision, base_seed, lora.alpha and versions of "
                "libraries"
            )
        for name, tensor in self.base().items():
            state_dict.setdefault(prefix + name, tensor)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy that shares the base."""
        named = self.named_parameters(remove_duplicate=False)
        memo.update({id(parameter): parameter for name, parameter in named if name in self.base_names})
        memo[id(self)] = copied = type(self).__new__(type(self))
        state: Any = self.__reduce_ex__(4)[2]
        copied.__setstate__(copy.deepcopy(state, memo))
        return copied


def frozen_bases(module: nn.Module) -> dict[str, FrozenBase]:
    """The module itself and those inside it that have a frozen base, each with what its parameters' names begin with."""
    return {f"{name}." if name else "": part for name, part in module.named_modules() if isinstance(part, FrozenBase)}


def base_names(module: nn.Module) -> frozenset[str]:
    """The names of a module's frozen base, or those inside it; none where none has been declared."""
    return frozenset(prefix + name for prefix, part in frozen_bases(module).items() for name in part.base_names)


def base_bytes(module: nn.Module) -> int:
    """Bytes of the frozen base, of which there is one on a rank."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in _tensors(module)}.values())


def base_marks(module: nn.Module) -> list[tuple[int, int]]:
    """What writing into the base changes, and what costs next to nothing to look at."""
    return [(tensor._version, tensor.data_ptr()) for tensor in _tensors(module)]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [tensor for part in frozen_bases(module).values() for tensor in part.base().values()]
