"""How settings are chosen by their worst attack, as a sweep's file says it under `worst_case`.

worst_case:
  rule: rule                             # the axis of rules, of which a label may be a rule at one setting
  attack: attack                         # the axis of attacks
  settings: {Krum: [Krum f=1, Krum f=2]} # a rule's labels; a label that no rule claims is a rule with one setting
  choose_on: [0, 1]                      # seeds by which settings are chosen; the others are reported
  max_loss: 0.05                         # of Acc
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_lightning.errors import ConfigurationError, enumerated, nearest

MAX_LOSS = 0.05
"""Of accuracy, by which a setting may fall behind the best one."""

KEYS = ("rule", "attack", "choose_on", "settings", "max_loss")


@dataclass(frozen=True)
class WorstCasePlan:
    """How settings are chosen.

    Args:
        rule: the axis of rules, of which a label may be a rule at one setting.
        attack: the axis of attacks.
        choose_on: the seeds by which settings are chosen; all others are reported.
        settings: rule -> its labels on the axis of rules. A label that no rule claims is a rule with one setting.
        max_loss: how far a setting's Acc under any attack may lie below the best Acc of any setting of any rule under that
            attack, in [0, 1]. Without a limit the best rule would be one that learns nothing.

    Raises:
        ConfigurationError: a value out of its range.
    """

    rule: str
    attack: str
    choose_on: Sequence[int]
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_loss: float = MAX_LOSS

    def __post_init__(self) -> None:
        if self.rule == self.attack:
            raise ConfigurationError(f"worst_case: rule and attack are both the axis {self.rule}; give two axes")
        if not isinstance(self.choose_on, Sequence) or not self.choose_on or any(type(s) is not int for s in self.choose_on):
            raise ConfigurationError(f"worst_case.choose_on must be a list of seeds, such as [0, 1], got {self.choose_on}")
        if isinstance(self.max_loss, bool) or not isinstance(self.max_loss, (int, float)) or not 0 <= self.max_loss <= 1:
            raise ConfigurationError(f"worst_case.max_loss must lie in [0, 1], got {self.max_loss}; the default is {MAX_LOSS}")
        claimed: dict[str, str] = {}
        for name, labels in self.settings.items():
            for label in labels:
                if label in claimed:
                    raise ConfigurationError(f"worst_case.settings: {label} is a setting of {claimed[label]} and of {name}")
                claimed[label] = name

    def owner(self, label: str) -> str:
        """The rule of which a label is a setting."""
        return next((name for name, labels in self.settings.items() if label in labels), label)


def check_seeds(plan: WorstCasePlan, seeds: set[int]) -> None:
    """Raise unless there are seeds to choose by and others to report."""
    if missing := sorted(set(plan.choose_on) - seeds):
        known = enumerated(map(str, sorted(seeds)), 60)
        raise ConfigurationError(f"worst_case.choose_on has the seed {missing[0]}, of which there is no run; seeds: {known}")
    if not seeds - set(plan.choose_on):
        raise ConfigurationError(
            f"worst_case.choose_on has all seeds {sorted(seeds)}, and none is left to report; add seeds, or choose by fewer"
        )


def check_labels(plan: WorstCasePlan, labels: Iterable[str]) -> None:
    """Raise unless the axis of rules has every label that a rule claims."""
    known = list(labels)
    for name, claimed in plan.settings.items():
        for label in claimed:
            if label not in known:
                raise ConfigurationError(
                    f"worst_case.settings.{name}: {plan.rule} has no label {label}; {nearest(label, known)}"
                )


def read_plan(content: Any, axes: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> WorstCasePlan:
    """What a sweep's file says under `worst_case`.

    Args:
        content: that part of the file.
        axes: axis -> its labels, without the seed.
        seeds: of the sweep.

    Raises:
        ConfigurationError: it is no plan, or none for this sweep.
    """
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"worst_case must be a mapping of {', '.join(KEYS)}, got {content!r}")
    for key in content:
        if key not in KEYS:
            raise ConfigurationError(f"worst_case: unknown key {key}; {nearest(str(key), KEYS)}")
    for key in KEYS[:3]:
        if key not in content:
            raise ConfigurationError(f"worst_case.{key} is missing; give rule and attack, each an axis, and choose_on, seeds")
    for key in ("rule", "attack"):
        if content[key] not in axes:
            raise ConfigurationError(f"worst_case.{key}: there is no axis {content[key]}; {nearest(str(content[key]), axes)}")
    settings = content.get("settings", {})
    if not isinstance(settings, Mapping) or not all(isinstance(labels, list) for labels in settings.values()):
        raise ConfigurationError(f"worst_case.settings must give a list of labels for each rule, got {settings!r}")
    claimed = {str(name): [str(label) for label in labels] for name, labels in settings.items()}
    given: dict[str, Any] = {**content, "settings": claimed}
    plan = WorstCasePlan(**given)
    check_labels(plan, axes[plan.rule])
    check_seeds(plan, set(seeds))
    return plan
