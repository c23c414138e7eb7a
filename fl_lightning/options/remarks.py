"""What is said before training of settings that work, but may not do what was meant."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.lockdown import Lockdown
from fl_lightning.attacks.base import Attack
from fl_lightning.cohort import CohortSampler
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.modules.frozen_base import base_names
from fl_lightning.training.recipe import Recipe

log = logging.getLogger(__name__)

HALF = 0.5
"""The share of malicious clients from which on no rule can tell who is who."""

MOST_DRAWN = 1000
"""Cohorts that are looked at, at most, for one with an attacker."""


def remark(
    trainer: Any,
    cohort: CohortSampler,
    attacks: Sequence[Attack],
    aggregator: Aggregator,
    data: FederatedDataModule,
    seed: int,
    recipe: Recipe | None = None,
    client: nn.Module | None = None,
) -> None:
    """Say it on one line each; `seed` is the experiment's."""
    ends = [number for number in (trainer.max_epochs, trainer.max_steps) if number is not None and number >= 0]
    rounds = min(ends, default=None)
    window = of_window(cohort, rounds, seed, data.sizes) if attacks and cohort.malicious_fraction else ()
    of_rule = (*of_root(aggregator, data), *of_schedule(aggregator, rounds))
    of_trained = (*of_recipe(recipe, cohort), *of_base(client))
    for line in (*of_cohort(cohort, rounds, len(attacks)), *window, *of_rule, *of_trained):
        log.warning(line)


def of_cohort(cohort: CohortSampler, rounds: int | None, attacks: int) -> Iterator[str]:
    """Of clients that are malicious without an attack, beyond reason, or too late.

    Args:
        cohort: how clients are sampled.
        rounds: of the run, None if that is not known.
        attacks: how many there are.
    """
    fraction = cohort.malicious_fraction
    if not fraction:
        return
    if not attacks:
        yield f"model.cohort.malicious_fraction = {fraction}, but there are no model.attacks: they train like the others"
        return
    if fraction > HALF:
        yield f"model.cohort.malicious_fraction = {fraction}: most clients attack, and no rule can know them from the others"
    late = [t for t in cohort.rounds or [cohort.start_round] if rounds is not None and t >= rounds]
    if late:
        name = f"rounds = {late}" if cohort.rounds else f"start_round = {late[0]}"
        yield f"model.cohort.{name}: without an attack, as the run has {rounds} rounds and they are counted from 0"


def of_window(cohort: CohortSampler, rounds: int | None, seed: int, sizes: Tensor) -> Iterator[str]:
    """Of an attack that has no end within the run, one that is over at once, or one without attackers.

    Args:
        cohort: how clients are sampled; some are malicious.
        rounds: of the run, None if that is not known.
        seed: the experiment's.
        sizes: (number of clients,) int64, samples per client.
    """
    if rounds is not None and cohort.end_round is not None and cohort.start_round < rounds <= cohort.end_round:
        yield f"model.cohort.end_round = {cohort.end_round}: no round comes after the attack, as the run has {rounds} rounds"
    stop = rounds if cohort.end_round is None else min(cohort.end_round, rounds or cohort.end_round)
    attacked = cohort.attacked_rounds(MOST_DRAWN if stop is None else stop)
    if len(attacked) == 1 and cohort.interval is not None and cohort.interval > 1 and not cohort.rounds:
        until = "the run ends" if stop == rounds else "the attack ends"
        yield (
            f"model.cohort.interval = {cohort.interval}: round {attacked[0]} alone is attacked, as {until} before the next one"
        )
    looked = attacked[:MOST_DRAWN]
    if looked and not any(cohort.draw(seed, t, sizes).malicious.any() for t in looked):
        yield (
            f"model.cohort: no malicious client is drawn in {len(looked)} attacked rounds, {looked[0]} to {looked[-1]}; for a "
            "share in every round, set participation to fixed_share"
        )


def of_root(aggregator: Aggregator, data: FederatedDataModule) -> Iterator[str]:
    """Of samples that the server keeps for nothing."""
    looked_at = isinstance(aggregator.probe, str)  # "root"
    if data.root_samples is not None and not aggregator.needs_root and not looked_at:
        name = type(aggregator).__name__
        yield f"data.root keeps {len(data.root_samples)} samples from the clients, and {name} never reads them"


def of_schedule(aggregator: Aggregator, rounds: int | None) -> Iterator[str]:
    """Of a rule that is told another number of rounds than the run has.

    Args:
        aggregator: the server's rule, which may have others inside.
        rounds: of the run, None if that is not known.
    """
    for part in aggregator.modules():
        if isinstance(part, Lockdown) and rounds is not None and rounds < part.rounds:
            yield (
                f"Lockdown.rounds = {part.rounds}, but the run has {rounds}: evaluation sees the pruned model, while the "
                "weights that are saved stay dense"
            )
        elif isinstance(part, Lockdown) and rounds is not None and rounds > part.rounds:
            yield f"Lockdown.rounds = {part.rounds}, but the run has {rounds}: from round {part.rounds - 1} on each ends pruned"


def of_recipe(recipe: Recipe | None, cohort: CohortSampler) -> Iterator[str]:
    """Of a recipe for attackers who are not there, as where the attack-free ASR is measured."""
    if recipe is not None and not cohort.malicious_fraction:
        yield "model.cohort.malicious_fraction = 0: nobody trains as model.attackers and model.attackers_optimizer say"


def of_base(client: nn.Module | None) -> Iterator[str]:
    """Of how much of a client with a frozen base is trained."""
    if client is not None and base_names(client):
        everything = sum(parameter.numel() for parameter in client.parameters())
        trained = sum(parameter.numel() for parameter in client.parameters() if parameter.requires_grad)
        yield (
            f"{trained:,} of {everything:,} parameters of {type(client).__name__} are trained ({trained / everything:.2%}), "
            "and they alone are exchanged and saved; the others are its frozen base"
        )
