"""A client's `training_step` as a function of its tensors, for executors that call it with others than its own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

import lightning as L
from torch import Tensor, nn


class TrainingStep(nn.Module):
    """A client's `training_step` as a `forward`, which is what `torch.func.functional_call` calls."""

    PREFIX = "client"
    """Of the names of the client's tensors."""

    def __init__(self, client: L.LightningModule) -> None:
        super().__init__()
        self.client = client
        self.num_arguments = len(inspect.signature(client.training_step).parameters)

    def forward(self, *arguments: Any) -> Any:  # batch, batch_idx
        return self.client.training_step(*arguments[: self.num_arguments])


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
