"""Attackers' own recipe: against a plain loop, whatever the executor, and what it leaves alone."""

import logging
from typing import Any

import pytest
import torch
from attackers_by_hand import BATCH, by_hand, equal_data, federation_of, plain_client
from tiny import Relabel, fit, vector

from fl_lightning import AttackersTraining, LocalTraining
from fl_lightning.attacks import Attack, ConstrainAndScale
from fl_lightning.errors import ConfigurationError
from fl_lightning.server import resources
from fl_lightning.training.recipe import recipe_of

TOLERANCE = 1e-6
"""Of weights of size 1 after a few rounds of 5 clients with at most 9 steps in float32, whose rounding is 6e-8."""


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.5, weight_decay=0.01)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def quartered(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.25)


# ---- what attackers do otherwise -----------------------------------------------------------------------------------------


def test_what_is_left_out_is_as_everyone_does_it():
    local = LocalTraining(epochs=2, batch_size=16, precision="bf16", gradient_clip_norm=1.0, executor="stacked")
    own = AttackersTraining(epochs=6).over(local)
    assert (own.epochs, own.batch_size, own.precision, own.gradient_clip_norm) == (6, 16, "bf16", 1.0)
    assert own.executor == "sequential"  # stacks are of benign clients
    assert recipe_of(local, None, None, None) is None
    whole = LocalTraining(epochs=3)
    found = recipe_of(local, whole, None, None)
    assert found is not None
    assert found.local is whole


@pytest.mark.parametrize(
    ("attackers", "optimizer", "scheduler", "message"),
    [
        (AttackersTraining(epochs=-1), None, None, r"model\.attackers\.epochs must be at least 1e-06, got -1"),
        (AttackersTraining(batch_size=0), None, None, r"model\.attackers\.batch_size must be at least 1, got 0"),
        (AttackersTraining(executor="stacked"), None, None, r"model\.attackers\.executor must be auto, sequential or graph"),  # type: ignore[arg-type]
        (LocalTraining(executor="stacked"), None, None, r"model\.attackers has executor stacked .* one after the other"),
        (LocalTraining(executor="graph", branches=3), None, None, r"model\.attackers has executor graph and branches 3"),
        (
            {"epochs": 6},
            None,
            None,
            r"model\.attackers must be of type AttackersTraining or LocalTraining, .* got \{'epochs': 6\}",
        ),
        (None, None, quartered, r"model\.attackers_scheduler is of model\.attackers_optimizer, which is not given"),
        (None, 0.1, None, r"model\.attackers_optimizer must be a function that makes one, got 0\.1"),
        (None, sgd, 3, r"model\.attackers_scheduler must be a function that makes one, got 3"),
    ],
)
def test_what_cannot_be_is_refused(attackers, optimizer, scheduler, message):
    with pytest.raises(ConfigurationError, match=message):
        federation_of([Relabel()], attackers=attackers, attackers_optimizer=optimizer, attackers_scheduler=scheduler)


# ---- against a plain loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["sequential", "graph"])
def test_more_epochs_an_optimizer_and_learning_rate_steps_within_the_round(executor):
    federation = federation_of(
        [Relabel()],
        local=LocalTraining(epochs=1, batch_size=BATCH, executor=executor),
        attackers=AttackersTraining(epochs=3),
        attackers_optimizer=sgd,
        attackers_scheduler=quartered,
    )
    fit(federation, equal_data(), rounds=4)
    expected = by_hand(4, epochs=3, optimizer=sgd, decay=0.25)
    torch.testing.assert_close(vector(federation.client), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert (by_hand(4, epochs=3, optimizer=sgd, decay=1.0) - expected).abs().max() > 100 * TOLERANCE
    ways = federation.clients.executor.chosen, federation.clients.of_attackers.chosen
    assert ways == (executor, executor)


def test_another_kind_of_optimizer_without_a_schedule():
    federation = federation_of([Relabel()], attackers_optimizer=adam)
    fit(federation, equal_data(), rounds=2)
    torch.testing.assert_close(vector(federation.client), by_hand(2, optimizer=adam, decay=1.0), rtol=1e-5, atol=1e-5)


def test_one_that_wants_a_closure():
    def lbfgs(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, lr=0.1, max_iter=2)

    federation = federation_of([Relabel(), ConstrainAndScale(gamma=1.0)], attackers_optimizer=lbfgs)
    fit(federation, equal_data(), rounds=1)
    assert vector(federation.client).isfinite().all()
    assert federation.excluded_updates == 0


def test_the_modules_own_scheduler_goes_with_its_own_optimizer():
    federation = federation_of([Relabel()], attackers=AttackersTraining(epochs=2))
    fit(federation, equal_data(), rounds=2)
    torch.testing.assert_close(vector(federation.client), by_hand(2, epochs=2, decay=0.5), rtol=TOLERANCE, atol=TOLERANCE)


def test_steps_after_batches_as_lightning_writes_them():
    def by_batch(optimizer: torch.optim.Optimizer) -> Any:
        return {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.25), "interval": "step"}  # three are an epoch

    settings = {"attackers": AttackersTraining(epochs=3), "attackers_optimizer": sgd}
    ends = []
    for scheduler in (by_batch, quartered):
        federation = federation_of([Relabel()], attackers_scheduler=scheduler, **settings)
        fit(federation, equal_data(), rounds=1)
        ends.append(vector(federation.client))
    assert torch.equal(*ends)


