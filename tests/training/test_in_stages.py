"""Stages of a malicious client's training: their order, their ends, what is averaged, and what is refused."""

from typing import Any

import pytest
import torch
from attackers_by_hand import equal_data, federation_of
from tiny import Relabel, fit, vector

from fl_lightning.attacks import Attack, Stage
from fl_lightning.errors import ConfigurationError


class InStages(Attack):
    """Two stages, of which the first does not train; notes what happens.

    Args:
        given: the stages by the module.
        ends_after: passes after which it says that training is over.
    """

    def __init__(self, given: Any = None, ends_after: int = 99) -> None:
        self.given, self.ends_after = given, ends_after
        self.noted: list[Any] = []

    def stages(self, module, clean, attacker):
        self.noted = [len(clean), attacker.round_number]
        try:
            for stage in self.given(module) if self.given else [Stage()]:
                self.noted.append("stage")
                yield stage
        finally:
            self.noted.append("end")

    def constrain(self, module, broadcast, step, steps):
        self.noted.append((step, steps))

    def finished(self, module, logs):
        self.noted.append("pass")
        return self.noted.count("pass") >= self.ends_after


def sgd(module: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)


def trained(*attacks: Attack) -> torch.Tensor:
    federation = federation_of(list(attacks))
    fit(federation, equal_data(), rounds=1)
    return vector(federation.client)


def test_one_stage_with_nothing_of_its_own_is_training_as_ever():
    assert torch.equal(trained(Relabel(), InStages()), trained(Relabel()))


def test_a_stage_goes_on_from_where_the_last_one_ended_in_one_sequence_of_draws():
    """Two stages of one pass each are two passes, where the optimizer keeps nothing from step to step."""

    def plain(module):
        return torch.optim.SGD(module.parameters(), lr=0.1)

    two = InStages(lambda module: [Stage(1, plain(module)), Stage(1, plain(module))])
    one = InStages(lambda module: [Stage(2, plain(module))])
    assert torch.equal(trained(Relabel(), two), trained(Relabel(), one))
    steps = [(1, 3), (2, 3), "pass", (3, 3)]  # batches of 24 samples by 8
    assert two.noted == [24, 0, "stage", *steps, "stage", *steps, "end"]


def test_a_scheduler_steps_after_every_pass():
    def decaying(module):
        optimizer = sgd(module, 0.1)
        return [Stage(2, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))]

    # The module's own optimizer and scheduler are these.
    federation = federation_of([Relabel(), InStages(lambda module: [Stage(2)])])
    fit(federation, equal_data(), rounds=1)
    assert torch.equal(trained(Relabel(), InStages(decaying)), vector(federation.client))


def test_whoever_is_finished_has_no_more_stages():
    attack = InStages(lambda module: [Stage(5), Stage(5)], ends_after=2)
    trained(Relabel(), attack)
    assert (attack.noted.count("stage"), attack.noted.count("pass"), attack.noted[-1]) == (1, 2, "end")


def test_what_a_stage_does_not_train_stays():
    parts: list[torch.Tensor] = []

    def last_layer(module):
        parts.append(module.net[0].weight.detach().clone())
        yield Stage(2, torch.optim.SGD(module.net[-1].parameters(), lr=0.5))
        parts.append(module.net[0].weight.detach().clone())
        parts.append(module.net[-1].weight.detach().clone())

    trained(Relabel(), InStages(last_layer))
    assert torch.equal(parts[-2], parts[-3])


def test_logs_are_averaged_over_the_steps_of_all_stages():
    def loss_of(given):
        federation = federation_of([Relabel(), InStages(given)])
        return float(fit(federation, equal_data(), rounds=1).callback_metrics["client/loss"])

    still = lambda module, passes: Stage(passes, sgd(module, 0.0))  # noqa: E731
    assert loss_of(lambda m: [still(m, 1), still(m, 3)]) == pytest.approx(loss_of(lambda m: [still(m, 4)]), rel=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda module: [3], r"stage 1 of InStages\.stages of client .* is 3 of type int, not a Stage"),
        (
            lambda module: [Stage(1, sgd(torch.nn.Linear(1, 1), 0.1))],
            r"optimizer of 2 tensors that are no trainable parameters",
        ),
        (
            lambda module: [Stage(scheduler=torch.optim.lr_scheduler.StepLR(sgd(module, 0.1), 1))],
            r"has a scheduler without an optimizer",
        ),
    ],
)
def test_what_is_no_stage_is_refused_before_training(given, message):
    federation = federation_of([Relabel(), InStages(given)])
    with pytest.raises(ConfigurationError, match=message):
        fit(federation, equal_data(), rounds=1)


def test_one_attack_has_stages():
    with pytest.raises(ConfigurationError, match=r"InStages, InStages each train in stages of their own; leave one"):
        trained(InStages(), InStages())
