"""What Trainer options and Lightning's callbacks mean for a federation; those that mean nothing or mislead are refused.

A round is a training step and an epoch has one, and optimization is manual, so a good part of Lightning's options has nothing
to act on. docs/reference/trainer.md lists all of them.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from fl_lightning.errors import ConfigurationError
from fl_lightning.machine.strategy import FederatedStrategy
from fl_lightning.options.monitors import TrainerOfAnyKind, known

log = logging.getLogger(__name__)

OWN_FILES = ("last", "previous", "damaged")
"""Names of a run's own checkpoints."""

MOST_ROUNDS = 10_000_000
"""More would take a year at three rounds a second."""

TWO_MODELS = "the weights that are measured, saved and left at the end would not be the same; average checkpoints after the run"

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

NEED_A_LOGGER = (lightning_callbacks.LearningRateMonitor, lightning_callbacks.DeviceStatsMonitor)
"""Lightning's callbacks whose figures go to loggers alone."""


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
    """Raise for callbacks that cannot work, and for those that are there twice."""
    for callback in trainer.callbacks:
        for refused, why in REFUSED_CALLBACKS.items():
            if isinstance(callback, refused):
                raise ConfigurationError(f"trainer.callbacks: {type(callback).__name__} cannot work in a federation: {why}")
        if type(callback) is lightning_callbacks.Checkpoint:  # and none that is derived from it
            raise ConfigurationError(
                "trainer.callbacks: Checkpoint cannot work in a federation: it is what Lightning's checkpoints have in common, "
                "and keeps nothing; leave it out, which leaves last.ckpt, or give ModelCheckpoint"
            )
        if getattr(callback, "_train_time_interval", None) is not None:
            raise ConfigurationError(
                f"trainer.callbacks: {type(callback).__name__}(train_time_interval=...) is never looked at in a federation; "
                "use every_n_epochs, a number of rounds"
            )
        if isinstance(callback, NEED_A_LOGGER) and trainer.state.fn == TrainerFn.FITTING and not trainer.loggers:
            raise ConfigurationError(
                f"trainer.callbacks: {type(callback).__name__} has no logger to give its figures to, as trainer.logger is "
                "False; leave the callback out, or give a logger, such as CSVLogger"
            )
        if isinstance(callback, lightning_callbacks.EarlyStopping) and (patience := callback.patience) < 0:
            raise ConfigurationError(
                f"trainer.callbacks: EarlyStopping(patience={patience}) must be at least 0, the evaluations in a row without a "
                "better value that are borne; 0 ends the run at the first"
            )
        check_file(trainer, callback)
    check_twice(trainer.callbacks)


def check_twice(callbacks: Sequence[L.Callback]) -> None:
    """Raise for a callback that is there twice: the same object, the same class of this package, or a state of one name.

    >>> check_twice([lightning_callbacks.EarlyStopping("val/acc"), lightning_callbacks.EarlyStopping("val/acc")])
    Traceback (most recent call last):
    fl_lightning.errors.ConfigurationError: trainer.callbacks: EarlyStopping is there 2 times; name it once
    """
    found = [(type(callback), identity(callback)) for callback in callbacks]
    for (cls, _), number in Counter(found).items():
        if number > 1:
            raise ConfigurationError(f"trainer.callbacks: {cls.__name__} is there {number} times; name it once")


def identity(callback: L.Callback) -> Any:
    """What two callbacks of a class may not have in common."""
    if own(callback):
        return None
    return callback.state_key if is_overridden("state_dict", callback, parent=L.Callback) else id(callback)


def own(callback: L.Callback) -> bool:
    """Whether it is this package's."""
    return type(callback).__module__.startswith("fl_lightning.")


def check_file(trainer: TrainerOfAnyKind, callback: L.Callback) -> None:
    """Raise for one of Lightning's checkpoints that would be written where a run has its own."""
    if own(callback) or not isinstance(
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
