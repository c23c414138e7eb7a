"""Whether malicious clients can train as they are to: their own recipe, and shares of their batches."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fl_lightning.attacks.base import Attack, Attacker, Broadcast
from fl_lightning.attacks.poisoning import ROUNDING
from fl_lightning.checked import finite_settings
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.errors import ConfigurationError, enumerated, folded
from fl_lightning.modules.undisturbed import undisturbed
from fl_lightning.server.optimizer import check_held
from fl_lightning.training.client_checks import check_batch_norm, check_scheduler, check_sparse_gradients
from fl_lightning.training.following import Following, followers
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recipe import Recipe


def check_attackers(
    client: L.LightningModule,
    data: FederatedDataModule,
    attacks: Sequence[Attack],
    local: LocalTraining,
    recipe: Recipe | None,
) -> None:
    """See that malicious clients can be trained.

    Args:
        client: the client's module.
        data: after its setup.
        attacks: what they do.
        local: how everyone trains.
        recipe: how they train; None for as everyone.

    Raises:
        ConfigurationError: for what cannot work, naming it.
    """
    check_batches(attacks, local if recipe is None else recipe.local)
    check_company(attacks, local, recipe)
    check_stages(client, data, attacks)
    if recipe is None:
        return
    if not attacks:
        raise ConfigurationError(
            "model.attackers and model.attackers_optimizer say how malicious clients train, but there are no model.attacks, "
            "without which they are like the others; name an attack, or leave these out"
        )
    largest = int(data.sizes.max())
    with recipe.local.seen_by(client, largest):
        if recipe.own_optimizer:
            check_optimizer(client, recipe, largest)
        check_batch_norm(client, data.sizes, recipe.local, data.train)


def check_company(attacks: Sequence[Attack], local: LocalTraining, recipe: Recipe | None) -> None:
    """Attacks with a say in the attackers' training do not take it from each other, nor from the attackers' recipe."""
    losing, staging = followers(attacks, "loss"), followers(attacks, "stages")
    changing = [attack for attack in losing if not attack.keeps_loss]
    for attack in changing[1:]:
        if attack.replaces_loss:
            raise ConfigurationError(
                f"{type(attack).__name__} goes down a loss of its own, which would leave out that of "
                f"{type(changing[0]).__name__} before it in model.attacks; put it first, and have only one attack of this kind"
            )
    if len(staging) > 1:
        raise ConfigurationError(
            f"{enumerated(type(attack).__name__ for attack in staging)} each train in stages of their own; leave one of them "
            "in model.attacks"
        )
    for attack in staging:
        if attack.own_recipe and recipe is not None and (recipe.own_optimizer or recipe.local.epochs != local.epochs):
            raise ConfigurationError(
                f"{type(attack).__name__} trains by epochs and optimizers of its own (its arguments), so that "
                "model.attackers.epochs, model.attackers_optimizer and model.attackers_scheduler would have no effect; leave "
                "these out"
            )
    writers = followers(attacks, "poison", "conspire")
    for attack in losing:
        target = attack.target_label
        if target is None or attack in writers or target in {of.target_label for of in writers}:
            continue
        others = enumerated(f"{type(of).__name__} {of.target_label}" for of in writers) or "there is none"
        raise ConfigurationError(
            f"{type(attack).__name__}.target_label is {target}, but no attack that poisons data aims at that class ({others}); "
            "give both the same"
        )


def check_stages(client: L.LightningModule, data: FederatedDataModule, attacks: Sequence[Attack]) -> None:
    """The stages of an attacker's training can be made; the client stays as it is."""
    if not followers(attacks, "stages"):
        return
    nobody = Broadcast(torch.empty(0))
    with undisturbed(client), isolate_rng():
        for _ in Following(attacks, client, nobody, 0).stages(data.train, Attacker(0, data.seed, data.train)):
            pass


def check_optimizer(client: L.LightningModule, recipe: Recipe, largest: int) -> None:
    """The attackers' optimizer and scheduler can be made, are new ones for every client, and train the module.

    Args:
        client: the client's module.
        recipe: with an optimizer of the attackers' own.
        largest: samples of the largest client.
    """
    try:
        optimizer, scheduler = recipe.configure(client)
        again, _ = recipe.configure(client)
    except ConfigurationError as error:
        raise ConfigurationError(f"model.attackers_optimizer or model.attackers_scheduler: {error}") from error
    except Exception as error:  # whatever a class or function of the user's may do
        raise ConfigurationError(
            f"model.attackers_optimizer or model.attackers_scheduler cannot be made: {folded(error)} ({type(error).__name__})"
        ) from error
    name = f"model.attackers_optimizer {type(optimizer).__name__}"
    if inspect.unwrap(type(optimizer).step) is inspect.unwrap(Optimizer.step):
        raise ConfigurationError(f"{name} has no step(), by which local training trains; use another")
    if again is optimizer:
        raise ConfigurationError(
            f"{name} is one and the same every time, so that its momentum would pass from client to client; make a new one of "
            "the parameters that are given"
        )
    check_held(optimizer, list(client.parameters()), name)
    finite_settings(optimizer, name)
    check_sparse_gradients(client, optimizer, recipe.local, "model.attackers_optimizer")
    if scheduler.scheduler is not None and not isinstance(scheduler.scheduler, LRScheduler):
        raise ConfigurationError(
            f"model.attackers_scheduler {type(scheduler.scheduler).__name__} is not of PyTorch's kind; use one of "
            "torch.optim.lr_scheduler"
        )
    check_scheduler(scheduler, largest, recipe.local, "the attackers (model.attackers_scheduler)", enough="")


def check_batches(attacks: Sequence[Attack], local: LocalTraining) -> None:
    """A share of every batch is at least one sample of a full one."""
    for attack in attacks:
        share = getattr(attack, "poison_fraction", 1.0)
        if getattr(attack, "per_batch", False) and int(share * local.batch_size + ROUNDING) < 1:
            name = type(attack).__name__
            raise ConfigurationError(
                f"{name}.poison_fraction = {share} of every batch (per_batch) is less than one sample of "
                f"{local.place}.batch_size = {local.batch_size}, so that nothing would be poisoned; give at least "
                f"{1 / local.batch_size:.3g}, larger batches, or leave per_batch out"
            )
