"""The clean rounds that runs of a sweep share: run once, and gone on from by each of them.

A run that begins with a prefix ends with the bits of one that was run from its start. So nothing may be different in the
prefix but what does nothing before its end: attackers that have not begun, and how they attack. The rule may be another one,
as many published comparisons train all rules' first rounds with FedAvg; then the result is another too, and is kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fl_lightning.callbacks.digests import differing, experiment
from fl_lightning.errors import SOME_LETTERS, ConfigurationError, enumerated
from fl_lightning.experiments.settings import Layer

if TYPE_CHECKING:
    from fl_lightning.attacks import Attack
    from fl_lightning.cohort import CohortSampler
    from fl_lightning.federation import Federation

LIFESPAN = "BackdoorLifespan"
"""The callback's class, which is not imported here: planning takes no torch."""

FOLDER = "prefixes"
"""Beside the folder of all runs, with one folder per prefix, shared by all sweeps."""

OF_DRAWS = ("clients_per_round", "malicious_fraction", "participation")
"""Settings of `model.cohort` by which other benign clients would be drawn."""

RECIPE = ("attackers", "attackers_optimizer", "attackers_scheduler")
"""Settings of `model` by which clients train in rounds that they attack, and in no other."""

ALLOWED = (
    "a prefix may change model.aggregator, model.attacks and when attackers begin (model.cohort), and nothing by which benign "
    "training would go on otherwise than it began"
)


class Begun(NamedTuple):
    """What is asked of a prefix, without the weights of its federation."""

    cohort: CohortSampler
    attacks: Sequence[Attack]


@dataclass(frozen=True)
class Prefix:
    """What a sweep's file says of it.

    Attributes:
        rounds: t, at least 1; runs go on with round t, counted from 0.
        layers: what the prefix's configuration is read from on top of the run's own.
        exclude: labels by axis of cells that are run from their start; a cell that has all of one entry's is.
    """

    rounds: int
    layers: Sequence[Layer]
    exclude: Sequence[Mapping[str, str]] = ()

    def clean(self, config: Mapping[str, Any], overlaid: Mapping[str, Any]) -> dict[str, Any]:
        """The prefix's configuration.

        In it attackers begin with round t, if at all: runs in which they do later have the rounds before it in common.

        Args:
            config: the run's.
            overlaid: the same with `layers` on top.

        Raises:
            ConfigurationError: it could not be gone on from.
        """
        trainer = config["trainer"]
        for name in ("max_epochs", "max_steps"):
            rounds = trainer.get(name)
            if rounds is not None and 0 <= rounds <= self.rounds:
                raise ConfigurationError(
                    f"prefix.rounds = {self.rounds}, but trainer.{name} = {rounds}, so that no round is left after it; give "
                    "fewer prefix.rounds, or more rounds"
                )
        if trainer.get("enable_checkpointing") is False:
            raise ConfigurationError(
                "trainer.enable_checkpointing = false, but runs go on from the last checkpoint of their prefix; leave it out"
            )
        changed = [f"{name} from {there!r:.60} to {here!r:.60}" for name, there, here in differing(own(config), own(overlaid))]
        if changed:
            raise ConfigurationError(
                f"prefix.settings changes {enumerated(changed, SOME_LETTERS, '; ')}, but {ALLOWED}; leave it out: attackers "
                f"that begin with round {self.rounds} (model.cohort.start_round) leave the rounds before clean"
            )
        begins = cohort_of(overlaid).get("start_round") or 0
        late = with_window(overlaid, self.rounds) if begins >= self.rounds else overlaid
        return {**without_recipe(late), "trainer": {**without_lifespan(overlaid["trainer"]), "max_epochs": self.rounds}}

    def check(self, federation: Federation, clean: Federation | Begun) -> None:
        """See that no attacker is active before the prefix ends.

        Args:
            federation: the run's.
            clean: the prefix's.

        Raises:
            ConfigurationError: one may be; or an attack would miss the server's last step.
        """
        early = self.attacked(federation.cohort) if federation.attacks else None
        if early is not None:
            raise ConfigurationError(
                f"model.cohort.{named(federation.cohort)}: attackers may be active in round {early}, but the prefix of "
                f"{self.rounds} rounds must be clean; have them begin with round {self.rounds}, or give fewer prefix.rounds"
            )
        if clean.cohort != federation.cohort and (early := self.attacked(clean.cohort)) is not None:
            raise ConfigurationError(
                f"prefix.settings: by model.cohort.{named(clean.cohort)} malicious clients take part in round {early} of the "
                f"prefix; leave model.cohort out there"
            )
        watching = [type(attack).__name__ for attack in federation.attacks if attack.watches_steps]
        if watching and not any(attack.watches_steps for attack in clean.attacks):
            raise ConfigurationError(
                f"prefix.settings: {watching[0]} needs to know the server's last step as it begins, which the prefix does not "
                "keep without such an attack; leave model.attacks out of prefix.settings"
            )

    def attacked(self, cohort: CohortSampler) -> int | None:
        """The first round of the prefix in which attackers may be active, if there is one."""
        return next(iter(cohort.attacked_rounds(self.rounds)), None)


def own(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run and its prefix must have alike."""
    model = {key: value for key, value in config["model"].items() if key not in ("aggregator", "attacks")}
    cohort = cohort_of(config)
    return {**config, "model": {**model, "cohort": {key: cohort.get(key) for key in OF_DRAWS}}}


def same_rounds(config: Mapping[str, Any], clean: Mapping[str, Any]) -> bool:
    """Whether a run would have the rounds of a prefix, to the bit, where nobody attacks before it ends."""
    one, other = (experiment(without_recipe(with_window(each, 0)), rounds=False) for each in (config, clean))
    return one == other


def cohort_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of `model.cohort`, also of a class of a user's own."""
    cohort = config["model"].get("cohort") or {}
    return cohort.get("init_args", {}) if "class_path" in cohort else cohort


def with_window(config: Mapping[str, Any], start: int) -> dict[str, Any]:
    """A configuration whose attack begins with a round and has no end."""
    cohort, own = config["model"].get("cohort") or {}, cohort_of(config)
    window = {"start_round": start, "end_round": None, "interval": None, "after": "benign"}
    changed = {**own, **{name: value for name, value in window.items() if name in own}}
    changed = {**cohort, "init_args": changed} if "class_path" in cohort else changed
    return {**config, "model": {**config["model"], "cohort": changed}}


def without_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose attackers train like anyone else, as all do before the attack; without attacks it must be so."""
    model = config["model"]
    return {**config, "model": {**model, **{name: None for name in RECIPE if name in model}}}


def without_lifespan(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's settings without `BackdoorLifespan`, which refuses an attack that has no end, and needs no first rounds."""
    callbacks = trainer.get("callbacks")
    given = [callbacks] if isinstance(callbacks, dict) else callbacks
    if not isinstance(given, list):
        return dict(trainer)
    return {**trainer, "callbacks": [one for one in given if class_name(one) != LIFESPAN]}


def named(cohort: CohortSampler) -> str:
    """The setting that says when attackers begin, and its value."""
    if cohort.participation == "single_shot":
        return f"rounds = {list(cohort.rounds)}"
    return f"start_round = {cohort.start_round}"


def rule_of(config: Mapping[str, Any]) -> str:
    """The class of a configuration's rule, by its name alone."""
    return class_name(config["model"]["aggregator"])


def class_name(settings: Any) -> str:
    """The class that settings are of, by its name alone; empty where they name none."""
    return str(settings.get("class_path", "")).rpartition(".")[2] if isinstance(settings, dict) else ""
