"""Who trains on what in a round, and what attacks want to be trained beside the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import lightning as L

from fl_lightning.attacks.base import Attack, Attacker, has_own
from fl_lightning.cohort import Cohort
from fl_lightning.data.base import Samples
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.undisturbed import undisturbed
from fl_lightning.seeding import derive_seed, seed_global_generators


@dataclass
class LocalRound:
    """Who trains on what in one round; the same on every rank, and poisoned data are made only where they are needed."""

    cohort: Cohort
    attackers: list[Attacker]
    data: FederatedDataModule
    attacks: Sequence[Attack]

    @cached_property
    def clients(self) -> list[int]:
        """The cohort's numbers."""
        return self.cohort.clients.tolist()

    @cached_property
    def malicious(self) -> list[bool]:
        """Which of the cohort are."""
        return self.cohort.malicious.tolist()

    @cached_property
    def clean(self) -> list[Samples]:
        """The malicious clients' own data, in cohort order."""
        return [self.data.client(attacker.client) for attacker in self.attackers]

    def own_of(self, client: int) -> tuple[Samples, Attacker]:
        """A malicious client's own data, and who it is."""
        return next((samples, of) for samples, of in zip(self.clean, self.attackers, strict=True) if of.client == client)

    @cached_property
    def poisoned(self) -> dict[int, Samples]:
        """The malicious clients' training data, by client number."""
        datasets = self.clean
        for i, attack in enumerate(self.attacks):
            self.seed_for("conspire", i)
            datasets = made_by(attack, attack.conspire(datasets, self.attackers), len(self.attackers))
        return {attacker.client: samples for attacker, samples in zip(self.attackers, datasets, strict=True)}

    @cached_property
    def rehearsals(self) -> list[list[Samples]]:
        """What each attack wants to be trained beside the clients."""
        if not self.attackers:
            return [[] for _ in self.attacks]
        asked: list[list[Samples]] = []
        for i, attack in enumerate(self.attacks):
            asked.append([])
            if has_own(attack, "rehearse"):
                self.seed_for("rehearse", i)
                asked[i] = attack.rehearse(self.clean, self.attackers, len(self.cohort) - len(self.attackers))
        return asked

    def plan(self, module: L.LightningModule) -> None:
        """Let attacks get ready, on every rank alike."""
        for i, attack in enumerate(self.attacks if self.attackers else ()):
            if has_own(attack, "plan"):
                self.seed_for("plan", i)
                with undisturbed(module):
                    attack.plan(module, self.clean, self.attackers)

    def seed_for(self, hook: str, number: int) -> None:
        """Seed the global generators, from which an attack may draw, by (seed, hook, round, which attack)."""
        seed_global_generators(derive_seed(self.attackers[0].seed, hook, self.attackers[0].round_number, number))


def made_by(attack: Attack, datasets: Sequence[Samples], count: int) -> list[Samples]:
    """What an attack has made of `count` malicious clients' data; raises `ConfigurationError` unless that is data of each."""
    found = list(datasets) if isinstance(datasets, Sequence) else [datasets]
    other = [dataset for dataset in found if not isinstance(dataset, Samples)]
    hook = "conspire" if has_own(attack, "conspire") else "poison"
    if other or len(found) != count:
        got = f"a {type(other[0]).__name__}" if other else f"{len(found)}"
        raise ConfigurationError(
            f"{type(attack).__name__}.{hook} must return Samples, those of each of the round's {count} malicious clients, got "
            f"{got}; return what it is given where nothing is to be changed"
        )
    return found
