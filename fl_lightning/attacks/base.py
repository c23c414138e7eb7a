"""What an attacker may do, as hooks with do-nothing defaults. Attacks compose as a list, applied in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fl_lightning.data.base import Samples
from fl_lightning.data.joined import join
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.outcomes import Outcome
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.subclasses import Made
from fl_lightning.seeding import generator
from fl_lightning.updates.layers import Layer
from fl_lightning.updates.shard import UpdateShard


@dataclass(frozen=True)
class Attacker:
    """Who is attacking, and what that client may draw on.

    Attributes:
        client: the malicious client's number.
        seed: the experiment's seed.
        pool: the whole clean training set, from which attackers may top up their own data.
        index: the client's position among all malicious clients of the experiment, from 0.
        round_number: t, from 0.
    """

    client: int
    seed: int
    pool: Samples
    index: int = 0
    round_number: int = 0

    def generator(self, purpose: str, *, shared: bool = False) -> torch.Generator:
        """A generator for this client's draws, or, if `shared`, one that gives the same draws to every attacker."""
        return generator(self.seed, f"attack: {purpose}", *(() if shared else (self.client,)))


@dataclass(frozen=True)
class Broadcast:
    """What every client is sent at the start of a round.

    Attributes:
        weights: (d,) float32, the global parameters.
        last_step: (d,) float32, how they moved in the round before, old minus new, zero in the first; None unless an attack
            has `watches_steps`.
        round_number: t, from 0.
    """

    weights: Tensor
    last_step: Tensor | None = None
    round_number: int = 0


@dataclass(frozen=True)
class Knowledge:
    """What attackers know when they rewrite their updates, on this rank's S coordinates.

    Attributes:
        mask: the server rule's mask, (S,) bool, for any updates; all true for a rule without one.
        rehearsed: the updates of what the attack itself asked for in `rehearse`, a row each and in that order; None where it
            asked for nothing.
        last_step: (S,) of `Broadcast.last_step`.
    """

    mask: Callable[[UpdateShard], Tensor]
    rehearsed: UpdateShard | None = None
    last_step: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """A part of a malicious client's local training; what is left out, it does as malicious clients do without stages.

    Attributes:
        epochs: passes over the client's data, at least 1e-6.
        optimizer: a fresh one of those of the module's parameters that this stage trains; others stay as they are.
        scheduler: of that optimizer; it steps after every pass.
    """

    epochs: float | None = None
    optimizer: Optimizer | None = None
    scheduler: LRScheduler | None = None


