"""Train one client: the user's own `training_step` and `configure_optimizers` on that client's data.

Hooks that a module has of its own are called in Lightning's order (`hooks.CALLED`). Its Trainer is a view of this training
(`ClientTrainer`). `self.log` and `self.log_dict` work and are averaged over the steps of a client and the clients of a round.
Optimizer and scheduler are made anew for every client and round: clients keep no state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from fl_lightning.checked import MOST_EPOCHS, real, whole, with_checked_arguments
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.hooks import transferred
from fl_lightning.modules.structure import Structure
from fl_lightning.training.batches import LEAST_EPOCHS, epoch_batches, epoch_parts, resident
from fl_lightning.training.client_errors import blamed
from fl_lightning.training.client_logs import LogCollector, collected_logs
from fl_lightning.training.client_steps import ClientSteps
from fl_lightning.training.client_trainer import ClientTrainer, LocalPlan, passes
from fl_lightning.training.idle_clients import Taken
from fl_lightning.training.optimizers import Configure, configured

log = logging.getLogger(__name__)

REALS, WHOLES = ("epochs", "gradient_clip_norm"), ("batch_size", "branches")
"""What kind of number settings are."""


class NotTogetherError(Exception):
    """Why clients cannot be trained together; one clear line."""


class Stepper(Protocol):
    """Takes a client's steps in a way of its own, such as `RecordedSteps`."""

    def begin(self, optimizer: Optimizer, plain: bool = False) -> None:
        """Another client begins, with a fresh optimizer; `plain`: nobody else draws until it ends."""

    def look_again(self) -> None:
        """The module, its values or its tensors may be others than before."""

    def step(self, batch: Any, optimizer: Optimizer, logs: LogCollector) -> None:
        """Train on one batch, now or in `catch_up`."""

    def catch_up(self, logs: LogCollector) -> None:
        """Train on all batches that are left of those that were given. The stepper says where the weights are then."""


class Follower(Protocol):
    """Follows a client's training and has a say in it, such as `Following`."""

    def begin_epoch(self, logs: LogCollector) -> None:
        """Another pass over the data begins."""

    def loss(self, batch: Any, loss: Tensor) -> Tensor:
        """What a step goes down, in place of the loss that `training_step` gave for the batch."""

    def finished(self, logs: LogCollector) -> bool:
        """Whether the client has trained enough, after a pass over its data."""


