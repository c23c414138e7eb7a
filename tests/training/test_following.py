"""Hostile `loss` and `finished` hooks of attacks: one clear line with attack, client and round; what they get; and `begin`."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from attackers_by_hand import BATCH, equal_data, federation_of
from tiny import Relabel, Shrink, fit, vector

from fl_lightning import AttackersTraining, LocalTraining
from fl_lightning.attacks import Attack
from fl_lightning.errors import ConfigurationError


class Hostile(Attack):
    """Makes of the loss what it was told."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def loss(self, module, batch, loss, broadcast):
        return self.make(loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda loss: None, r"gives None of type NoneType, not a tensor; return the loss it was given, or loss \+ a term"),
        (lambda loss: loss.item(), r"gives [\d.]+ of type float, not a tensor"),
        (lambda loss: loss.expand(3), r"gives a loss of shape \(3,\), not one number; return a sum or a mean"),
        (lambda loss: loss.detach(), "gives a loss without gradients"),
        (lambda loss: loss + 0j, r"gives a loss of dtype torch\.complex64; return a real number"),
        (lambda loss: loss * math.nan, "gives a loss that is not finite, where the client's own was"),
        (lambda loss: loss + math.inf, "gives a loss that is not finite"),
    ],
)
def test_what_is_no_loss_is_refused(make, message):
    with pytest.raises(ConfigurationError, match=rf"^Hostile\.loss of client \d in round 0 {message}"):
        fit(federation_of([Relabel(), Hostile(make)]), equal_data(), rounds=1)


def test_a_client_that_diverges_by_itself_is_excluded_and_not_the_attacks_fault():
    def enormous(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1e30)

    federation = federation_of([Relabel(), Hostile(lambda loss: 2 * loss)], attackers_optimizer=enormous)
    fit(federation, equal_data(), rounds=1)
    assert federation.excluded_updates == int(federation.cohort.draw(0, 0, federation.data.sizes).malicious.sum()) > 0
    assert vector(federation.client).isfinite().all()


class Explodes(Attack):
    """Adds a term by which every step makes a bias many times as long, until its square is more than float32 holds."""

    def loss(self, module, batch, loss, broadcast):
        return loss + 1e12 * list(module.parameters())[-1].square().sum()


def test_a_client_that_diverges_by_an_attacks_term_is_excluded_too(caplog):
    federation = federation_of([Relabel(), Explodes()], attackers=AttackersTraining(epochs=3))
    fit(federation, equal_data(), rounds=1)
    assert federation.excluded_updates == int(federation.cohort.draw(0, 0, federation.data.sizes).malicious.sum()) > 0
    assert vector(federation.client).isfinite().all()
    assert "Explodes.loss of client" in caplog.text
    assert "stops being finite, as its training diverges; train with a lower rate" in caplog.text


class Ends(Attack):
    """Returns what it was told, and keeps what it was given."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.given = answers, []

    def finished(self, module, logs):
        self.given.append(logs)
        for parameter in module.parameters():
            parameter.data.zero_()  # which is put back
        return self.answers[(len(self.given) - 1) % len(self.answers)]


@pytest.mark.parametrize("answer", [None, 1, torch.tensor(True)])
def test_an_answer_is_yes_or_no(answer):
    with pytest.raises(ConfigurationError, match=r"^Ends\.finished of client \d in round 0 gives .*, not True or False"):
        fit(federation_of([Relabel(), Ends(answer)]), equal_data(), rounds=1)


class Steps(Attack):
    """Counts steps and what was said of how many there will be; and what losses were."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.losses: list[float] = []

    def constrain(self, module, broadcast, step, steps):
        self.steps.append((step, steps))

    def loss(self, module, batch, loss, broadcast):
        self.losses.append(loss.item())
        return loss


def test_a_client_that_has_had_enough_ends_after_a_pass_and_its_last_step_is_known():
    ends, steps = Ends(False, True), Steps()
    fit(federation_of([Relabel(), ends, steps], attackers=AttackersTraining(epochs=4)), equal_data(), rounds=1)
    assert steps.steps[:6] == [(1, 12), (2, 12), (3, 12), (4, 12), (5, 12), (6, 6)]
    assert len(steps.steps) % 6 == 0
    for i, logs in enumerate(ends.given):  # of the pass alone, three batches
        mean = sum(steps.losses[3 * i : 3 * i + 3]) / 3
        assert logs["loss"] == pytest.approx(mean, rel=1e-6)


def test_terms_of_several_attacks_add_up_in_order_and_the_logs_are_without_them():
    ends, steps = Ends(False), Steps()
    attacks = [Relabel(), ends, Hostile(lambda loss: loss + 3), Hostile(lambda loss: 2 * loss), steps]
    fit(federation_of(attacks), equal_data(), rounds=1)
    own = [logs["loss"] for logs in ends.given]
    assert [sum(steps.losses[3 * i : 3 * i + 3]) / 3 for i in range(len(own))] == pytest.approx(
        [2 * (loss + 3) for loss in own], rel=1e-6
    )


def test_hooks_see_the_weights_in_training_and_those_of_the_beginning():
    seen: list[bool] = []

    class Looks(Attack):
        def loss(self, module, batch, loss, broadcast):
            assert module.training
            assert len(batch[0]) == BATCH
            assert (batch[1] == 0).all()
            seen.append(torch.equal(vector(module), broadcast.weights))
            return loss

    fit(federation_of([Relabel(), Looks(), Shrink()]), equal_data(), rounds=1)
    assert seen == [True, False, False] * (len(seen) // 3)


class Begins(Attack):
    """Adds to the weights that a client starts from, and then does not let it move."""

    def __init__(self, factor: float) -> None:
        self.factor, self.draws = factor, []

    def begin(self, module, broadcast):
        assert torch.equal(vector(module), broadcast.weights) or self.factor == 2
        self.draws.append(torch.rand(()).item())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(self.factor)

    def loss(self, module, batch, loss, broadcast):
        return 0.0 * loss


def test_an_attacker_starts_from_what_attacks_make_of_the_broadcast_one_after_the_other():
    class Sees(L.Callback):
        def on_aggregate(self, federation, shard, aggregate):
            for update in shard.values[shard.malicious]:
                torch.testing.assert_close(update, (1 - 3 * 2) * shard.broadcast, rtol=1e-6, atol=1e-7)
            assert (shard.values[~shard.malicious] - (1 - 3 * 2) * shard.broadcast).abs().max() > 0.1

    attacks = [Begins(3.0), Begins(2.0)]
    fit(federation_of(attacks), equal_data(), rounds=2, callbacks=[Sees()])
    assert len(attacks[0].draws) > 1
    assert len(set(attacks[0].draws)) == len(attacks[0].draws), "global draws are keyed by round and client"


@pytest.mark.parametrize("executor", ["graph", "stacked"])
def test_whatever_the_executor(executor):
    found = []
    for chosen in ("sequential", executor):
        local = LocalTraining(epochs=1, batch_size=8, executor=chosen)
        federation = federation_of([Begins(1.5)], local=local)
        fit(federation, equal_data(), rounds=1)
        found.append(vector(federation.client))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
