"""Train one client: the user's own `training_step` and `configure_optimizers` on that client's data.

Hooks that a module has of its own are called in Lightning's order (`hooks.CALLED`). Its Trainer is a view of this training
(`ClientTrainer`). `self.log` and `self.log_dict` work and are averaged over the steps of a client and the clients of a round.
Optimizer and scheduler are made anew for every client and round: clients keep no state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, Protocol

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from fl_lightning.checked import real, whole
from fl_lightning.client_errors import blamed
from fl_lightning.client_logs import LogCollector, collected_logs
from fl_lightning.client_steps import ClientSteps
from fl_lightning.client_trainer import ClientTrainer, LocalPlan, passes
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError, nearest
from fl_lightning.hooks import called_hooks, transferred
from fl_lightning.structure import Structure

log = logging.getLogger(__name__)

LEAST_EPOCHS = 1e-6

REALS, WHOLES = ("epochs", "gradient_clip_norm"), ("batch_size", "branches")
"""What kind of number settings are."""

MOST_EPOCHS = 100_000
"""More in one round would not end while anybody waits."""


class NotTogetherError(Exception):
    """Why clients cannot be trained together; one clear line."""


class Stepper(Protocol):
    """Takes a client's steps in a way of its own, such as `RecordedSteps`."""

    def begin(self, optimizer: Optimizer) -> None:
        """Another client begins, with a fresh optimizer."""

    def look_again(self) -> None:
        """The module, its values or its tensors may be others than before."""

    def step(self, batch: Any, optimizer: Optimizer, logs: LogCollector) -> None:
        """Train on one batch, now or in `catch_up`."""

    def catch_up(self, logs: LogCollector) -> None:
        """Train on all batches that are left of those that were given. The stepper says where the weights are then."""


