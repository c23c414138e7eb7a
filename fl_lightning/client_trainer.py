"""What a client sees where a LightningModule looks for its Trainer: its own local training in this round, and nothing else.

The Trainer of a federation counts rounds, and its optimizer is the server's. A client that reached it would move the server's
learning rate, or end the federation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer

from fl_lightning.client_logs import LogCollector
from fl_lightning.errors import ConfigurationError


class NotAClientsError(ConfigurationError, AttributeError):
    """A client asks for what it does not have; an AttributeError, so that `hasattr` and `getattr` with a default work."""


@dataclass(frozen=True)
class LocalPlan:
    """How long a client is to train.

    Attributes:
        epochs: passes over its data, the last of which may be a part.
        steps: batches in all.
        epoch_steps: batches of the first pass.
    """

    epochs: int
    steps: int
    epoch_steps: int


class ClientLogger:
    """In the place of a Trainer's logger: false, as there is none, and a readable error for those who do not ask."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":  # what copies and pickles look for
            raise AttributeError(name)
        raise NotAClientsError(
            f"a client has no logger, and asks its logger for {name}: use self.log in the client, whose values reach the run's "
            "loggers as averages over clients, or write to trainer.logger in a callback"
        )


class ClientStrategy:
    """In the place of a Trainer's strategy: takes optimizer steps; ranks train different clients, so there is nobody to ask."""

    def __init__(self, trainer: ClientTrainer) -> None:
        self._trainer = trainer

    @property
    def root_device(self) -> torch.device:
        return self._trainer.device

    @property
    def lightning_module(self) -> nn.Module:
        return self._trainer.model

    model = lightning_module
    precision_plugin: ClassVar[Precision] = Precision()

    @property
    def _lightning_optimizers(self) -> list[LightningOptimizer]:
        return self._trainer.wrapped_optimizers

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], **arguments: Any) -> Any:
        """What `step` of the optimizer that a client's hook gets comes to."""
        if self._trainer.take_step is None:
            raise ConfigurationError(
                "a client calls step of self.optimizers(), and local training calls it as well; leave it to local training, "
                "which calls training_step, backward and step for every batch"
            )
        return self._trainer.take_step(optimizer, closure, **arguments)

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        raise NotAClientsError(
            f"a client asks its Trainer's strategy for {name}: clients of different ranks share nothing while they train, so "
            "that results do not depend on the number of ranks; leave it out"
        )


class ClientTrainer:
    """A client's view of its own training; `LightningModule.trainer` while it trains, also in `configure_optimizers`.

    Args:
        model: the client.
        device: where it trains.
        plan: how long it is to train.
        gradient_clip_norm: 0 for none.

    Attributes:
        should_stop: a client that sets it has trained enough for this round; the federation goes on.
        global_step: optimizer steps that this client has taken in this round.
        current_epoch: passes over its data that it has finished in this round.
        asked: whether anybody has looked at how long it trains.
    """

    training = is_global_zero = True
    validating = testing = predicting = sanity_checking = evaluating = fast_dev_run = barebones = received_sigterm = False
    interrupted = False
    world_size = num_nodes = num_devices = accumulate_grad_batches = min_epochs = 1
    global_rank = local_rank = node_rank = 0
    precision = "32-true"
    log_every_n_steps = 50
    logger = ClientLogger()
    checkpoint_callback = early_stopping_callback = progress_bar_callback = None
    profiler = PassThroughProfiler()
    precision_plugin = ClientStrategy.precision_plugin

    def __init__(self, model: nn.Module, device: torch.device, plan: LocalPlan, gradient_clip_norm: float = 0.0) -> None:
        self.model = self.lightning_module = model
        self.device = device
        self._plan = plan
        self._num_training_batches = plan.epoch_steps
        self.gradient_clip_val = gradient_clip_norm or None
        self.should_stop = self.is_last_batch = self.asked = False
        self.global_step = self.current_epoch = 0
        self.optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[LRSchedulerConfig] = []
        self.logs: LogCollector | None = None
        self.take_step: Callable[..., Any] | None = None
        self._wrapped: list[LightningOptimizer] | None = None
        self._strategy: ClientStrategy | None = None

    # ---- how long it trains ------------------------------------------------------------------------------------------

    @property
    def plan(self) -> LocalPlan:
        self.asked = True
        return self._plan

    @property
    def batches(self) -> int:
        """Of the whole training, for those who do not ask on the client's behalf."""
        return self._plan.steps

    @property
    def estimated_stepping_batches(self) -> int:
        """Optimizer steps in all, as a scheduler wants to know them."""
        return self.plan.steps

    @property
    def max_steps(self) -> int:
        return self.plan.steps

    @property
    def max_epochs(self) -> int:
        return self.plan.epochs

    @property
    def num_training_batches(self) -> int:
        """Of this pass over the data."""
        self.asked = True
        return self._num_training_batches

    def begin_epoch(self, number: int, batches: int) -> None:
        """Another pass over the data begins."""
        self.current_epoch, self._num_training_batches = number, batches

    # ---- what it trains with -----------------------------------------------------------------------------------------

    def use(self, optimizer: Optimizer, schedulers: Sequence[LRSchedulerConfig], logs: LogCollector) -> None:
        """What `configure_optimizers` has given, and where the client's logs are."""
        self.optimizers, self.lr_scheduler_configs, self.logs = [optimizer], list(schedulers), logs

    @property
    def strategy(self) -> ClientStrategy:
        if self._strategy is None:
            self._strategy = ClientStrategy(self)
        return self._strategy

    @property
    def wrapped_optimizers(self) -> list[LightningOptimizer]:
        """The optimizer as Lightning hands it to modules."""
        if self._wrapped is None:
            if not self.optimizers:
                raise ConfigurationError("a client asks for its optimizers before its configure_optimizers has made one")
            strategy: Any = self.strategy
            self._wrapped = [LightningOptimizer._to_lightning_optimizer(of, strategy) for of in self.optimizers]
        return self._wrapped

    @property
    def gradient_clip_algorithm(self) -> None:
        """By norm, which is what None stands for."""
        return

    # ---- what it has logged ------------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """What the client has logged in this round, averaged over the steps so far."""
        averages = {} if self.logs is None else self.logs.averages()
        return {name: torch.tensor(value) for name, value in averages.items()}

    logged_metrics = progress_bar_metrics = callback_metrics

    @property
    def loggers(self) -> list[Any]:
        return []

    @property
    def callbacks(self) -> list[Any]:
        return []

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        raise NotAClientsError(
            f"a client asks its Trainer for {name}, which a client does not have: its Trainer shows its own local training "
            "alone (optimizers, lr_scheduler_configs, estimated_stepping_batches, num_training_batches, max_epochs, max_steps, "
            "current_epoch, global_step, is_last_batch, should_stop, callback_metrics, device)"
        )

    @contextmanager
    def seen_by(self, parts: Iterable[nn.Module]) -> Iterator[ClientTrainer]:
        """Be the Trainer of those of a module's parts that look for one."""
        before = [(part.__dict__, part.__dict__["_trainer"]) for part in parts if "_trainer" in part.__dict__]
        for attributes, _ in before:
            attributes["_trainer"] = self
        try:
            yield self
        finally:
            for attributes, trainer in before:
                attributes["_trainer"] = trainer


def passes(steps: int, epoch_steps: int) -> int:
    """How many passes over the data `steps` batches take, of which a whole one has `epoch_steps`."""
    return math.ceil(steps / epoch_steps) if epoch_steps else 0
