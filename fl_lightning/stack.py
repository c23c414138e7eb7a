"""Several clients in one: their parameters and buffers along a first axis, and an optimizer that takes the stack for one model.

Letters: K clients in the stack, those that train longest first; h have not finished; g of these have batches of one size b.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.utils._pytree import tree_flatten, tree_unflatten

from fl_lightning.local_training import NotTogetherError

ELEMENTWISE = (SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, Adadelta, Adamax)  # a stack is one more parameter to them


class NotStackableError(NotTogetherError):
    """Why a module or its data cannot be trained in a stack."""


class Stack:
    """K copies of a client's trainable parameters and of its buffers, and an optimizer of the same kind as its own.

    `trained` holds them by name, (K, ...) each, of client order[r] in row r; `parameters` and `buffers` are its first h rows.

    Args:
        client: the module.
        order: clients, those that train longest first.
        optimizer: the client's own.
        trained: K times what the module holds.
        zeros: like the parameters, for SGD's momentum if it has one.
    """

    def __init__(
        self, client: nn.Module, order: list[int], optimizer: Optimizer, trained: dict[str, Tensor], zeros: dict[str, Tensor]
    ) -> None:
        named = {name: parameter for name, parameter in client.named_parameters() if parameter.requires_grad}
        self.own = list(named.values())
        self.device = self.own[0].device
        self.order, self.height = order, len(order)
        self.trained = trained
        self.parameters = {name: self.trained[name] for name in named}
        self.buffers = {name: tensor for name, tensor in self.trained.items() if name not in named}
        self.logs: dict[str, Tensor] = {}  # by name (K, 2) float32: sum and number of the values logged
        kind = type(optimizer)
        if kind not in ELEMENTWISE:
            raise NotStackableError(f"its optimizer {kind.__name__} is not known to treat each number by itself")
        hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
        if any(hooks) or any(parameter._backward_hooks for parameter in self.own):
            raise NotStackableError("its optimizer or its parameters have hooks")
        stacked = dict(zip(self.own, self.parameters.values(), strict=True))
        momenta = {parameter: zeros[name] for name, parameter in self.parameters.items() if zeros}
        if any(p.requires_grad and p not in stacked for group in optimizer.param_groups for p in group["params"]):
            raise NotStackableError("its optimizer holds tensors that are no parameters of the module")
        # Parameters that require no gradient, which no optimizer moves, are left out.
        groups = [{**of, "params": [stacked[p] for p in of["params"] if p in stacked]} for of in optimizer.param_groups]
        options = {name: value for name, value in optimizer.defaults.items() if name in inspect.signature(kind).parameters}
        self.optimizer = kind(groups, **options)
        if kind is SGD:
            for group in self.optimizer.param_groups:
                if group["momentum"] and not group["dampening"]:  # zero is what it is before the first step
                    self.optimizer.state.update({p: {"momentum_buffer": momenta[p]} for p in group["params"]})

    @property
    def state(self) -> list[Tensor]:
        """What SGD's steps change: parameters, buffers, and of each parameter the momentum, empty where there is none."""
        of = [self.optimizer.state.get(parameter, {}) for parameter in self.parameters.values()]
        momenta = [kept["momentum_buffer"] if kept else self.own[0].detach().new_empty(0) for kept in of]
        return [*self.parameters.values(), *self.buffers.values(), *momenta]

    def log_steps(self, name: str, values: list[Tensor]) -> None:
        """What clients logged in one step after the other."""
        for value in values:
            self.log(name, value)

    def log(self, name: str, value: Tensor, rows: slice | Tensor | None = None) -> None:
        """Add what clients logged, (g, 2) float32, by default those of the first h rows."""
        room = self.logs.setdefault(name, torch.zeros(len(self.order), 2, device=self.device))
        room[slice(self.height) if rows is None else rows] += value

    def shrink(self, height: int) -> None:
        """Leave the first rows alone to the optimizer, with their part of its state."""
        self.height = height
        narrowed = {old: old[:height] for old in self.parameters.values()}
        self.parameters = {name: narrowed[old] for name, old in self.parameters.items()}
        self.buffers = {name: old[:height] for name, old in self.buffers.items()}
        for group in self.optimizer.param_groups:
            group["params"] = [narrowed[old] for old in group["params"]]
        for old, new in narrowed.items():
            # What has another shape than the parameter, like the count of steps, is one for all clients.
            self.optimizer.state[new] = {
                name: value[:height] if isinstance(value, Tensor) and value.shape == old.shape else value
                for name, value in self.optimizer.state.pop(old, {}).items()
            }


def stacked(batches: list[Any]) -> Any:
    """Batches of b samples as one: tensors (g, b, ...), and tuples, lists and dicts of them."""
    leaves, structures = zip(*(tree_flatten(batch) for batch in batches), strict=True)
    kinds = [[(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else None for leaf in batch] for batch in leaves]
    if None in kinds[0]:
        raise NotStackableError("its batches hold something else than tensors")
    if any(kind != kinds[0] for kind in kinds) or any(structure != structures[0] for structure in structures):
        raise NotStackableError("clients' batches of one number of samples have different shapes, types or names")
    return tree_unflatten([torch.stack(parts) for parts in zip(*leaves, strict=True)], structures[0])


def clipped(gradients: dict[str, Tensor], limit: float) -> dict[str, Tensor]:
    """One client's gradients, clipped as `nn.utils.clip_grad_norm_` does it."""
    norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()]).norm()
    return {name: gradient * (limit / (norm + 1e-6)).clamp(max=1.0) for name, gradient in gradients.items()}