def test_a_recipe_like_everyones_changes_no_bit():
    plain = federation_of([Relabel()])
    recipe = federation_of([Relabel()], attackers=AttackersTraining(epochs=1, batch_size=BATCH))
    for federation in (plain, recipe):
        fit(federation, equal_data(), rounds=2)
    assert torch.equal(vector(plain.client), vector(recipe.client))


# ---- executors -----------------------------------------------------------------------------------------------------------


class Term(Attack):
    """Adds a term to the loss."""

    def loss(self, module, batch, loss, broadcast):
        return loss + 0.1 * sum(p.square().sum() for p in module.parameters())


class Recordable(type(plain_client())):
    recordable = True


def ended(attacks: list[Attack], caplog: Any = None, **local: Any) -> tuple[torch.Tensor, Any, list[str]]:
    torch.manual_seed(0)
    settings = LocalTraining(epochs=1, batch_size=BATCH, **local)
    federation = federation_of([Relabel(), *attacks], client=Recordable(norm=False, dropout=0.0), local=settings)
    if caplog is not None:
        caplog.clear()
    fit(federation, equal_data(), rounds=2)
    said = [r.getMessage() for r in caplog.records if "step by step" in r.getMessage()] if caplog is not None else []
    return vector(federation.client), federation.clients, said


def test_only_clients_whose_attack_needs_python_fall_back(caplog):
    caplog.set_level(logging.INFO, "fl_lightning")
    expected, _, said = ended([Term()], caplog, executor="sequential")
    assert said == []
    calls: list[bool] = []
    for executor in ({"executor": "graph"}, {"executor": "graph", "branches": 3}):
        found, clients, said = ended([Term()], caplog, **executor)
        assert torch.equal(found, expected)
        assert clients.executor.chosen == "graph"
        calls.append(clients.branched is not None)
        assert said == ["malicious clients are trained step by step in Python, as Term follows their steps; others are not"]
    assert calls == [False, True]
    assert not torch.equal(ended([], executor="graph")[0], expected)


def test_stacks_of_benign_clients_stay(caplog):
    found, clients, _ = ended([Term()], caplog, executor="stacked")
    expected, *_ = ended([Term()], executor="sequential")
    assert clients.stacked is not None
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert not torch.equal(found, ended([], executor="stacked")[0])


def test_the_rank_of_an_attacker_is_chosen_by_its_work():
    federation = federation_of([Relabel()], attackers=AttackersTraining(epochs=4))
    fit(federation, equal_data(), rounds=1)
    cohort = federation.cohort.draw(0, 0, federation.data.sizes)
    assert federation.clients.work(cohort).tolist() == [96 if bad else 24 for bad in cohort.malicious.tolist()]
    assert federation.seconds["attackers_training"] < federation.seconds["local_training"]
    assert federation.seconds["attackers_training"] > 0


def test_memory_is_reckoned_with_the_larger_optimizer(monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(resources, "check_fits", lambda footprint, *_: seen.append(footprint.optimizer_copies))
    for optimizer in (None, adam):
        fit(federation_of([Relabel()], attackers_optimizer=optimizer), equal_data(), rounds=1)
    assert seen == [1, 2]
