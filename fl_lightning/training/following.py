"""The attacks' hooks in one malicious client's training: its start, its loss, its end, and what follows a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.attacks.base import Attack, Broadcast
from fl_lightning.checked import shown
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.undisturbed import undisturbed
from fl_lightning.training.client_logs import LogCollector
from fl_lightning.training.client_steps import check_loss
from fl_lightning.training.local_round import overrides

NEEDS_PYTHON = ("begin", "loss", "finished")
"""Hooks that no recorded step can call, or whose weights it would not start from."""


def followers(attacks: Sequence[Attack], *hooks: str) -> list[Attack]:
    """The attacks that have one of these hooks of their own."""
    return [attack for attack in attacks if any(overrides(attack, hook) for hook in hooks)]


class Following:
    """What attacks make of one malicious client's training; see `Attack.begin`, `loss`, `finished` and `constrain`.

    Args:
        attacks: all of them, in order.
        module: the client's module in training.
        broadcast: what the round started from.
        client: the client's number, for messages.
    """

    def __init__(self, attacks: Sequence[Attack], module: L.LightningModule, broadcast: Broadcast, client: int) -> None:
        self.module, self.broadcast = module, broadcast
        self.who = f"client {client} in round {broadcast.round_number}"
        self.losing, self.finishing = followers(attacks, "loss"), followers(attacks, "finished")
        self.beginning, self.constraining = followers(attacks, "begin"), followers(attacks, "constrain")
        self.own = LogCollector()  # of this pass, what `training_step` gave
        self.before: tuple[dict[str, Any], dict[str, int]] = {}, {}  # sums and counts of the logs as it began
        self.broken: dict[str, Tensor] = {}  # by attack, () bool: whether a loss of its was not finite and its fault

    def begin(self) -> None:
        """The module holds what was broadcast; training comes next."""
        for attack in self.beginning:
            attack.begin(self.module, self.broadcast)

    def after_step(self, step: int, steps: int) -> None:
        """A step was taken, of so many."""
        for attack in self.constraining:
            attack.constrain(self.module, self.broadcast, step, steps)

    def loss(self, batch: Any, loss: Tensor) -> Tensor:
        """What attacks make of a loss, one after the other."""
        check_loss(loss)
        if self.finishing:
            self.own.log("loss", loss)
        for attack in self.losing:
            name = type(attack).__name__
            found = attack.loss(self.module, batch, loss, self.broadcast)
            check_attacks_loss(found, f"{name}.loss of {self.who}")
            broken = loss.detach().isfinite().all() & ~found.detach().isfinite().all()
            self.broken[name] = self.broken.get(name, torch.zeros_like(broken)) | broken
            loss = found
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
        return any(found)

    def of_this_pass(self, logs: LogCollector) -> dict[str, float]:
        """What was logged since the pass began, averaged."""
        sums, counts = self.before
        since = {name: logs.counts[name] - counts.get(name, 0) for name in logs.sums}
        return {name: float(logs.sums[name] - sums.get(name, 0.0)) / n for name, n in since.items() if n}

    def end(self) -> None:
        """The training is over. A GPU is asked only now whether losses were finite.

        Raises:
            ConfigurationError: for a loss that an attack made infinite or NaN.
        """
        for name, broken in self.broken.items():
            if bool(broken):
                raise ConfigurationError(
                    f"{name}.loss of {self.who} gives a loss that is not finite, where the client's own was; look for a "
                    "division by zero, a root at zero or a logarithm of zero in it"
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
