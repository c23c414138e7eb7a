"""How malicious clients train where they do not train as everyone does: epochs, batches, optimizer, learning-rate steps.

Published attackers hardly ever take the benign recipe: DBA's train three times as long at half the rate, with learning-rate
steps within the round (C. Xie, K. Huang, P.-Y. Chen, B. Li, ICLR 2020, https://openreview.net/forum?id=rkgyS0VFvr).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lightning as L
from torch.optim import Optimizer

from fl_lightning.checked import maker, shown
from fl_lightning.errors import ConfigurationError
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.optimizers import Configure, LocalScheduler, configured, read_optimizers


@dataclass(frozen=True)
class AttackersTraining:
    """What malicious clients do otherwise than `LocalTraining` says; what is left out, they do as everyone.

    Attributes:
        epochs: passes over a malicious client's data in a round.
        batch_size: B.
        precision: `32` or `bf16`.
        gradient_clip_norm: largest norm of a step's gradient; 0 for no clipping.
        executor: `auto`, `sequential` or `graph`; they are trained one after the other. Those whose attacks have a
            `begin`, `loss` or `finished` of their own take every step in Python.

    Example:
        >>> AttackersTraining(epochs=6).over(LocalTraining(epochs=2, batch_size=16)).batch_size
        16
    """

    epochs: float | None = None
    batch_size: int | None = None
    precision: Literal["32", "bf16"] | None = None
    gradient_clip_norm: float | None = None
    executor: Literal["auto", "sequential", "graph"] | None = None

    def over(self, local: LocalTraining) -> LocalTraining:
        """How malicious clients train, where everyone trains as `local` says.

        Raises:
            ConfigurationError: for values out of range.
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        same = {name: getattr(local, name) for name, value in given.items() if value is None}
        if same.get("executor") == "stacked":
            same["executor"] = "sequential"
        return _OfAttackers(**given | same)


if TYPE_CHECKING:
    Attackers = AttackersTraining | LocalTraining
else:  # a parser would take what the first of them refuses for the second, and fill in its defaults
    Attackers = AttackersTraining


@dataclass(frozen=True)
class _OfAttackers(LocalTraining):
    """A `LocalTraining` that calls itself by the attackers' setting."""

    place: ClassVar[str] = "model.attackers"


@dataclass(frozen=True)
class Recipe:
    """How malicious clients train.

    Attributes:
        local: how long and how.
        configure: makes a client's optimizer and its scheduler.
        own_optimizer: whether that is not the module's.
    """

    local: LocalTraining
    configure: Configure = configured
    own_optimizer: bool = False


def recipe_of(
    local: LocalTraining,
    attackers: Attackers | None,
    optimizer: Callable[..., Any] | None,
    scheduler: Callable[..., Any] | None,
) -> Recipe | None:
    """The malicious clients' own recipe; None where they train as everyone.

    Args:
        local: how everyone trains.
        attackers: what they do otherwise, or how they train altogether.
        optimizer: makes their optimizer from the trainable parameters; None for the module's own with its scheduler.
        scheduler: makes its scheduler, which steps after every local epoch, or a dictionary as Lightning takes it
            (`{"scheduler": ..., "interval": "step"}`).

    Raises:
        ConfigurationError: for settings that cannot be, or cannot be together.
    """
    if scheduler is not None and optimizer is None:
        raise ConfigurationError(
            "model.attackers_scheduler is of model.attackers_optimizer, which is not given; give that too, as the module's own "
            "optimizer has the module's own scheduler"
        )
    if attackers is None and optimizer is None:
        return None
    if isinstance(attackers, LocalTraining):
        if attackers.executor == "stacked" or attackers.branches > 1:
            raise ConfigurationError(
                f"model.attackers has executor {attackers.executor} and branches {attackers.branches}, but malicious clients "
                "with a recipe of their own are trained one after the other; give executor auto, sequential or graph"
            )
        own = attackers
    elif isinstance(attackers, AttackersTraining | None):
        if attackers is not None and attackers.executor == "stacked":  # pyrefly: ignore[unnecessary-comparison]
            raise ConfigurationError("model.attackers.executor must be auto, sequential or graph, got 'stacked'")
        own = (attackers or AttackersTraining()).over(local)
    else:
        raise ConfigurationError(
            "model.attackers must be of type AttackersTraining or LocalTraining, such as AttackersTraining(epochs=6), got "
            f"{shown(attackers)}"
        )
    if optimizer is None:
        return Recipe(own)
    make = maker("model.attackers_optimizer", optimizer)
    make_scheduler = None if scheduler is None else maker("model.attackers_scheduler", scheduler)

    def configure(module: L.LightningModule) -> tuple[Optimizer, LocalScheduler]:
        made = make([parameter for parameter in module.parameters() if parameter.requires_grad])
        if make_scheduler is None:
            return read_optimizers(made, "an attacker")
        return read_optimizers({"optimizer": made, "lr_scheduler": make_scheduler(made)}, "an attacker")

    return Recipe(own, configure, own_optimizer=True)
