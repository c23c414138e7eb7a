"""Attackers' settings that cannot work are refused before training, in one line each."""

from typing import Any

import pytest
import torch
from tiny import Relabel, TinyClient, fit, tiny_data, tiny_federation

from fl_lightning import AttackersTraining, CohortSampler, LocalTraining
from fl_lightning.attacks import IBA, Attack, Chameleon, ConstrainAndScale, LabelFlip
from fl_lightning.callbacks.digests import config_sha256, experiment
from fl_lightning.configuration import build
from fl_lightning.data import FullCopies
from fl_lightning.errors import ConfigurationError
from fl_lightning.options.remarks import of_recipe
from fl_lightning.server.attackers_checks import check_company


def refused(message: str, data: Any = None, **settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(tiny_federation(**settings), data, rounds=1)


class Fused(torch.optim.Optimizer):
    """Has no step of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})


KEPT: list[Any] = []


def one_and_the_same(parameters: Any) -> torch.optim.Optimizer:
    if not KEPT:
        KEPT.append(torch.optim.SGD(parameters, lr=0.1))
    return KEPT[0]


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=float("nan")), r"model\.attackers_optimizer SGD has lr = nan, with which every step"),
        (lambda p: torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1), r"SGD holds 1 of 1 tensors that are not the"),
        (Fused, r"model\.attackers_optimizer Fused has no step\(\)"),
        (one_and_the_same, r"model\.attackers_optimizer SGD is one and the same every time"),
        (lambda p: 1 / 0, r"model\.attackers_optimizer or model\.attackers_scheduler cannot be made: .*ZeroDivisionError"),
        (lambda p: [torch.optim.SGD(p, lr=0.1)] * 2, r"an attacker needs exactly one optimizer"),
    ],
)
def test_optimizers(optimizer, message):
    refused(message, attackers_optimizer=optimizer)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o), "ReduceLROnPlateau waits for a metric, which an attacker"),
        (
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=1),
            r"OneCycleLR of the attackers .* is made for 1 .* takes (\d+) of them .* with total_steps=\1$",
        ),
        (lambda o: torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1), "made for another optimizer"),
    ],
)
def test_schedulers(scheduler, message):
    settings = {"attackers": AttackersTraining(epochs=4), "attackers_optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    refused(message, attackers_scheduler=scheduler, **settings)


def test_a_recipe_without_an_attack():
    message = r"say how malicious clients train, but there are no model\.attacks"
    refused(message, attacks=[], attackers=AttackersTraining(epochs=2))


def test_a_recipe_without_malicious_clients_is_remarked_upon():
    federation = tiny_federation(attackers=AttackersTraining(epochs=2))
    assert list(of_recipe(federation.recipe, federation.cohort)) == []
    (line,) = of_recipe(federation.recipe, CohortSampler(malicious_fraction=0.0))
    assert line.startswith("model.cohort.malicious_fraction = 0: nobody trains as model.attackers")


def test_batches_of_one_before_batch_norm():
    message = r"model\.attackers\.batch_size is 1, and BatchNorm"
    refused(message, tiny_data(FullCopies(num_clients=9), n=30), client=TinyClient(), attackers=AttackersTraining(batch_size=1))


@pytest.mark.parametrize(("settings", "name"), [({}, "local"), ({"attackers": AttackersTraining(batch_size=4)}, "attackers")])
def test_a_share_of_a_batch_that_is_no_sample(settings, name):
    attack = LabelFlip(mode="reverse", poison_fraction=0.1, per_batch=True)
    message = rf"LabelFlip\.poison_fraction = 0\.1 of every batch .* model\.{name}\.batch_size = "
    refused(message, attacks=[Relabel(), attack], **settings)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("other", [Chameleon(target_label=1), ConstrainAndScale()], ids=["Chameleon", "ConstrainAndScale"])
def test_an_attack_that_gives_back_the_loss_it_is_given_stands_in_nobodys_way(alpha: float, other: Attack):
    for attacks in ([IBA(alpha=alpha), other], [other, IBA(alpha=alpha)]):
        check_company(attacks, LocalTraining(), None)
    with pytest.raises(ConfigurationError, match=r"goes down a loss of its own, which would leave out that of"):
        check_company([other, IBA(alpha=0.25)], LocalTraining(), None)


def test_defaults_leave_the_experiment_what_it_was():
    old = {"model": {"attacks": [{"class_path": "DBA", "init_args": {"row": 1}}], "local": {"epochs": 1.0}}}
    attack = {"class_path": "DBA", "init_args": {"row": 1, "per_batch": False}}
    new = {"model": {**old["model"], "attacks": [attack], "attackers": None, "attackers_optimizer": None}}
    assert config_sha256(new) == config_sha256(old)
    told = {"epochs": 2.0, "executor": "graph"}
    assert experiment({"model": {"attackers": told}}) == experiment({"model": {"attackers": {"epochs": 2.0}}})
    assert config_sha256({"model": {**new["model"], "attackers": told}}) != config_sha256(old)
    attack["init_args"]["per_batch"] = True
    assert config_sha256(new) != config_sha256(old)


def test_on_the_command_line():
    command = ["fit", "--model.client", "MLP", "--model.aggregator", "FedAvg", "--data", "Phishing", "--data.partition", "IID"]
    command += ["--data.partition.num_clients", "5", "--model.attackers.epochs", "6", "--model.local.batch_size", "9"]
    command += ["--model.attackers_optimizer", "SGD", "--model.attackers_optimizer.lr", "0.05"]
    command += ["--model.attackers_scheduler", "StepLR", "--model.attackers_scheduler.step_size", "2"]
    recipe = build(command).model.recipe
    assert (recipe.local.epochs, recipe.local.batch_size) == (6, 9)
    optimizer, scheduler = recipe.configure(TinyClient())
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert scheduler.scheduler.step_size == 2
