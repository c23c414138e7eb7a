"""How an optimizer's `step` wants its closure: found out by what it asks for, not by its name.

A closure evaluates loss and gradients. Lightning hands one to every `step`, which calls it before anything else. Optimizers
that look at gradients first (SAM) want them to be there already; some take no closure at all.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim import Optimizer

Use = Literal["closure", "gradient and closure", "gradient"]
"""What `step` is given: a closure, a closure after gradients have been found once, or gradients alone."""

_found: dict[type, Use] = {}


def closure_use(optimizer: Optimizer) -> Use:
    """How `step` of such an optimizer is to be called; tried once per class, on a copy, where it is not one of PyTorch's."""
    kind = type(optimizer)
    if kind not in _found:
        _found[kind] = _find(optimizer)
    return _found[kind]


def _find(optimizer: Optimizer) -> Use:
    kind = type(optimizer)
    parameters = inspect.signature(kind.step).parameters
    if not ("closure" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())):
        return "gradient"
    if kind.__module__.startswith("torch.optim"):
        return "closure"
    alone, together = attempt(optimizer, "closure"), attempt(optimizer, "gradient and closure")
    if isinstance(together, Exception):
        return "closure"
    # Where gradients that are there already make a difference, they are looked at before the closure is called.
    same = not isinstance(alone, Exception) and all(map(torch.equal, alone, together))
    return "closure" if same else "gradient and closure"


def attempt(optimizer: Optimizer, use: Use) -> Exception | list[torch.Tensor]:
    """Where copies of all parameters end after two steps of a copy of the optimizer, or what goes wrong.

    >>> attempt(torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.0), "gradient")
    [tensor([0., 0.])]
    >>> type(attempt(torch.optim.LBFGS([torch.zeros(2, requires_grad=True)]), "gradient")).__name__
    'TypeError'
    """
    calls = 0
    try:
        trial = object.__new__(type(optimizer))  # optimizers copied in the usual way lose attributes of their own
        trial.__dict__.update(copy.deepcopy(vars(optimizer)))
        parameters = [p for group in trial.param_groups for p in group["params"] if p.requires_grad]

        def closure() -> torch.Tensor:
            nonlocal calls
            calls += 1
            with torch.enable_grad():
                for parameter in parameters:
                    parameter.grad = None
                loss = torch.stack([(1e-3 * p + 1e-3).float().square().sum() for p in parameters]).sum()
                loss.backward()
            return loss.detach()

        for parameter in parameters:
            parameter.grad = None
        train = getattr(trial, "train", None)
        if callable(train) and use != "gradient":
            train()
        for _ in range(2):  # what an optimizer remembers exists from the second step on
            step(trial, closure, use)
        if use == "closure" and calls < 2:
            raise TypeError("step(closure) does not call the closure")
        return [parameter.detach() for parameter in parameters]
    except Exception as error:
        return error


def step(optimizer: Optimizer, closure: Callable[[], Any], use: Use, **arguments: Any) -> Any:
    """Take a step as `use` says."""
    if use == "closure":
        return optimizer.step(closure=closure, **arguments)
    found = closure()
    if use == "gradient":
        if found is not None:  # the module has skipped the batch
            optimizer.step(**arguments)
        return found
    return optimizer.step(closure=closure, **arguments)