@dataclass(frozen=True)
class LocalTraining:
    """How long and how a client trains in a round.

    Attributes:
        epochs: passes over the client's data, at least 1e-6; may be fractional. A part p of a pass is ceil(p * n_i / B) batches
            of a fresh shuffle.
        batch_size: B. A last batch of a single sample is joined to the one before it, as BatchNorm cannot train on one.
        precision: `bf16` runs `training_step` under bfloat16 autocast; parameters, updates and aggregation stay float32.
        gradient_clip_norm: largest norm of a step's gradient; 0 for no clipping.
        executor: how steps are taken. `sequential`: as the module has them. `graph`: recorded once per shape of batch and
            replayed without Python (on GPUs as a CUDA graph), bit for bit the same; SGD only. `auto`: the faster of these two,
            by measurement, for modules whose class says `recordable = True`. `stacked`: benign clients of a rank together,
            their weights stacked; equal to the others up to rounding alone, so that bits depend on the number of ranks. What
            an executor cannot take is trained sequentially.
        branches: with `graph`, or `auto` that has chosen it, how many of a rank's clients are trained side by side, each in
            tensors of its own, with the same bits. On a GPU their steps are parallel branches of one CUDA graph, as a small
            network's step does not fill it; on a CPU nothing is gained. 0: eight on a GPU, or fewer where memory is short.
    """

    epochs: float = 1.0
    batch_size: int = 64
    precision: Literal["32", "bf16"] = "32"
    gradient_clip_norm: float = 0.0
    executor: Literal["auto", "sequential", "stacked", "graph"] = "auto"
    branches: int = 0

    def __post_init__(self) -> None:
        numbers: dict[str, float] = {name: real(f"model.local.{name}", getattr(self, name)) for name in REALS}
        vars(self).update(
            numbers | {name: whole(f"model.local.{name}", getattr(self, name)) for name in WHOLES}
        )  # frozen from here
        if not (self.epochs >= LEAST_EPOCHS and math.isfinite(self.epochs)):
            raise ConfigurationError(f"model.local.epochs must be at least {LEAST_EPOCHS}, got {self.epochs}")
        if self.epochs > MOST_EPOCHS:
            raise ConfigurationError(f"model.local.epochs must be at most {MOST_EPOCHS:,}, got {self.epochs}")
        if self.precision not in ("32", "bf16"):
            raise ConfigurationError(f"model.local.precision must be 32 or bf16, got {self.precision!r}")
        if self.batch_size < 1:
            raise ConfigurationError(f"model.local.batch_size must be at least 1, got {self.batch_size}")
        if self.executor not in ("auto", "sequential", "stacked", "graph"):
            raise ConfigurationError(f"model.local.executor must be auto, sequential, stacked or graph, got {self.executor!r}")
        if self.branches < 0 or (self.branches > 1 and self.executor not in ("auto", "graph")):
            raise ConfigurationError(
                "model.local.branches must be at least 0, and at most 1 unless model.local.executor is auto or graph; got "
                f"{self.branches} with {self.executor}"
            )
        if not self.gradient_clip_norm >= 0:
            raise ConfigurationError(f"model.local.gradient_clip_norm must be 0 (off) or more, got {self.gradient_clip_norm}")

    def train(
        self,
        module: L.LightningModule,
        samples: Samples,
        generator: torch.Generator,
        after_step: Callable[[int, int], None] | None = None,
        steps: int | None = None,
        stepper: Stepper | None = None,
    ) -> dict[str, float]:
        """Train the module, in place unless `stepper` keeps weights of its own.

        Args:
            module: holds the global weights and ends with the client's.
            samples: the client's data; without any the module stays as it is.
            generator: CPU generator of this client and round: order of the samples and augmentation.
            after_step: called after every batch with the number of batches so far and in all.
            steps: batches to train on, as many epochs as they take, in place of what `epochs` says.
            stepper: takes the steps in a way of its own, bit for bit the same.

        Returns:
            What the module logged, averaged over the steps.
        """
        parts = list(module.modules())
        reset_metrics(parts)
        if not all(part.training for part in parts):  # to see that takes a third of `train`'s time
            module.train()
        structure = Structure(parts) if stepper is None else None
        parameters = [p for p in module.parameters() if p.requires_grad]
        device = parameters[0].device
        plan = self.plan(len(samples), steps)
        epochs, steps = self.epochs if steps is None else math.inf, plan.steps
        trainer = ClientTrainer(module, device, plan, self.gradient_clip_norm)
        step = 0
        with blamed(trainer), trainer.seen_by(parts), collected_logs(module, parts) as logs:
            optimizer, scheduler = configured(module)
            trainer.use(optimizer, scheduler.configs, logs)
            client = ClientSteps(module, trainer, parameters, optimizer, partial(self.autocast, device))
            if stepper is not None:
                stepper.begin(optimizer)
            client.begin()
            for epoch, (order, sizes) in enumerate(epoch_batches(len(samples), epochs, self.batch_size, generator, device)):
                sizes = sizes[: steps - step]
                trainer.begin_epoch(epoch, len(sizes))
                client.call("on_train_epoch_start")
                for batch_idx, given in enumerate(samples.batches(order, sizes, generator)):
                    last, skips = batch_idx + 1 == len(sizes), False
                    if stepper is not None:
                        stepper.step(resident(given, device), optimizer, logs)
                        trainer.global_step += 1
                    else:
                        trainer.is_last_batch = last
                        batch = resident(transferred(module, given, device, client.hooks), device)
                        skips = not client.train_on(batch, batch_idx)
                    step += len(sizes) - batch_idx if skips else 1
                    stops = trainer.should_stop
                    if after_step is not None:  # also where the module skipped the batch, which may be the last
                        if stepper is not None:
                            stepper.catch_up(logs)
                        after_step(step, step if stops else steps)
                        if stepper is not None:
                            stepper.look_again()
                    scheduler.after_step(batch_idx + 1)
                    if last or skips:
                        scheduler.after_epoch(epoch + 1)
                    if skips:
                        break
                    if client.hooks:
                        client.finish_batch()
                    if trainer.should_stop:
                        break
                client.call("on_train_epoch_end")
                trainer.current_epoch = epoch + 1
                if step == steps or trainer.should_stop:
                    break
            if stepper is not None:
                stepper.catch_up(logs)
            client.end()
        if structure is not None:
            structure.check(module)
        for parameter in parameters:
            parameter.grad = None
        return logs.averages()

    def warn_of_slow_precision(self, device: torch.device) -> None:
        """Say so where bf16 is emulated, as on CPUs without instructions for it."""
        if self.precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            log.warning(
                "model.local.precision is bf16, but this CPU has no instructions for it: convolutions will take several times "
                "as long as in 32"
            )

    def num_steps(self, n: int) -> int:
        """Batches that a client of n samples trains on in a round."""
        return sum(count for _, count in epoch_parts(n, self.epochs, self.batch_size))

    def plan(self, n: int, steps: int | None = None) -> LocalPlan:
        """How long a client of n samples trains in a round, or until it has taken `steps`."""
        if steps is None:
            counts = [count for _, count in epoch_parts(n, self.epochs, self.batch_size)]
            return LocalPlan(len(counts), sum(counts), counts[0] if counts else 0)
        whole = next((count for _, count in epoch_parts(n, math.inf, self.batch_size)), 0)
        return LocalPlan(passes(steps, whole), steps if whole else 0, min(whole, steps))

    @contextmanager
    def seen_by(self, module: L.LightningModule, n: int) -> Iterator[ClientTrainer]:
        """Have the module see what a client of n samples would, for those who ask for its optimizer without training it."""
        device = next(module.parameters()).device
        with ClientTrainer(module, device, self.plan(n), self.gradient_clip_norm).seen_by(module.modules()) as trainer:
            yield trainer

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context that `training_step` runs in."""
        return torch.autocast(device.type, dtype=torch.bfloat16) if self.precision == "bf16" else nullcontext()


def epoch_parts(n: int, epochs: float, batch_size: int) -> Iterator[tuple[list[int], int]]:
    """The sizes of an epoch's batches and how many of them are taken, for each local epoch; nothing without samples."""
    sizes = [batch_size] * (n // batch_size) + ([n % batch_size] if n % batch_size else [])
    if batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [batch_size + 1]
    left = epochs if n else 0.0
    while left > LEAST_EPOCHS / 2:  # what rounding leaves of a whole number is no part of an epoch
        part = min(left, 1.0)
        yield sizes, min(len(sizes), max(1, math.ceil(part * n / batch_size - 1e-9)))
        left -= part


def epoch_batches(
    n: int, epochs: float, batch_size: int, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, list[int]]]:
    """The batches of each local epoch, the last of which may be a part of one.

    Args:
        n: samples of the client.
        epochs: passes over them.
        batch_size: B.
        generator: CPU generator that the shuffles are drawn from.
        device: where the indices are wanted.

    Yields:
        Of one epoch: all samples' indices ((n,) int64) in the order in which they are taken, and the sizes of the batches.
    """
    for sizes, count in epoch_parts(n, epochs, batch_size):  # a GPU with steps to do need not be waited for
        yield torch.randperm(n, generator=generator).to(device, non_blocking=True), sizes[:count]


