"""Whether an optimizer can be the server's, which has a gradient in every round, the aggregate, and no loss to evaluate."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fl_lightning.checked import finite_settings
from fl_lightning.errors import ConfigurationError, first_line

log = logging.getLogger(__name__)


def check_server_optimizer(optimizer: Optimizer, scheduler: Any = None, parameters: Iterable[Tensor] | None = None) -> None:
    """Raise `ConfigurationError` if a step of the server fails or goes elsewhere, tried on copies of parameters and optimizer.

    Args:
        optimizer: as it will be used.
        scheduler: of its learning rate, if there is one.
        parameters: the client's, those that are trained of which it was to be made; left out, what it holds is not looked at.

    Example:
        >>> check_server_optimizer(torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=1.0))
        >>> check_server_optimizer(torch.optim.LBFGS([torch.zeros(2, requires_grad=True)]))
        Traceback (most recent call last):
        fl_lightning.errors.ConfigurationError: model.server_optimizer LBFGS asks step for more than a dense gradient ...
    """
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        raise ConfigurationError(
            f"the server's scheduler {type(scheduler).__name__} is not of PyTorch's kind; use one of torch.optim.lr_scheduler"
        )
    name = f"model.server_optimizer {type(optimizer).__name__}"
    if parameters is not None:
        check_held(optimizer, list(parameters), name)
    finite_settings(optimizer, name)
    remedy = "use one that needs a gradient alone, such as SGD or Adam, or give it to the clients (their configure_optimizers)"
    if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        raise ConfigurationError(
            f"{name} keeps one set of weights to train and one to evaluate (train(), eval()), but the server has one; {remedy}"
        )
    try:
        alone = after_steps(optimizer, lambda of: of.step())
    except Exception as error:
        raise ConfigurationError(f"{name} asks step for more than a dense gradient ({first_line(error)}); {remedy}") from error
    try:
        given = after_steps(optimizer, lambda of: of.step(closure=lambda: None))  # which Lightning gives
    except Exception as error:
        raise ConfigurationError(f"{name} cannot be stepped as Lightning does it ({first_line(error)}); {remedy}") from error
    if not all(torch.equal(a, b) for a, b in zip(alone, given, strict=True)):
        raise ConfigurationError(f"{name} takes another step where a closure is given; {remedy}")
    try:
        after_steps(optimizer, lambda of: of.step(), gradient=None)
    except Exception as error:
        raise ConfigurationError(
            f"{name} fails without gradients ({first_line(error)}), as in a round whose updates are all excluded; {remedy}"
        ) from error


def check_held(optimizer: Optimizer, parameters: list[Tensor], name: str) -> None:
    """The optimizer moves the parameters that it was given, and nothing else, or what the clients learn would be lost."""
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    strangers = held - {id(parameter) for parameter in parameters}
    own = {id(parameter) for parameter in parameters if parameter.requires_grad}
    if strangers:
        raise ConfigurationError(
            f"{name} holds {len(strangers)} of {len(held)} tensors that are not the client's parameters, so that it would move "
            "what no client reports; make it of the parameters that it is given: lambda parameters: "
            f"{type(optimizer).__name__}(parameters, ...)"
        )
    if not held & own:
        raise ConfigurationError(
            f"{name} holds no trainable parameter, so that no round would change the model; make it of those that it is given"
        )
    if own - held:
        log.warning(
            "%s holds %d of the client's %d trainable parameters; the others keep their initial values, whatever clients learn",
            name,
            len(held & own),
            len(own),
        )


def after_steps(optimizer: Optimizer, step: Callable[[Any], Any], gradient: float | None = 1e-3) -> list[Tensor]:
    """Copies of an optimizer's parameters after two steps of a copy of it, with the same number everywhere as gradient."""
    trial = copy.deepcopy(optimizer)
    parameters = [p for group in trial.param_groups for p in group["params"] if p.requires_grad]
    for _ in range(2):  # what an optimizer remembers exists from the second on
        for parameter in parameters:
            parameter.grad = None if gradient is None else torch.full_like(parameter, gradient)
        step(trial)
    return [parameter.detach() for parameter in parameters]