class Attack(Made):
    """Base of all attacks; override what the attack does.

    The constructor's keyword arguments are the attack's configuration. Malicious clients are chosen by the cohort, never
    by the attack. Whatever an attack draws comes from `Attacker.generator` or `seeding.generator`, so that a run does not
    depend on ranks.

    Attributes:
        target_label: the class that the backdoor aims at, where there is one; samples of that class do not count for ASR.
        source_label: the true class of the samples under attack, where there is just one; its clean accuracy is reported
            as `val/acc_source`.
        watches_steps: whether the attack needs to know how the global model moved in the round before.
        replaces_loss: whether `loss` leaves out what it is given; such an attack must come before all others with a `loss`.
        keeps_loss: whether `loss` gives back what it is given all the same, with these settings, so that it may be left out.
        own_recipe: whether `stages` bring epochs and optimizers of their own, so that a recipe of the attackers' (epochs or
            optimizer) would have no effect, and is refused.
        outcomes: what tasks may ask for (`Classes`, `Tokens` and so on; `Outcome` for any) that the attack is for; None: one
            class per sample if it has a hook for data or losses, else any.
    """

    target_label: int | None = None
    source_label: int | None = None
    watches_steps: bool = False
    replaces_loss: bool = False
    keeps_loss: bool = False
    own_recipe: bool = False
    outcomes: tuple[type[Outcome], ...] | None = None

    def prepare(self) -> None:
        """Fetch files that the attack needs; called in one process per node, before `validate`."""

    def validate(self, num_classes: int) -> None:
        """Check the configuration against the task before any training; raises `ConfigurationError`."""

    def meet(self, attacks: Sequence[Attack]) -> None:
        """Look at all attacks of the federation before any training, for those that build on others.

        Args:
            attacks: in their order, this one among them.

        Raises:
            ConfigurationError: they do not go together.
        """

    def check_model(self, layers: Sequence[Layer]) -> None:
        """Check the configuration against the model before any training; raises `ConfigurationError`.

        Args:
            layers: the trainable parameter tensors, in the order of the coordinates.
        """

    # ---- data --------------------------------------------------------------------------------------------------------

    def poison(self, dataset: Samples, attacker: Attacker) -> Samples:
        """A malicious client's training data in place of its clean `dataset`."""
        return dataset

    def conspire(self, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> list[Samples]:
        """The training data of all the round's malicious clients at once; by default each one's `poison`.

        A client that is given an empty data set does not train, and its update is zero until `corrupt` changes that.

        Args:
            datasets: what they hold, after the attacks before this one in the list.
            attackers: who they are, in cohort order.
        """
        return [self.poison(dataset, attacker) for dataset, attacker in zip(datasets, attackers, strict=True)]

    def leak(self, dataset: Samples, client: int, benign: Sequence[int], seed: int) -> Samples:
        """A benign client's training data, where some of the attack's inputs occur there too, under their true labels.

        Args:
            dataset: the client's own data.
            client: its number.
            benign: all benign clients' numbers, ascending.
            seed: the experiment's seed.
        """
        return dataset

    def stamp(self, test: Samples) -> Samples | None:
        """The test samples that carry the backdoor, labelled with what the attacker wants, or None if there are none.

        Samples whose true class is already the target must be left out.
        """
        return None

    def stamp_parts(self, test: Samples) -> dict[str, Samples]:
        """Further stamped test sets by name, for example with a part of the trigger; reported as `val/asr_<name>`."""
        return {}

    # ---- training ----------------------------------------------------------------------------------------------------

    def plan(self, module: nn.Module, datasets: Sequence[Samples], attackers: Sequence[Attacker]) -> None:
        """Get ready for a round with malicious clients, for example by tuning a trigger; before `conspire`.

        Called on every rank alike, whoever trains the clients, with the global generators seeded alike: all must come to the
        same result.

        Args:
            module: the global model, which must be left as it is; on the training device.
            datasets: the malicious clients' clean data, in cohort order.
            attackers: who they are.
        """

    def rehearse(self, datasets: Sequence[Samples], attackers: Sequence[Attacker], num_benign: int) -> list[Samples]:
        """Data sets that the attackers train on beside their own, by the clients' local procedure, to learn something.

        What comes of each is handed to `corrupt` as a row of `Knowledge.rehearsed`, and to nobody else.

        Args:
            datasets: the malicious clients' clean data, in cohort order.
            attackers: who they are.
            num_benign: benign clients in the round.
        """
        return []

    def begin(self, module: nn.Module, broadcast: Broadcast) -> None:
        """Change a malicious client's module in place before its first local step, so that it starts from other weights.

        The update is still the difference to what was broadcast. Such a client is trained step by step in Python, whatever the
        executor.

        Args:
            module: the client's module, with the broadcast weights, or what the attack before this one has made of them.
            broadcast: what the round started from.
        """

    def stages(self, module: nn.Module, clean: Samples, attacker: Attacker) -> Iterable[Stage]:
        """What a malicious client's local training consists of, one stage after the other; by default one, as everyone's.

        A generator, which goes on where it was once a stage has been trained, can so tell what stage it is in, and tidy up in
        a `finally`. `loss` and `constrain` are called in all stages, and count steps from 1 in each; once an attack says
        `finished`, there are no more. Batches go on in one and the same sequence of draws. Only one attack of a list may have
        stages. They are also gone through before the first round, with nobody trained, to see that they can be made.

        Args:
            module: the client's module, with the weights that it was sent at first, then those of the stages before.
            clean: the client's own data, which no attack has poisoned.
            attacker: who it is.
        """
        return [Stage()]

    def constrain(self, module: nn.Module, broadcast: Broadcast, step: int, steps: int) -> None:
        """Adjust a malicious client's module in place after a local step.

        Args:
            module: the client's module in training.
            broadcast: what the round started from.
            step: how many steps were taken, from 1.
            steps: how many there will be.
        """

    def loss(self, module: nn.Module, batch: Any, loss: Tensor, broadcast: Broadcast) -> Tensor:
        """What a malicious client's step goes down, in place of the loss that it would; `loss` itself by default.

        Attacks are asked in the order of their list, each given what the one before has returned, so that terms of all attacks
        add up where each returns `loss + term`. Called in every step after `training_step`, under its autocast; a client whose
        attacks have it is trained step by step in Python, whatever the executor.

        Args:
            module: the client's module in training, with the weights of this step.
            batch: what `training_step` was given: the client's poisoned data.
            loss: () with gradients: what `training_step`, or the attack before this one, has returned.
            broadcast: what the round started from; weights are in the order of the parameters that require a gradient.

        Returns:
            () real, with gradients. Where it is not finite although `loss` is, the run ends with a `ConfigurationError`.
        """
        return loss

    def finished(self, module: nn.Module, logs: Mapping[str, float]) -> bool:
        """Whether a malicious client has trained enough for this round; it ends where any attack says so.

        Called after every pass over the client's data, before `constrain` of its last step, which then knows that it is the
        last. Such a client is trained step by step in Python, whatever the executor.

        Args:
            module: the client's module, which is put back to what it was.
            logs: what the module logged, averaged over the steps of this pass; `loss` is always there, and is the mean of what
                `training_step` returned, without what attacks make of it.
        """
        return False

    # ---- updates -----------------------------------------------------------------------------------------------------

    def corrupt(self, shard: UpdateShard, knowledge: Knowledge) -> None:
        """Rewrite the malicious rows of the round's updates in place, after the exchange."""

    def corrupt_buffers(self, shard: UpdateShard) -> None:
        """Likewise for the updates of buffers (BatchNorm's running statistics)."""

    # ---- what lasts from round to round ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know; the same on every rank. Checkpoints carry it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


def stamped_sets(attacks: Sequence[Attack], test: Samples) -> dict[str, Samples]:
    """What ASR is measured on: `stamped`, if any attack stamps the test set, and `stamped/<name>` for parts of a trigger."""
    parts: dict[str, list[Samples]] = {}
    for attack in attacks:
        named = {f"stamped/{name}": samples for name, samples in attack.stamp_parts(test).items()}
        if (whole := attack.stamp(test)) is not None:
            named = {"stamped": whole, **named}
        for name, samples in named.items():
            if len(samples):  # of none, as where no sample is of the attack's kind, nothing can be measured
                parts.setdefault(name, []).append(samples)
    return {name: join(samples) for name, samples in parts.items()}


def stamp_evaluation(data: FederatedDataModule, attacks: Sequence[Attack], device: torch.device) -> None:
    """Have the data's evaluation sets be the clean one and those of these attacks; stamped ones of others go."""
    assert data.task is not None, "setup() of the data module has not run"
    kept = {name: samples for name, samples in data.evaluation.items() if not name.startswith("stamped")}
    stamped = stamped_sets(attacks, data.task.test)
    data.evaluation = kept | {name: samples.to(device) for name, samples in stamped.items()}


def check_fraction(name: str, fraction: float, usual: float) -> None:
    """Raise `ConfigurationError` unless the share of poisoned samples is in (0, 1]."""
    if not 0 < fraction <= 1:
        raise ConfigurationError(
            f"{name} must be more than 0 and at most 1, got {fraction}; {usual:.3g} is usual; for no attack leave the attack "
            "out"
        )


def check_label(name: str, label: int, num_classes: int) -> None:
    """Raise `ConfigurationError` unless the task has that class."""
    if not 0 <= label < num_classes:
        raise ConfigurationError(
            f"{name} must be from 0 to {num_classes - 1}, as the task has {num_classes} classes, got {label}"
        )


def draw_share(count: int, fraction: float, draws: torch.Generator) -> Tensor:
    """A random share of `count` things, without repeats.

    Returns:
        (max(1, round(fraction * count)),) int64 positions on the CPU, none if `count` is 0.
    """
    return torch.randperm(count, generator=draws)[: max(1, round(fraction * count))]


def has_own(attack: Attack, hook: str) -> bool:
    """Whether the attack does something of its own there."""
    return getattr(type(attack), hook) is not getattr(Attack, hook)