def resident(batch: Any, device: torch.device) -> Any:
    """The batch on `device`; pairs of tensors that are there already, as of `TensorSamples`, are not searched through."""
    if type(batch) is tuple and {*map(type, batch)} == {Tensor} and {part.device for part in batch} == {device}:
        return batch
    return move_data_to_device(batch, device)


@dataclass(frozen=True)
class LocalScheduler:
    """A learning-rate scheduler inside one client's training; does nothing without one.

    Attributes:
        scheduler: steps after every batch or every epoch whose number, counted from 1, is a multiple of the frequency; batches
            are counted anew in every epoch, as Lightning does it.
        step: how it does, where the module has its own `lr_scheduler_step`.
    """

    scheduler: Any = None
    interval: Literal["step", "epoch"] = "epoch"
    frequency: int = 1
    step: Callable[[], None] | None = None

    def after_step(self, step: int) -> None:
        if self.scheduler is not None and self.interval == "step" and step % self.frequency == 0:
            (self.step or self.scheduler.step)()

    def after_epoch(self, epoch: int) -> None:
        if self.scheduler is not None and self.interval == "epoch" and epoch % self.frequency == 0:
            (self.step or self.scheduler.step)()

    @property
    def configs(self) -> list[LRSchedulerConfig]:
        """As a Trainer shows it to its module."""
        if self.scheduler is None:
            return []
        return [LRSchedulerConfig(self.scheduler, interval=self.interval, frequency=self.frequency)]


def configured(module: L.LightningModule) -> tuple[Optimizer, LocalScheduler]:
    """A fresh optimizer of the module's, and its scheduler, which steps as the module says."""
    optimizer, scheduler = read_optimizers(module.configure_optimizers())
    if scheduler.scheduler is None:
        return optimizer, scheduler
    if "lr_scheduler_step" in called_hooks(module):
        return optimizer, replace(scheduler, step=partial(module.lr_scheduler_step, scheduler.scheduler, None))
    if not isinstance(scheduler.scheduler, LRScheduler):
        raise ConfigurationError(
            f"the scheduler {type(scheduler.scheduler).__name__} of the client {type(module).__name__} is not one of PyTorch's "
            "kind (torch.optim.lr_scheduler.LRScheduler); say how it steps in lr_scheduler_step(self, scheduler, metric)"
        )
    return optimizer, scheduler


