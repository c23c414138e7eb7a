"""The attacks' hooks in one malicious client's training: its start, stages, loss, end, and what follows a step."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Attacker, Broadcast, Stage, has_own
from fl_lightning.checked import MOST_EPOCHS, shown
from fl_lightning.data.base import Samples
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.undisturbed import undisturbed
from fl_lightning.training.batches import LEAST_EPOCHS
from fl_lightning.training.client_logs import LogCollector
from fl_lightning.training.client_steps import check_loss

log = logging.getLogger(__name__)

NEEDS_PYTHON = ("begin", "loss", "finished", "stages")
"""Hooks that no recorded step can call, or whose weights it would not start from."""


def followers(attacks: Sequence[Attack], *hooks: str) -> list[Attack]:
    """The attacks that have one of these hooks of their own."""
    return [attack for attack in attacks if any(has_own(attack, hook) for hook in hooks)]


class Following:
    """What attacks make of a malicious client's training; see `Attack`'s `begin`, `stages`, `loss`, `finished`, `constrain`.

    Args:
        attacks: all of them, in order.
        module: the client's module in training.
        broadcast: what the round started from.
        client: the client's number, for messages.

    Attributes:
        steps: batches of the stage under way.
        over: whether an attack has said that the client has trained enough.
    """

    def __init__(self, attacks: Sequence[Attack], module: L.LightningModule, broadcast: Broadcast, client: int) -> None:
        self.module, self.broadcast = module, broadcast
        self.who = f"client {client} in round {broadcast.round_number}"
        self.losing, self.finishing = followers(attacks, "loss"), followers(attacks, "finished")
        self.beginning, self.staging = followers(attacks, "begin"), followers(attacks, "stages")
        self.constraining = followers(attacks, "constrain")
        self.steps, self.over = 0, False
        self.own = LogCollector()  # of this pass, what `training_step` gave
        self.before: tuple[dict[str, Any], dict[str, int]] = {}, {}  # sums and counts of the logs as it began
        self.begun = False  # whether a step was taken from the broadcast weights
        # By attack, () bool: whether it made a loss that is not finite of one that is, in the first step and in a later one.
        self.broken: dict[str, tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        """The module holds what was broadcast; training comes next."""
        for attack in self.beginning:
            attack.begin(self.module, self.broadcast)

    def stages(self, clean: Samples, attacker: Attacker) -> Generator[Stage]:
        """The parts of this training, as long as nobody says that it is over."""
        if not self.staging:
            yield Stage()
            return
        attack = self.staging[0]
        given = attack.stages(self.module, clean, attacker)
        try:
            for number, stage in enumerate(given, start=1):
                check_stage(stage, self.module, f"stage {number} of {type(attack).__name__}.stages of {self.who}")
                self.steps = 0
                yield stage
                if self.over:
                    return
        finally:
            close = getattr(given, "close", None)
            if close is not None:
                close()

    def after_step(self, step: int, steps: int) -> None:
        """A step was taken, of so many."""
        for attack in self.constraining:
            attack.constrain(self.module, self.broadcast, step, steps)

    def loss(self, batch: Any, loss: Tensor) -> Tensor:
        """What attacks make of a loss, one after the other."""
        check_loss(loss)
        self.steps += 1
        if self.finishing:
            self.own.log("loss", loss)
        for attack in self.losing:
            name = type(attack).__name__
            found = attack.loss(self.module, batch, loss, self.broadcast)
            check_attacks_loss(found, f"{name}.loss of {self.who}")
            broken = loss.detach().isfinite().all() & ~found.detach().isfinite().all()
            first, later = self.broken.get(name, (torch.zeros_like(broken),) * 2)
            self.broken[name] = (first, later | broken) if self.begun else (first | broken, later)
            loss = found
        self.begun = True
        return loss

    def begin_epoch(self, logs: LogCollector) -> None:
        self.own, self.before = LogCollector(), (dict(logs.sums), dict(logs.counts))

    def finished(self, logs: LogCollector) -> bool:
        """Whether any attack says so after a pass over the data."""
        if not self.finishing:
            return False
        averages = {**self.of_this_pass(logs), **self.own.averages()}
        found = []
        with undisturbed(self.module):
            for attack in self.finishing:
                found.append(attack.finished(self.module, averages))
                if not isinstance(found[-1], bool):
                    raise ConfigurationError(
                        f"{type(attack).__name__}.finished of {self.who} gives {shown(found[-1])}, not True or False"
                    )
        self.over = any(found)
        return self.over

    def of_this_pass(self, logs: LogCollector) -> dict[str, float]:
        """What was logged since the pass began, averaged."""
        sums, counts = self.before
        since = {name: logs.counts[name] - counts.get(name, 0) for name in logs.sums}
        return {name: float(logs.sums[name] - sums.get(name, 0.0)) / n for name, n in since.items() if n}

    def end(self) -> None:
        """The training is over. A GPU is asked only now whether losses were finite.

        A loss that an attack makes infinite or NaN at the broadcast weights is a mistake in it. Later ones may be of weights
        that have grown without bound: an update that is not finite is left out of the round like anybody's.

        Raises:
            ConfigurationError: for such a mistake.
        """
        for name, (first, later) in self.broken.items():
            if bool(later) and not bool(first):
                log.warning(
                    "%s.loss of %s stops being finite, as its training diverges; train with a lower rate", name, self.who
                )
            if bool(first):
                raise ConfigurationError(
                    f"{name}.loss of {self.who} gives a loss that is not finite, where the client's own was; look for a "
                    "division by zero, a root at zero or a logarithm of zero in it"
                )


def check_stage(stage: Any, module: L.LightningModule, name: str) -> None:
    """Raise `ConfigurationError` unless this is a stage, whose optimizer trains parameters of the module."""
    if not isinstance(stage, Stage):
        raise ConfigurationError(f"{name} is {shown(stage)}, not a Stage; yield fl_lightning.attacks.Stage(epochs, optimizer)")
    if stage.epochs is not None and not LEAST_EPOCHS <= stage.epochs <= MOST_EPOCHS:
        raise ConfigurationError(f"{name} has {stage.epochs} epochs; they must be from {LEAST_EPOCHS} to {MOST_EPOCHS:,}")
    if stage.scheduler is not None and stage.optimizer is None:
        raise ConfigurationError(f"{name} has a scheduler without an optimizer; give that too")
    if stage.optimizer is None:
        return
    own = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    held = [id(parameter) for group in stage.optimizer.param_groups for parameter in group["params"]]
    if not own.issuperset(held):
        raise ConfigurationError(
            f"{name} has an optimizer of {sum(of not in own for of in held)} tensors that are no trainable parameters of the "
            f"client {type(module).__name__}; make it of the module's own that the stage shall train"
        )


def check_attacks_loss(loss: Any, name: str) -> None:
    """Raise `ConfigurationError` unless this is one real number with gradients."""
    if not isinstance(loss, Tensor):
        raise ConfigurationError(f"{name} gives {shown(loss)}, not a tensor; return the loss it was given, or loss + a term")
    if loss.numel() != 1:
        raise ConfigurationError(f"{name} gives a loss of shape {tuple(loss.shape)}, not one number; return a sum or a mean")
    if loss.is_complex():
        raise ConfigurationError(f"{name} gives a loss of dtype {loss.dtype}; return a real number, such as loss.abs()")
    if not loss.requires_grad:
        raise ConfigurationError(
            f"{name} gives a loss without gradients (detach(), item(), no_grad); return what it was given, and terms of the "
            "module's own parameters"
        )
