"""What Trainer options and Lightning's callbacks mean for a federation; those that mean nothing or mislead are refused.

A round is a training step and an epoch has one, and optimization is manual, so a good part of Lightning's options has nothing
to act on. docs/reference/trainer.md lists all of them.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from fl_lightning.errors import ConfigurationError, nearest
from fl_lightning.strategy import FederatedStrategy

log = logging.getLogger(__name__)

OWN_FILES = ("last", "previous", "damaged")
"""Names of a run's own checkpoints."""

TrainerOfAnyKind = Any
"""A `Trainer`: most of its options are attributes that it sets where type checkers do not see it."""

MOST_ROUNDS = 10_000_000
"""More would take a year at three rounds a second."""

TWO_MODELS = "the weights that are measured, saved and left at the end would not be the same; average checkpoints after the run"

IN_A_ROUND = ("client/", "round/", "diagnostics/")
"""How the names of metrics begin that a round logs."""

REFUSED_CALLBACKS: dict[type[L.Callback], str] = {
    lightning_callbacks.StochasticWeightAveraging: TWO_MODELS,
    lightning_callbacks.WeightAveraging: TWO_MODELS,
    lightning_callbacks.GradientAccumulationScheduler: "the server steps once a round; set model.local.batch_size for clients",
    lightning_callbacks.LearningRateFinder: "it tries out steps of the server; compare runs with other learning rates",
    lightning_callbacks.BatchSizeFinder: "a round has no batch of its own; set model.local.batch_size and data.eval_batch_size",
    lightning_callbacks.BaseFinetuning: "updates are laid out at the start; freeze layers in the client's constructor",
    lightning_callbacks.ModelPruning: "it renames parameters, which are laid out at the start; prune in the client's own code",
    lightning_callbacks.SpikeDetection: "a round has no loss of its own; watch what clients log by EarlyStopping",
}
"""Lightning's callbacks that cannot work in a federation, with why, and what does."""


@runtime_checkable
class Measuring(Protocol):
    """A callback that can tell what evaluation will make it log, once the evaluation sets are there."""

    def measured(self, federation: L.LightningModule) -> list[str]:
        """Names such as `val/acc`."""


def check_trainer(trainer: TrainerOfAnyKind) -> None:
    """Raise `ConfigurationError` for options and callbacks without a meaning, and say what others amount to.

    Args:
        trainer: before it has done anything.
    """
    fit = trainer.state.fn == TrainerFn.FITTING
    for name, value, remedy in refusals(trainer) if fit else refused_everywhere(trainer):
        raise ConfigurationError(f"Trainer({name}={value!r}) {remedy}")
    check_callbacks(trainer)
    if fit:
        for remark in remarks(trainer):
            log.warning(remark)


def refused_everywhere(trainer: TrainerOfAnyKind) -> Iterator[tuple[str, Any, str]]:
    """Options that cannot be, in evaluation too, as (name, value, what is wrong and what to do)."""
    strategy = trainer.strategy
    device = strategy.root_device.type
    if device not in ("cpu", "cuda"):
        yield "accelerator", device, "is not known to work: set accelerator to cpu or gpu"
    if trainer.world_size > 1 and not isinstance(strategy, FederatedStrategy):
        yield "strategy", type(strategy).__name__, 'averages gradients over ranks; use strategy="federated" on several devices'
    if not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)) or isinstance(strategy, DeepSpeedStrategy):
        yield "strategy", type(strategy).__name__, "shares out a model, where a federation shares out clients; use 'federated'"
    if trainer.precision != "32-true":
        remedy = (
            "would aggregate in that precision; leave it at 32-true and set model.local.precision for the clients' training"
        )
        yield "precision", trainer.precision, remedy
    if getattr(strategy, "_layer_sync", None) is not None:
        yield "sync_batchnorm", True, "would mix the batches of clients on different ranks; leave it out, see model.buffers"
    if isinstance(strategy.checkpoint_io, AsyncCheckpointIO):
        yield "plugins", "AsyncCheckpointIO", "would leave checkpoints behind that are not whole yet; leave it out"
    for stage in ("val", "test"):
        limit = getattr(trainer, f"limit_{stage}_batches")
        part = limit != 0 and (isinstance(limit, int) or limit < 1)
        if part and not trainer.fast_dev_run:
            yield (
                f"limit_{stage}_batches",
                limit,
                "would measure Acc and ASR on the first samples of every rank alone; leave it out, set 0 for no evaluation, or "
                "give the data module a smaller test set",
            )


