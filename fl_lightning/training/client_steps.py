"""A client's steps as Lightning takes them: the same calls of the module's own hooks, in the same order.

One batch: on_train_batch_start, then the optimizer's `step` with a closure, which is training_step, zero_grad, backward and
the clipping of gradients, then on_train_batch_end. A hook is called where the module has its own, and costs nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.hooks import called_hooks, num_arguments
from fl_lightning.modules.recordable import is_recordable
from fl_lightning.training.client_trainer import ClientTrainer
from fl_lightning.training.closures import Use, closure_use, step


class ClientSteps:
    """Takes the steps of one client in one round.

    Args:
        module: trained in place.
        trainer: what the module sees of its training; counts steps.
        parameters: those whose gradients are clipped.
        optimizer: a fresh one of the module's.
        autocast: the context that `training_step` runs in.
        rewrite: makes another loss of a batch and what `training_step` gave for it; None leaves it.
    """

    def __init__(
        self,
        module: L.LightningModule,
        trainer: ClientTrainer,
        parameters: list[nn.Parameter],
        optimizer: Optimizer,
        autocast: Callable[[], AbstractContextManager[Any]],
        rewrite: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self.module, self.trainer, self.parameters, self.autocast = module, trainer, parameters, autocast
        self.optimizer, self.rewrite = optimizer, rewrite
        self.hooks = called_hooks(module)
        self.looks_at_gradients = bool(self.hooks) or not is_recordable(module)
        self.batch: Any = None
        self.batch_idx = 0
        self.outputs: Any = None
        self.evaluated = self.skipped = False

    @cached_property
    def use(self) -> Use:
        """How the optimizer wants to be called."""
        return closure_use(self.optimizer)

    @cached_property
    def num_arguments(self) -> int:
        """Of `training_step`, which may take the batch alone."""
        return num_arguments(self.module.training_step)

    def begin(self) -> None:
        """Training starts."""
        if hasattr(self.optimizer, "train"):  # of those that keep an average beside what they train (schedule-free)
            self.optimizer.train()  # pyrefly: ignore[not-callable]
        self.call("on_train_start")

    def end(self) -> None:
        """Training ends; the module holds what came of it."""
        self.call("on_train_end")
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()  # pyrefly: ignore[not-callable]

    def call(self, hook: str, *arguments: Any) -> Any:
        """Call a hook that the module has of its own."""
        return getattr(self.module, hook)(*arguments) if hook in self.hooks else None

    def train_on(self, batch: Any, batch_idx: int) -> bool:
        """Train on one batch; False where the module wants no more of this epoch."""
        self.batch, self.batch_idx, self.evaluated, self.skipped = batch, batch_idx, False, False
        if self.call("on_train_batch_start", batch, batch_idx) == -1:
            self.trainer.is_last_batch = self.skipped = True
            return False
        if "optimizer_step" in self.hooks:
            trainer = self.trainer
            trainer.take_step = self.take_step
            try:
                self.module.optimizer_step(trainer.current_epoch, batch_idx, trainer.wrapped_optimizers[0], self.closure)
            finally:
                trainer.take_step = None
        else:
            self.take_step(self.optimizer, self.closure)
        if not self.evaluated:
            raise ConfigurationError(
                f"optimizer_step or the optimizer {type(self.optimizer).__name__} of the client {type(self.module).__name__} "
                "did not call its closure, which is what calls training_step; pass it on: optimizer.step(closure=...)"
            )
        self.trainer.global_step += 1
        return True

    def finish_batch(self) -> None:
        """The step on a batch is over, and its schedulers have stepped."""
        self.call("on_train_batch_end", self.shown, self.batch, self.batch_idx)

    def take_step(self, optimizer: Optimizer, closure: Callable[[], Any], **arguments: Any) -> Any:
        """A step of the optimizer, which sees gradients as the hooks before it have left them."""

        def whole() -> Any:
            loss = closure()
            self.call("on_before_optimizer_step", optimizer)
            self.clip(optimizer)
            return loss

        return step(optimizer, whole, self.use, **arguments)

    @torch.enable_grad()
    def closure(self) -> Tensor | None:
        """Evaluate loss and gradients on the batch.

        Gradients of before are dropped late, as `training_step` may look at them; early, where it does not: it can then use
        their memory, which the cache still has.
        """
        self.evaluated = True
        if not self.looks_at_gradients:
            for parameter in self.parameters:
                parameter.grad = None
        with self.autocast():
            output = self.module.training_step(*(self.batch, self.batch_idx)[: self.num_arguments])
            loss = read_loss(output)
            if self.rewrite is not None and loss is not None:
                loss = self.rewrite(self.batch, loss)
        self.outputs = output
        self.call("on_before_zero_grad", self.optimizer)
        if "optimizer_zero_grad" in self.hooks:
            self.module.optimizer_zero_grad(self.trainer.current_epoch, self.batch_idx, self.optimizer)
        elif self.looks_at_gradients:
            self.optimizer.zero_grad(set_to_none=True)
        self.skipped = loss is None
        if loss is None:
            return None
        self.call("on_before_backward", loss)
        if "backward" in self.hooks:
            self.module.backward(loss)
        else:
            check_loss(loss)
            loss.backward()
        self.call("on_after_backward")
        return loss.detach()

    def clip(self, optimizer: Optimizer) -> None:
        """Clip gradients, as the module says or to the largest norm that was asked for."""
        most = self.trainer.gradient_clip_val
        if "configure_gradient_clipping" in self.hooks:
            self.module.configure_gradient_clipping(optimizer, gradient_clip_val=most, gradient_clip_algorithm=None)
        elif most:
            nn.utils.clip_grad_norm_(self.parameters, most)

    @property
    def shown(self) -> dict[str, Any]:
        """What `on_train_batch_end` is told that `training_step` has given."""
        if self.outputs is None:
            return {}
        outputs = self.outputs if isinstance(self.outputs, Mapping) else {"loss": self.outputs}
        return {**outputs, "loss": outputs["loss"].detach()} if outputs.get("loss") is not None else dict(outputs)


def read_loss(output: Any) -> Tensor | None:
    """The loss in what a `training_step` returns: a tensor, a mapping with `loss`, or None to skip the batch."""
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if output is None or isinstance(loss, Tensor):
        return loss
    raise ConfigurationError(
        f"training_step must return a loss tensor, a dict with the key 'loss', or None; got {type(output).__name__}"
    )


def check_loss(loss: Tensor) -> None:
    """Raise `ConfigurationError` unless this is one real number with gradients, as `backward` takes without being told more.

    >>> check_loss(torch.zeros(8, requires_grad=True))
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: training_step gives a loss of shape (8,), not one number; return loss.mean() ...
    """
    if loss.numel() == 1 and loss.requires_grad and not loss.is_complex():  # looked at in every step
        return
    if loss.numel() != 1:
        raise ConfigurationError(
            f"training_step gives a loss of shape {tuple(loss.shape)}, not one number; return loss.mean() (or leave out "
            "reduction='none')"
        )
    if loss.is_complex():
        raise ConfigurationError(f"training_step gives a loss of dtype {loss.dtype}; return a real number, such as loss.abs()")
    raise ConfigurationError(
        f"training_step gives a loss of dtype {loss.dtype} that no gradient can be taken of: it was detached (detach(), "
        "item(), no_grad), or comes of nothing that is trained, as of layers frozen by now; return it as the module's "
        "layers and a loss function give it"
    )