@with_checked_arguments
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

    place: ClassVar[str] = "model.local"
    """Where it stands in a configuration, for messages."""

    def __post_init__(self) -> None:
        numbers: dict[str, float] = {name: real(f"{self.place}.{name}", getattr(self, name)) for name in REALS}
        vars(self).update(
            numbers | {name: whole(f"{self.place}.{name}", getattr(self, name)) for name in WHOLES}
        )  # frozen from here
        if not self.epochs >= LEAST_EPOCHS:  # NaN neither
            raise ConfigurationError(f"{self.place}.epochs must be at least {LEAST_EPOCHS}, got {self.epochs}")
        if self.epochs > MOST_EPOCHS:
            raise ConfigurationError(f"{self.place}.epochs must be at most {MOST_EPOCHS:,}, got {self.epochs}")
        if self.precision not in ("32", "bf16"):
            raise ConfigurationError(f"{self.place}.precision must be 32 or bf16, got {self.precision!r}")
        if self.batch_size < 1:
            raise ConfigurationError(f"{self.place}.batch_size must be at least 1, got {self.batch_size}")
        if self.executor not in ("auto", "sequential", "stacked", "graph"):
            raise ConfigurationError(f"{self.place}.executor must be auto, sequential, stacked or graph, got {self.executor!r}")
        if self.branches < 0 or (self.branches > 1 and self.executor not in ("auto", "graph")):
            raise ConfigurationError(
                f"{self.place}.branches must be at least 0, and at most 1 unless {self.place}.executor is auto or graph; got "
                f"{self.branches} with {self.executor}"
            )
        if not self.gradient_clip_norm >= 0:
            raise ConfigurationError(f"{self.place}.gradient_clip_norm must be 0 (off) or more, got {self.gradient_clip_norm}")

    def train(
        self,
        module: L.LightningModule,
        samples: Samples,
        generator: torch.Generator,
        after_step: Callable[[int, int], None] | None = None,
        steps: int | None = None,
        stepper: Stepper | None = None,
        configure: Configure = configured,
        follower: Follower | None = None,
        taken: Taken | None = None,
        structure: Structure | None = None,
    ) -> dict[str, float]:
        """Train the module, in place unless `stepper` keeps weights of its own.

        Args:
            module: holds the global weights and ends with the client's.
            samples: the client's data; without any the module stays as it is.
            generator: CPU generator of this client and round: order of the samples and augmentation.
            after_step: called after every batch with the number of batches so far and in all.
            steps: batches to train on, as many epochs as they take, in place of what `epochs` says.
            stepper: takes the steps in a way of its own, bit for bit the same.
            configure: makes the optimizer and its scheduler.
            follower: of a client without a stepper, has a say in its loss and in its end.
            taken: counts batches, and those that are skipped.
            structure: what the module is made of, where somebody knows; it must still be so.

        Returns:
            What the module logged, averaged over the steps.
        """
        if structure is None:
            structure = Structure(module)
        parts, parameters = structure.parts, structure.trained
        reset_metrics(parts)
        if not all(part.training for part in parts):  # to see that takes a third of `train`'s time
            module.train()
        device = parameters[0].device
        plan = self.plan(len(samples), steps)
        epochs, steps = self.epochs if steps is None else math.inf, plan.steps
        trainer = ClientTrainer(module, device, plan, self.gradient_clip_norm)
        step = 0
        with blamed(trainer), trainer.seen_by(parts), collected_logs(module, parts) as logs:
            optimizer, scheduler = configure(module)
            trainer.use(optimizer, scheduler.configs, logs)
            rewrite = None if follower is None else follower.loss
            trained = parameters if follower is None else held_of(optimizer, parameters)
            client = ClientSteps(module, trainer, trained, optimizer, partial(self.autocast, device), rewrite)
            if stepper is not None:
                stepper.begin(optimizer, samples.plain and scheduler.scheduler is None)
            client.begin()
            for epoch, (order, sizes) in enumerate(epoch_batches(len(samples), epochs, self.batch_size, generator, device)):
                sizes = sizes[: steps - step]
                trainer.begin_epoch(epoch, len(sizes))
                client.call("on_train_epoch_start")
                if follower is not None:
                    follower.begin_epoch(logs)
                for batch_idx, given in enumerate(samples.batches(order, sizes, generator)):
                    last, skips = batch_idx + 1 == len(sizes), False
                    if stepper is not None:
                        stepper.step(resident(given, device), optimizer, logs)
                        trainer.global_step += 1
                    else:
                        trainer.is_last_batch = last
                        batch = resident(transferred(module, given, device, client.hooks), device)
                        skips = not client.train_on(batch, batch_idx)
                    if taken is not None:
                        taken.batches += 1
                        taken.skipped += client.skipped
                    step += len(sizes) - batch_idx if skips else 1
                    if follower is not None and (last or skips) and follower.finished(logs):
                        trainer.should_stop = True
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
        if stepper is None:
            structure.check(module)
        for parameter in parameters:
            parameter.grad = None
        return logs.averages()

    def warn_of_slow_precision(self, device: torch.device) -> None:
        """Say so where bf16 is emulated, as on CPUs without instructions for it."""
        if self.precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            log.warning(
                "%s.precision is bf16, but this CPU has no instructions for it: convolutions will take several times as long "
                "as in 32",
                self.place,
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


def held_of(optimizer: Optimizer, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those of the parameters that the optimizer trains, which are all but in a stage of an attacker's training."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in parameters if id(parameter) in held]


def reset_metrics(parts: list[nn.Module]) -> None:
    """Forget what torchmetrics objects among a module's parts saw of the client before, and keep them from asking other ranks.

    Ranks train different clients, and not equally many: a metric that synchronised would wait for ranks that never come.
    """
    for part in parts:
        # The first is seen sooner than the second, as the class is an abstract one.
        if Metric in type(part).__mro__ and isinstance(part, Metric):
            part.sync_on_compute = part._to_sync = False
            part.reset()