OPTIMIZER_KEYS = ("optimizer", "lr_scheduler", "monitor")
SCHEDULER_KEYS = tuple(field.name for field in fields(LRSchedulerConfig))
"""What dictionaries that `configure_optimizers` returns may hold: Lightning's names."""


def read_optimizers(configured: Any, whose: str = "a client") -> tuple[Optimizer, LocalScheduler]:
    """The one optimizer, and the scheduler if any, in what a module's `configure_optimizers` returns.

    Args:
        configured: in any of Lightning's forms.
        whose: a word for messages.

    Raises:
        ConfigurationError: for no or several optimizers, several schedulers, one that waits for a metric or belongs to another
            optimizer, and names that Lightning does not know.
    """
    optimizers: Any
    schedulers: Any = []
    if isinstance(configured, Mapping):
        check_keys(configured, OPTIMIZER_KEYS, "optimizer")
        optimizers, schedulers = configured["optimizer"], configured.get("lr_scheduler", [])
    elif isinstance(configured, (tuple, list)) and len(configured) == 2 and isinstance(configured[0], (tuple, list)):
        optimizers, schedulers = configured
    elif isinstance(configured, (tuple, list)) and len(configured) == 1 and isinstance(configured[0], Mapping):
        return read_optimizers(configured[0], whose)
    else:
        optimizers = configured
    optimizers = list(optimizers) if isinstance(optimizers, (tuple, list)) else [optimizers]
    schedulers = list(schedulers) if isinstance(schedulers, (tuple, list)) else [schedulers]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        names = [type(optimizer).__name__ for optimizer in optimizers]
        raise ConfigurationError(
            f"{whose} needs exactly one optimizer, but its configure_optimizers gives {len(names)}: {names}; several "
            "optimizers need manual optimization, which is not done here"
        )
    if len(schedulers) > 1:
        raise ConfigurationError(f"{whose} may have one learning-rate scheduler, got {len(schedulers)}")
    if not schedulers:
        return optimizers[0], LocalScheduler()
    given = dict(schedulers[0]) if isinstance(schedulers[0], Mapping) else {"scheduler": schedulers[0]}
    check_keys(given, SCHEDULER_KEYS, "scheduler")
    scheduler, interval, frequency = given["scheduler"], given.get("interval", "epoch"), given.get("frequency", 1)
    if isinstance(scheduler, ReduceLROnPlateau) or given.get("reduce_on_plateau"):
        raise ConfigurationError(f"ReduceLROnPlateau waits for a metric, which {whose} does not have; use another scheduler")
    if interval not in ("step", "epoch") or not isinstance(frequency, int) or frequency < 1:
        raise ConfigurationError(
            f"a scheduler's interval must be step or epoch and its frequency at least 1, got {interval!r} and {frequency}"
        )
    if isinstance(scheduler, Optimizer) or not callable(getattr(scheduler, "step", None)):
        raise ConfigurationError(
            f"configure_optimizers gives {type(scheduler).__name__} as a learning-rate scheduler, which cannot step; return "
            "the optimizer alone, or a scheduler of torch.optim.lr_scheduler"
        )
    if getattr(scheduler, "optimizer", optimizers[0]) is not optimizers[0]:
        raise ConfigurationError(
            f"the scheduler {type(scheduler).__name__} was made for another optimizer than configure_optimizers returns; make "
            "it for that one"
        )
    return optimizers[0], LocalScheduler(scheduler, interval, frequency)


def check_keys(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """Refuse names in a dictionary of `configure_optimizers` that Lightning does not know, and one without `what`."""
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigurationError(
            f"configure_optimizers gives a dict for the {what} with the key {unknown[0]!r}, which would do nothing; "
            f"{nearest(str(unknown[0]), known)}"
        )
    if what not in given:
        raise ConfigurationError(f"configure_optimizers gives a dict with {sorted(given)}, which lacks the key {what!r}")


def reset_metrics(parts: list[nn.Module]) -> None:
    """Forget what torchmetrics objects among a module's parts saw of the client before, and keep them from asking other ranks.

    Ranks train different clients, and not equally many: a metric that synchronised would wait for ranks that never come.
    """
    for part in parts:
        if isinstance(part, Metric):
            part.sync_on_compute = part._to_sync = False
            part.reset()
