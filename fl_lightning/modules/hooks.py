"""Which of Lightning's hooks a client has of its own, and which of these local training calls.

The list is read off LightningModule itself, so that a hook of a later version is named in the warning, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import lightning as L
from torch import nn

from fl_lightning.modules.lightning_modules import defines, lightning_base

CALLED = frozenset(
    {
        "on_train_start",
        "on_train_epoch_start",
        "on_before_batch_transfer",
        "transfer_batch_to_device",
        "on_after_batch_transfer",
        "on_train_batch_start",
        "on_before_zero_grad",
        "optimizer_zero_grad",
        "on_before_backward",
        "backward",
        "on_after_backward",
        "on_before_optimizer_step",
        "configure_gradient_clipping",
        "optimizer_step",
        "lr_scheduler_step",
        "on_train_batch_end",
        "on_train_epoch_end",
        "on_train_end",
    }
)
"""Hooks that local training calls where a client has its own, in Lightning's order; on_train_start and on_train_end stand at
the start and the end of one client's training in one round."""

NO_HOOKS = frozenset(
    {
        *("training_step", "configure_optimizers", "forward", "predict_step"),
        *("all_gather", "clip_gradients", "freeze", "log_dict", "lr_schedulers", "manual_backward", "optimizers", "print"),
        *("remove_ignored_hparams", "save_hyperparameters", "toggle_optimizer", "toggled_optimizer", "unfreeze"),
        *("untoggle_optimizer", "cpu", "cuda", "double", "float", "half", "to", "type"),
        *("to_onnx", "to_tensorrt", "to_torchscript"),
    }
)
"""Methods that a client may override with effect: called in any case, or by its own code alone."""


@cache
def hooks_of(base: type) -> frozenset[str]:
    """Every hook of a LightningModule: its public methods but for those of `nn.Module` and `NO_HOOKS`."""
    own = base.__mro__[: base.__mro__.index(nn.Module)]
    return frozenset(
        name for of in own for name, value in vars(of).items() if name[0] != "_" and callable(value) and name not in NO_HOOKS
    )


@cache
def _of_kind(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """All hooks of such modules, and those that the class has of its own."""
    hooks = hooks_of(lightning_base(kind) or L.LightningModule)
    return hooks, frozenset(name for name in hooks if defines(kind, name))


def overridden_hooks(module: nn.Module) -> frozenset[str]:
    """The hooks that a module has of its own, in its class or set on itself."""
    hooks, found = _of_kind(type(module))
    own = hooks.intersection(vars(module))
    return found | own if own else found


def called_hooks(module: nn.Module) -> frozenset[str]:
    """Those of them that local training calls."""
    found = overridden_hooks(module)
    return found & CALLED if found else found


def hooks_in_steps(module: nn.Module) -> list[str]:
    """Those of them that only a step taken as the module has it calls, not one that is recorded or stacked."""
    return sorted(called_hooks(module) - {"lr_scheduler_step"})


def uncalled_hooks(module: nn.Module) -> list[str]:
    """Those of them that local training does not call, in alphabetical order.

    Example:
        >>> class Net(L.LightningModule):
        ...     def on_fit_start(self): ...
        ...     def on_after_backward(self): ...
        >>> uncalled_hooks(Net())
        ['on_fit_start']
    """
    return sorted(overridden_hooks(module) - CALLED)


def transferred(module: Any, batch: Any, device: Any, hooks: frozenset[str] | None = None) -> Any:
    """A batch as the module's own hooks of the transfer to the device make it, in Lightning's order.

    Args:
        module: with or without such hooks.
        batch: as the data give it.
        device: where it is to be.
        hooks: those that the module has, where that is known.
    """
    hooks = called_hooks(module) if hooks is None else hooks
    if "on_before_batch_transfer" in hooks:
        batch = module.on_before_batch_transfer(batch, 0)
    if "transfer_batch_to_device" in hooks:
        batch = module.transfer_batch_to_device(batch, device, 0)
    if "on_after_batch_transfer" in hooks:
        batch = module.on_after_batch_transfer(batch, 0)
    return batch


def num_arguments(method: Callable[..., Any]) -> int:
    """How many of (batch, batch_idx, ...) a `training_step` or `predict_step` takes by their place; with `*args`, two at least.

    Example:
        >>> num_arguments(lambda batch, **options: None)
        1
    """
    function = getattr(method, "__func__", None)  # asked for every client: a method is bound anew each time, this stays
    return _num_arguments(method, bound=False) if function is None else _num_arguments(function, bound=True)


@lru_cache(maxsize=256)
def _num_arguments(function: Callable[..., Any], *, bound: bool) -> int:
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return max(2, kinds.index(inspect.Parameter.VAR_POSITIONAL) - bound)
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds) - bound
