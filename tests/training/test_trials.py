"""What earlier runs have measured changes when recorded steps are tried, and no bit."""

import pytest
import torch
from test_executor import made, weights_after

from fl_lightning import LocalTraining
from fl_lightning.models import MLP
from fl_lightning.training import executor as executors
from fl_lightning.training.trials import Best, Trials, kind_of


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    monkeypatch.setattr(executors, "TRIALS", Trials())
    monkeypatch.setattr(executors, "SECONDS_BEFORE_TRIAL", 1e9)  # a run that knows nothing never comes to it
    return executors.TRIALS


def test_the_fewest_seconds_are_kept_for_each_way():
    trials = Trials()
    assert not trials.pays("one")
    trials.note("one", 2.0, 1.0)
    assert not trials.pays("one")
    trials.note("one", 0.5, 3.0)
    assert trials.best == {"one": Best(0.5, 1.0)}
    assert trials.pays("one")
    assert not trials.pays("another")


def test_a_run_that_knows_what_pays_tries_it_with_its_first_client_and_has_the_same_bits(trials):
    executor = made("auto")
    expected = weights_after(executor)
    assert (executor.chosen, executor.known_to_pay) == (None, False)
    told: list[tuple[str, float, float]] = []
    trials.tell = lambda *measured: told.append(measured)
    trials.note(kind_of(executor.module, executor.local), 1e-9, 1.0)
    executor = made("auto")
    assert torch.equal(weights_after(executor), expected)
    assert (executor.chosen, executor.known_to_pay) == ("graph", True)
    ((kind, recorded, sequential),) = told
    assert kind == kind_of(executor.module, executor.local)
    assert recorded > 0 < sequential


def test_a_run_whose_recorded_steps_give_other_bits_does_not_take_them(trials, monkeypatch):
    expected = weights_after(made("sequential"))
    trials.note(kind_of(made("auto").module, made("auto").local), 1e-9, 1.0)
    monkeypatch.setattr(executors.torch, "equal", lambda *_: False)
    executor = made("auto")
    found = weights_after(executor)
    monkeypatch.undo()
    assert torch.equal(found, expected)
    assert (executor.chosen, executor.reason) == ("sequential", "recorded steps of MLP give other bits")


def test_what_does_not_pay_is_tried_as_if_nothing_were_known(trials):
    trials.note(kind_of(made("auto").module, made("auto").local), 1.0, 0.5)
    executor = made("auto")
    weights_after(executor)
    assert (executor.chosen, executor.known_to_pay) == (None, False)


@pytest.mark.parametrize("executor", ["sequential", "graph"])
def test_who_asks_for_an_executor_gets_it(trials, executor):
    one = made(executor)
    trials.note(kind_of(one.module, one.local), 1e-9, 1.0)
    assert not made(executor).known_to_pay


def test_kinds_differ_by_network_and_by_training():
    some = MLP(sizes=(6, 16, 3)), LocalTraining(batch_size=4)
    assert kind_of(*some) == kind_of(MLP(sizes=(6, 16, 3)), LocalTraining(batch_size=4))
    others = [
        (MLP(sizes=(6, 8, 3)), some[1]),
        (some[0], LocalTraining(batch_size=8)),
        (some[0], LocalTraining(batch_size=4, precision="bf16")),
    ]
    assert len({kind_of(*some), *(kind_of(*other) for other in others)}) == 4
