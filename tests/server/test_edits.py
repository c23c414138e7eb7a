"""A rule's edits of the global model: what they may do, when, and what becomes of them."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinyClient, fit, tiny_federation, tiny_trainer, vector
from torch import Tensor

from fl_lightning import Attack, ConfigurationError
from fl_lightning.aggregators import Bucketing, FedAvg
from fl_lightning.callbacks.run_record import weights_sha256


class Editing(FedAvg):
    """Calls functions, and keeps what there is before and after each of the hooks."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.edits = {"before": before, "after": after}
        self.seen: list[tuple[str, int, Tensor, Tensor]] = []

    def edit(self, which: str, module: TinyClient, t: int) -> None:
        old = vector(module).clone()
        if self.edits[which] is not None:
            with torch.no_grad():
                self.edits[which](module)
        self.seen.append((which, t, old, vector(module).clone()))

    def before_broadcast(self, module, round_number):
        self.edit("before", module, round_number)

    def after_step(self, module, round_number):
        self.edit("after", module, round_number)


class Watching(Attack):
    """Keeps what attackers are told."""

    watches_steps = True

    def __init__(self) -> None:
        self.broadcasts: list[Any] = []
        self.steps: list[Tensor] = []

    def constrain(self, module, broadcast, step, steps):
        if not self.broadcasts or broadcast.round_number != self.broadcasts[-1].round_number:
            self.broadcasts.append(broadcast)
            self.steps.append(broadcast.last_step.clone())


def shift(module: Any) -> None:
    module.net[4].bias += 0.25


def test_updates_and_steps_are_taken_from_the_edited_broadcast() -> None:
    rule, watching, steps = Editing(shift, shift), Watching(), []

    class Observed(type(tiny_federation())):
        def server_step(self, gradient, broadcast):
            steps.append((broadcast.weights.clone(), gradient.clone()))
            return super().server_step(gradient, broadcast)

    federation = tiny_federation()
    federation = Observed(federation.client, rule, [watching], federation.cohort, federation.local)
    fit(federation, rounds=3)
    assert [(which, t) for which, t, *_ in rule.seen] == [(w, t) for t in range(3) for w in ("before", "after")]
    for t, (weights, gradient) in enumerate(steps):
        (*_, begun, sent), (*_, stepped, left) = rule.seen[2 * t : 2 * t + 2]
        assert torch.equal(weights, sent)
        assert not torch.equal(begun, sent)
        assert torch.equal(stepped, sent - gradient)
        if t:
            assert torch.equal(begun, rule.seen[2 * t - 1][3])
        assert torch.equal(vector(federation.client) if t == 2 else rule.seen[2 * t + 2][2], left)
    # Attackers are told by how much what they were sent fell, edits included; nothing in the first round.
    assert not watching.steps[0].any()
    for t in (1, 2):
        fell = watching.broadcasts[t - 1].weights - watching.broadcasts[t].weights
        torch.testing.assert_close(watching.steps[t], fell, rtol=0, atol=1e-6)


def to_nan(module: Any) -> None:
    module.net[4].bias += 1
    module.net[1].running_var[3] = math.nan


@pytest.mark.parametrize(
    ("before", "after"), [(to_nan, None), (None, to_nan), (to_nan, to_nan)], ids=["before", "after", "both"]
)
def test_an_edit_that_is_not_finite_is_taken_back(before: Any, after: Any, caplog: pytest.LogCaptureFixture) -> None:
    federation, plain = tiny_federation(aggregator=Editing(before, after)), tiny_federation(aggregator=FedAvg())
    with caplog.at_level(logging.WARNING):
        trainer = fit(federation, rounds=2)
    fit(plain, rounds=2)
    assert weights_sha256(federation.client) == weights_sha256(plain.client)
    assert federation.refused_rounds == 2
    assert float(trainer.callback_metrics["round/refused"]) == 1
    hook = "before_broadcast" if before else "after_step"
    assert f"round 0: Editing.{hook} makes net.1.running_var not finite; what it did is taken back" in caplog.text


class Endless(Editing):
    def forward(self, shard):
        return torch.full((shard.width,), math.inf)


def test_a_refused_step_leaves_the_edited_broadcast_and_is_edited_after() -> None:
    federation = tiny_federation(aggregator=Endless(shift, shift))
    start = vector(federation.client).clone()
    fit(federation, rounds=1)
    assert federation.refused_rounds == 1
    expected = start.clone()
    expected[-3:] += 0.25
    expected[-3:] += 0.25
    assert torch.equal(vector(federation.client), expected)


class Careless(FedAvg):
    """Trains for a step as a library would, and leaves all sorts of things behind."""

    def before_broadcast(self, module, round_number):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        assert module.training
        assert all(parameter.grad is None for parameter in module.parameters())
        module.eval()
        module(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        module.noticed = "still here"


def test_only_values_stay_and_draws_are_keyed() -> None:
    federation = tiny_federation(aggregator=Careless())
    fit(federation, rounds=2)
    assert federation.client.training
    assert not hasattr(federation.client, "noticed")
    again = tiny_federation(aggregator=Bucketing(rule=Careless(), bucket_size=1), attacks=federation.attacks)
    torch.manual_seed(5)  # draws are those of hook and round
    fit(again, rounds=2)
    assert weights_sha256(again.client) != weights_sha256(fit_plain().client)
    third = tiny_federation(aggregator=Careless())
    torch.manual_seed(6)
    fit(third, rounds=2)
    assert weights_sha256(third.client) == weights_sha256(federation.client)


def fit_plain() -> Any:
    federation = tiny_federation(aggregator=FedAvg())
    fit(federation, rounds=2)
    return federation


def add_a_buffer(module: Any) -> None:
    module.register_buffer("mine", torch.zeros(2))


def reshape(module: Any) -> None:
    module.net[1].running_mean = torch.zeros(4)


@pytest.mark.parametrize("edit", [add_a_buffer, reshape])
def test_other_changes_than_of_values_are_refused(edit: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Editing.after_step adds, removes or reshapes parameters or buffers; it may"):
        fit(tiny_federation(aggregator=Editing(None, edit)), rounds=1)


class Fading(FedAvg):
    """Adds to the model what its buffer says, which shrinks from round to round."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("left", torch.ones(()))

    @torch.no_grad()
    def after_step(self, module, round_number):
        module.net[4].bias += self.left
        self.left *= 0.5


def test_a_checkpoint_is_written_after_the_edit_with_what_the_rule_remembers(tmp_path: Path) -> None:
    whole, first, second = (tiny_federation(aggregator=Fading()) for _ in range(3))
    fit(whole, rounds=3)
    trainer = fit(first, rounds=1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    tiny_trainer(3).fit(second, trainer.datamodule, ckpt_path=tmp_path / "one.ckpt")  # type: ignore[attr-defined]
    assert weights_sha256(second.client) == weights_sha256(whole.client)
    assert second.aggregator.state_dict()["left"].item() == 0.125
    assert "edits" in whole.seconds
