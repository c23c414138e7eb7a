"""Whether rules and attacks can deal with what a task asks for, where that is not one class per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fl_lightning.aggregators import mixing
from fl_lightning.aggregators.base import Aggregator
from fl_lightning.attacks.base import Attack, has_own
from fl_lightning.data.outcomes import Classes, Outcome
from fl_lightning.errors import ConfigurationError

OF_RULES = ("predict", "accepts", "examine", "examine_broadcast", "train_benign")
OF_ATTACKS = ("poison", "conspire", "leak", "stamp", "stamp_parts", "plan", "stages", "loss")
"""Hooks in which classes or logits (b, C) are looked at, unless a class says by `outcomes` that it takes others."""


def check_outcome(outcome: Outcome, rule: Aggregator, attacks: Sequence[Attack]) -> None:
    """Raise `ConfigurationError` for a rule or an attack that takes the task's targets for something else."""
    for part in reversed(list(rule.modules())):  # the rule inside before one around it
        if isinstance(part, Aggregator) and not _takes(part.outcomes, outcome):
            hook = next((hook for hook in OF_RULES if part.outcomes is not None or mixing.has_own(part, hook)), None)
            _refuse(part, hook, outcome, "rule")
    for attack in attacks:
        if not _takes(attack.outcomes, outcome):
            hook = next((hook for hook in OF_ATTACKS if attack.outcomes is not None or has_own(attack, hook)), None)
            _refuse(attack, hook, outcome, "attack")
    if any(has_own(attack, hook) for attack in attacks for hook in ("stamp", "stamp_parts")):
        outcome.check_stamped()


def _takes(outcomes: tuple[type[Outcome], ...] | None, outcome: Outcome) -> bool:
    return isinstance(outcome, outcomes or Classes)


def _refuse(part: Aggregator | Attack, hook: str | None, outcome: Outcome, kind: str) -> None:
    if hook is None:  # it looks at updates alone
        return
    taken = " or ".join(of.words for of in part.outcomes or (Classes,))
    raise ConfigurationError(
        f"{type(part).__name__} is for tasks that ask for {taken}, but this one asks for {outcome.words}; use another {kind}"
    )


def accepted(rule: Aggregator, probabilities: Tensor) -> Tensor:
    """(b,) bool, what `rule.accepts` says of (b, C) probabilities; raises `ConfigurationError` unless it says so of each."""
    found = rule.accepts(probabilities)
    if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape != probabilities.shape[:-1]:
        what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise ConfigurationError(
            f"{type(rule).__name__}.accepts must return True or False for each of {len(probabilities)} predictions, a tensor "
            f"({len(probabilities)},), got {what}"
        )
    return found