def refusals(trainer: TrainerOfAnyKind) -> Iterator[tuple[str, Any, str]]:
    """The options that training refuses."""
    if trainer.overfit_batches:
        yield "overfit_batches", trainer.overfit_batches, "means nothing to clients; give the data module fewer samples"
    yield from refused_everywhere(trainer)
    if not trainer.fast_dev_run and not (trainer.limit_train_batches == 1 and isinstance(trainer.limit_train_batches, float)):
        remedy = "would leave no round, or change none, as a round is one batch; clients train less by model.local.epochs"
        yield "limit_train_batches", trainer.limit_train_batches, remedy
    if trainer.accumulate_grad_batches != 1:
        remedy = "has nothing to act on, as the server steps once a round; set model.local.batch_size for clients"
        yield "accumulate_grad_batches", trainer.accumulate_grad_batches, remedy
    clip = "clips nothing; model.local.gradient_clip_norm clips clients' steps, the aggregator NormClipping their updates"
    if trainer.gradient_clip_val is not None:
        yield "gradient_clip_val", trainer.gradient_clip_val, clip
    if trainer.gradient_clip_algorithm is not None:
        yield "gradient_clip_algorithm", trainer.gradient_clip_algorithm.value, clip
    if trainer._model_registry is not None:
        yield "model_registry", trainer._model_registry, "is read by litmodels' own checkpoints alone; leave it out"
    for name, value, low in (
        ("log_every_n_steps", trainer.log_every_n_steps, 0),
        ("num_sanity_val_steps", trainer.num_sanity_val_steps, -1),
    ):
        if value < low:
            yield name, value, f"must be at least {low}"
    yield from lengths(trainer)
    yield from evaluation_times(trainer)


def lengths(trainer: TrainerOfAnyKind) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with how long a run is."""
    rounds, steps = trainer.max_epochs, trainer.max_steps
    for name, value in (("max_epochs", rounds), ("max_steps", steps)):
        if value == 0 or (value is not None and value > MOST_ROUNDS):
            yield name, value, f"is no number of rounds; it must lie between 1 and {MOST_ROUNDS:,}"
    ends = (lightning_callbacks.Timer, lightning_callbacks.EarlyStopping)
    endless = all(known(callback) and not isinstance(callback, ends) for callback in trainer.callbacks)
    if rounds == -1 and steps == -1 and endless:
        yield "max_epochs", rounds, "would never end; give a number of rounds, max_time, or a callback that stops the run"
    most = min((number for number in (rounds, steps) if number is not None and number >= 0), default=None)
    for name, least in (("min_epochs", trainer.min_epochs), ("min_steps", trainer.min_steps)):
        if least is not None and most is not None and most < least:
            yield name, least, f"is more than the {most} rounds of the run; raise max_epochs, which alone makes it longer"


def evaluation_times(trainer: TrainerOfAnyKind) -> Iterator[tuple[str, Any, str]]:
    """What is wrong with when a run evaluates."""
    every, interval = trainer.check_val_every_n_epoch, getattr(trainer, "val_check_interval", None)
    if every is not None and every < 1:
        yield "check_val_every_n_epoch", every, "must be at least 1; for no evaluation set limit_val_batches=0"
    clock = getattr(trainer, "_val_check_time_interval", None)  # then there is no `val_check_interval`
    if clock is not None:
        yield (
            "val_check_interval",
            f"{clock:g} s",
            "lets the clock decide which rounds are measured; set check_val_every_n_epoch",
        )
    elif every is None and (not isinstance(interval, int) or interval < 1):
        yield "val_check_interval", interval, "must be a whole number of rounds where check_val_every_n_epoch is None"
    elif every is not None and interval not in (1, None):
        yield "val_check_interval", interval, "cannot part a round; check_val_every_n_epoch=n evaluates after every n-th round"


def check_callbacks(trainer: TrainerOfAnyKind) -> None:
    """Raise for callbacks that cannot work, and for those of this package that are there twice."""
    for callback in trainer.callbacks:
        for refused, why in REFUSED_CALLBACKS.items():
            if isinstance(callback, refused):
                raise ConfigurationError(f"trainer.callbacks: {type(callback).__name__} cannot work in a federation: {why}")
        if getattr(callback, "_train_time_interval", None) is not None:
            raise ConfigurationError(
                f"trainer.callbacks: {type(callback).__name__}(train_time_interval=...) is never looked at in a federation; "
                "use every_n_epochs, a number of rounds"
            )
        check_file(trainer, callback)
    kinds = Counter(type(callback) for callback in trainer.callbacks if type(callback).__module__.startswith("fl_lightning."))
    for cls, number in kinds.items():
        if number > 1:
            raise ConfigurationError(f"trainer.callbacks: {cls.__name__} is there {number} times; name it once")


def check_file(trainer: TrainerOfAnyKind, callback: L.Callback) -> None:
    """Raise for one of Lightning's checkpoints that would be written where a run has its own."""
    if type(callback).__module__.startswith("fl_lightning.") or not isinstance(
        callback, (lightning_callbacks.ModelCheckpoint, lightning_callbacks.OnExceptionCheckpoint)
    ):
        return
    folder, name = getattr(callback, "dirpath", None), callback.filename
    if folder is not None and name in OWN_FILES and Path(folder).resolve() == Path(trainer.default_root_dir).resolve():
        trainer.callbacks.remove(callback)  # which may write on this very exception
        raise ConfigurationError(
            f"trainer.callbacks: {type(callback).__name__} would write {name}.ckpt into {folder}, where the run keeps its own "
            "checkpoint by that name; give it another filename or dirpath"
        )


