"""A module's parts and tensors by name, in PyTorch's order.

PyTorch's own `named_modules`, and what builds on it, are chains of generators and take twice as long; local training asks for
parts and tensors several times for every client.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def named_parts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The module itself, "", and all modules in it, each once, as `named_modules` lists them."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[nn.Module] = set()

    def visit(name: str, part: nn.Module) -> None:
        seen.add(part)
        found.append((name, part))
        for of_child, child in part._modules.items():
            if child is not None and child not in seen:
                visit(f"{name}.{of_child}" if name else of_child, child)

    visit("", module)
    return found


def named_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All parameters, each once, as `named_parameters` lists them."""
    return _once([(name, part._parameters) for name, part in named_parts(module)])


def named_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """All buffers, each once, as `named_buffers` lists them."""
    return _once([(name, part._buffers) for name, part in named_parts(module)])


def _once(holders: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, Any]]:
    """The tensors in modules' dictionaries, each under the first name that it has."""
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()
    for prefix, tensors in holders:
        for name, tensor in tensors.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found.append((f"{prefix}.{name}" if prefix else name, tensor))
    return found
