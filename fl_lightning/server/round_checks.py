"""Whether cohort, rule, client, attacks and data fit together: all that can be seen without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.mixing import has_own
from fl_lightning.attacks.base import Attack
from fl_lightning.checked import shown
from fl_lightning.cohort import CohortSampler
from fl_lightning.data.module import FederatedDataModule, Task
from fl_lightning.data.probe import check_probe
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.subclasses import check_methods
from fl_lightning.modules.undisturbed import undisturbed
from fl_lightning.seeding import generator
from fl_lightning.server.attackers_checks import check_attackers
from fl_lightning.server.optimizer import check_server_optimizer
from fl_lightning.server.outcome_checks import check_outcome
from fl_lightning.training.client_checks import check_client
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.optimizers import read_optimizers
from fl_lightning.training.prediction import check_predictions
from fl_lightning.training.recipe import Recipe
from fl_lightning.updates.layout import parameter_layout


def check_numbers(rule: Aggregator, cohort: CohortSampler) -> None:
    """Raise `ConfigurationError` if the rule is not defined for the round's numbers of clients and of malicious ones."""
    rule.expect(cohort.malicious_per_round)
    rule.check(cohort.clients_per_round)


def check_round(
    client: L.LightningModule,
    data: FederatedDataModule,
    cohort: CohortSampler,
    rule: Aggregator,
    attacks: Sequence[Attack],
    local: LocalTraining,
    recipe: Recipe | None,
    configure_optimizers: Callable[[], Any],
) -> None:
    """See that a round can be trained.

    Args:
        client: the client's module.
        data: after its setup.
        cohort: who takes part.
        rule: the server's.
        attacks: of malicious clients.
        local: how a client trains.
        recipe: how malicious ones do, where that is otherwise.
        configure_optimizers: makes the server's optimizer, and its scheduler.

    Raises:
        ConfigurationError: for what does not fit, naming it.
    """
    assert data.task is not None, "setup() of the data module has not run"
    check_methods(data, FederatedDataModule)
    for part in (*(part for part in rule.modules() if isinstance(part, Aggregator)), *attacks):
        check_methods(part, Attack if isinstance(part, Attack) else Aggregator)
    check_outcome(data.outcome, rule, attacks)
    cohort.check(len(data.clients))
    check_numbers(rule, cohort)
    rule.check_task(data.train, data.task.num_classes)
    if rule.needs_root and data.root_samples is None:
        raise ConfigurationError(
            f"{type(rule).__name__} needs clean samples of the server's own; set data.root, for example {{samples: 100}}, to "
            "keep some training samples from the clients"
        )
    check_probe(rule.probe, data, type(rule).__name__)
    with local.seen_by(client, int(data.sizes.max())):
        check_client(client, data.sizes, local, data.train)
    layers = parameter_layout(client).layers
    rule.check_model(layers)
    try:
        server, scheduler = read_optimizers(configure_optimizers(), "the server")
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"model.server_optimizer or its scheduler cannot be made: {error}") from error
    check_server_optimizer(server, scheduler.scheduler, client.parameters())
    for attack in attacks:
        attack.meet(attacks)
        attack.validate(data.task.num_classes)
        attack.check_model(layers)
    check_attackers(client, data, attacks, local, recipe)


def check_evaluation(client: L.LightningModule, data: FederatedDataModule, rule: Aggregator) -> None:
    """See that the client's predictions, and the rule's, can be evaluated; random numbers are as before then."""
    assert data.task is not None, "setup() of the data module has not run"
    with isolate_rng():
        check_predictions(client, data.train, data.task.num_classes, data.task.test)
        if has_own(rule, "predict"):
            check_rules_predictions(rule, client, data.task)


def check_rules_predictions(rule: Aggregator, client: L.LightningModule, task: Task) -> None:
    """Raise `ConfigurationError` if a rule's own predictions for two test samples are no logits or probabilities."""
    name, count = f"{type(rule).__name__}.predict", min(2, len(task.test))
    batch = move_data_to_device(task.test.batch(torch.arange(count)), next(client.parameters()).device)
    with undisturbed(client), torch.no_grad():
        client.eval()
        predicted = rule.predict(client, batch, generator(0, "predict"))
    if not isinstance(predicted, Tensor) or not predicted.is_floating_point():
        found = f"a tensor of {predicted.dtype}" if isinstance(predicted, Tensor) else shown(predicted)
        raise ConfigurationError(
            f"{name} must return logits or probabilities (b, C), got {found}; not classes, but their shares"
        )
    task.test.outcome.check_output(predicted, task.test.targets[:count], task.num_classes, name)


def check_not_compiled(federation: L.LightningModule) -> None:
    """Refuse a federation that was given to `torch.compile`."""
    if federation._compiler_ctx is not None:
        raise ConfigurationError(
            "the federation was compiled by torch.compile, which cannot follow a round; give it as it is, and compile layers "
            "in the client's constructor if at all"
        )