def check_monitors(trainer: TrainerOfAnyKind, federation: L.LightningModule) -> None:
    """Raise where one of Lightning's callbacks waits for a metric that nobody logs.

    What clients log is known after the first round alone, and what callbacks of the user's own log is theirs.
    """
    if any(not known(callback) for callback in trainer.callbacks):
        return
    measured = [name for other in trainer.callbacks if isinstance(other, Measuring) for name in other.measured(federation)]
    measured = measured if trainer.limit_val_batches else []
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and not monitor.startswith(IN_A_ROUND) and monitor not in measured:
            there = (
                f"{meant(monitor, measured)}logged are {', '.join(measured)}, "
                if measured
                else "BackdoorMetrics logs val/acc, "
            )
            raise ConfigurationError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which nobody logs; {there}and client/NAME "
                "for what clients log as NAME"
            )


def meant(name: str, names: list[str]) -> str:
    """What may have been meant by a name, empty if it is like none."""
    found = nearest(name, names)
    return f"{found} " if found.startswith("did") else ""


def known(callback: L.Callback) -> bool:
    """Whether it is Lightning's or this package's, of which it is known what they do."""
    return type(callback).__module__.startswith(("lightning.", "fl_lightning."))


def remarks(trainer: TrainerOfAnyKind) -> Iterator[str]:
    """What options amount to, where that may not be what was meant; one line each."""
    rounds, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if trainer.fast_dev_run:
        number = int(trainer.fast_dev_run)
        yield f"Trainer(fast_dev_run={number}): a trial of {number} rounds, evaluated on as many batches of each test set"
    elif trainer.limit_val_batches == 0:
        yield "Trainer(limit_val_batches=0): nothing is measured, so there will be no Acc and no ASR"
    elif every is not None and rounds is not None and 0 < rounds < every:
        yield f"Trainer(check_val_every_n_epoch={every}) is more than the {rounds} rounds: only the last one can be evaluated"
    if trainer.barebones:
        yield "Trainer(barebones=True): nothing is logged, so there will be no Acc and no ASR"


def make_trial(trainer: TrainerOfAnyKind) -> None:
    """Let `fast_dev_run=n` be n rounds: to Lightning it is one epoch of n steps, and an epoch has one step here."""
    if trainer.fast_dev_run and trainer.state.fn == TrainerFn.FITTING:
        trainer.fit_loop.max_epochs = trainer.max_steps
