"""SGD's step for parameters that belong to no optimizer, with the settings of one."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Optimizer
from torch.optim.sgd import sgd

from fl_lightning.modules.traced_graphs import NotRecordableError

ARGUMENTS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "fused")
"""Of `torch.optim.sgd.sgd`."""

settings_of = itemgetter(*ARGUMENTS)
"""Their values in one of an optimizer's groups."""


def hyperparameters(optimizer: Optimizer, parameters: list[Tensor]) -> list[dict[str, Any]]:
    """The arguments of `torch.optim.sgd.sgd` for each of an optimizer's groups, and the places of its parameters.

    Raises:
        NotRecordableError: for another optimizer, and where a step depends on whether it is the first.
    """
    if type(optimizer) is not SGD:
        kind = type(optimizer).__name__
        raise NotRecordableError(f"its optimizer is {kind}, and only SGD's steps are alike from the first on")
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise NotRecordableError("its optimizer has hooks")
    place = {id(parameter): i for i, parameter in enumerate(parameters)}
    groups = []
    for group in optimizer.param_groups:
        if group["momentum"] and group["dampening"]:
            raise NotRecordableError("dampening makes SGD's first step unlike the others")
        if isinstance(group["lr"], Tensor) or group.get("differentiable"):
            raise NotRecordableError("its learning rate is a tensor, or its optimizer differentiable")
        groups.append(
            {name: group[name] for name in ARGUMENTS} | {"places": [place[id(p)] for p in group["params"] if id(p) in place]}
        )
    return groups


def sgd_step(parameters: list[Tensor], gradients: list[Tensor], momenta: list[Tensor | None], group: dict[str, Any]) -> None:
    """SGD's step in place, for parameters of a group as `hyperparameters` gives it."""
    arguments = {name: group[name] for name in ARGUMENTS}
    if len(parameters) == 1 or not parameters[0].is_cuda:
        arguments["foreach"] = False  # the same bits; TorchScript would leave out what writes into lists
    sgd(parameters, gradients, momenta, **arguments)


def clip(gradients: list[Tensor], most: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, for gradients that belong to no parameter."""
    share = (most / (get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(share)
