"""Clients side by side: the same bits as one after the other; a reason for whatever cannot be trained so."""

import copy
import logging
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from branched_clients import RAGGED, Net, assert_same, by, in_turn, ragged, rng, samples, side_by_side
from ranks import on_ranks
from tiny import Relabel, Shrink, TinyClient, fit, tiny_data, tiny_federation
from torch import Tensor, nn

from fl_lightning import Federation, LocalTraining
from fl_lightning.aggregators import FLIP
from fl_lightning.attacks import Attack
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import CNN, MLP
from fl_lightning.server import resources
from fl_lightning.training import recorded_steps
from fl_lightning.training.branched_training import BranchedTraining
from fl_lightning.training.local_training import NotTogetherError
from fl_lightning.updates.layout import named_state


@pytest.mark.parametrize("branches", [2, 3, 7, 20])
def test_ragged_clients_round_after_round(branches: int) -> None:
    torch.manual_seed(0)
    training = assert_same(Net(), LocalTraining(epochs=1.5, batch_size=8, branches=branches), ragged(), rounds=3)
    assert training.steps.recordings
    assert len(training.states) == min(branches, len(RAGGED))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The seats of those who take each step together."""
    real, found = recorded_steps.RecordedSteps.step_together, []

    def step_together(self: Any, kind: Any, states: dict[int, list[Tensor]], *rest: Any) -> None:
        found.append(tuple(states))
        real(self, kind, states, *rest)

    monkeypatch.setattr(recorded_steps.RecordedSteps, "step_together", step_together)
    return found


def test_whoever_has_finished_makes_room(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    clients = [samples(8 * steps, seed=steps) for steps in (5, 1, 3, 2, 4, 1)]
    assert_same(Net(), LocalTraining(batch_size=8, branches=3), clients)
    assert taken == [(0, 1, 2)] * 5 + [(0,)]


def test_nobody_waits_for_one_who_began_later(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    clients = [samples(37 if i < 3 else 36, seed=i) for i in range(16)]  # last batches of five, and of four
    assert_same(Net(), LocalTraining(batch_size=8, branches=4), clients)
    # Of the first four seats three end with a batch of five and one with a batch of four; from then on all are alike.
    assert taken[:6] == [(0, 1, 2, 3)] * 4 + [(3,), (0, 1, 2)]
    assert taken[6:] == [(0, 1, 2, 3)] * 15


def test_those_whose_learning_rates_have_gone_on_go_first(taken: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    clients = [samples(8 * steps, seed=i) for i, steps in enumerate((6, 6, 3, 3, 3, 3))]
    assert_same(Net(configure=by("step")), LocalTraining(batch_size=8, branches=3), clients)
    # The learning rate is halved after every second step: the third seat's next client begins with the first one's rate.
    assert taken == [(0, 1, 2)] * 3 + [(0, 1)] * 3 + [(0, 1, 2)] * 3


class Counts(Net):
    """Logs a tensor that it goes on to change."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("steps", self.steps.add_(1.0))
        return super().training_step(batch, batch_idx)


def test_what_was_logged_stays_as_it_was() -> None:
    torch.manual_seed(0)
    training = assert_same(Counts(), LocalTraining(batch_size=8, branches=2), ragged(), rounds=2)
    steps = [-(-len(data) // 8) - (len(data) % 8 == 1) for data in ragged()]
    logged = [logs for _, logs in side_by_side(training, ragged())]
    assert [logs.get("steps", 0.0) for logs in logged] == [(n + 1) / 2 if n else 0.0 for n in steps]


@pytest.mark.parametrize(
    "local", [{"gradient_clip_norm": 0.05}, {"precision": "bf16"}, {"batch_size": 1, "epochs": 0.2}, {"epochs": 2.0}]
)
def test_whatever_local_training_asks_for(local: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Net()
    module.net[1] = nn.Identity()  # BatchNorm cannot train on single samples
    options: dict[str, Any] = {"batch_size": 8, "branches": 3, **local}
    assert_same(module, LocalTraining(**options), ragged(), rounds=2)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_schedulers(interval: str) -> None:
    torch.manual_seed(0)
    assert_same(Net(configure=by(interval)), LocalTraining(epochs=3.5, batch_size=8, branches=4), ragged(), rounds=2)


def test_the_packages_networks() -> None:
    torch.manual_seed(0)
    assert_same(MLP(sizes=(6, 16, 3)), LocalTraining(batch_size=8, branches=3), ragged())
    images = [samples(n, (3, 8, 8), seed=n) for n in (40, 41, 40)]
    assert_same(CNN(image_size=8, channels=[4, 6], hidden=8), LocalTraining(batch_size=8, branches=2), images)


def test_augmentation_draws_as_before() -> None:
    def noisy(inputs: Tensor, draws: torch.Generator) -> Tensor:
        return inputs + torch.randn(inputs.shape, generator=draws)

    torch.manual_seed(0)
    assert_same(Net(), LocalTraining(batch_size=8, branches=3), ragged(augment=noisy))


def test_a_copy_makes_its_own_recordings() -> None:
    torch.manual_seed(0)
    local = LocalTraining(batch_size=8, branches=3)
    training = assert_same(Net(), local, ragged())
    twin = copy.deepcopy(training)
    assert twin.module is not training.module
    assert not twin.steps.recordings
    assert not twin.states
    for (a, _), (b, _) in zip(in_turn(training.module, local, ragged()), side_by_side(twin, ragged()), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- what cannot be trained so ---------------------------------------------------------------------------------------


class Draws(TensorSamples):
    """Draws from a global generator as it is read."""

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices)
        return inputs + torch.randn(inputs.shape), targets


@pytest.mark.parametrize(
    ("module", "data", "epochs", "reason"),
    [
        (lambda: Net(nn.Dropout(0.5)), TensorSamples, 1.0, "its step draws random numbers"),
        (lambda: Net(nn.Dropout(0.5)), TensorSamples, 0.1, "draw from the global random generators"),  # never recorded
        (Net, Draws, 1.0, "draw from the global random generators"),
        (lambda: Net(configure=lambda m: torch.optim.Adam(m.parameters())), TensorSamples, 1.0, "its optimizer is Adam"),
        (lambda: Net(configure=lambda m: 1 / 0), TensorSamples, 1.0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_reason_and_the_module_as_it_was(module: Any, data: type[TensorSamples], epochs: float, reason: str) -> None:
    made = module()
    before = [tensor.clone() for _, tensor in named_state(made)]
    training = BranchedTraining(made, LocalTraining(epochs=epochs, batch_size=8, branches=3))
    clients = [(data(d.inputs, d.targets), rng(i)) for i, d in enumerate(ragged())]
    with pytest.raises(NotTogetherError, match=rf"^Net cannot be trained side by side: .*{reason}"):
        list(training.train(clients, []))
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, named_state(made), strict=True))


@pytest.mark.parametrize(("branches", "executor"), [(-1, "graph"), (2, "sequential"), (2, "stacked")])
def test_branches_that_do_not_go_with_the_executor_are_refused(branches: int, executor: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"model\.local\.branches must be at least 0, .* got {branches} with {executor}"
    ):
        LocalTraining(branches=branches, executor=executor)


# ---- in a federation -------------------------------------------------------------------------------------------------


def run(
    executor: Any, branches: int = 1, rounds: int = 3, devices: int = 1, dropout: float = 0.0, **kwargs: Any
) -> tuple[bytes, Federation]:
    torch.manual_seed(0)
    local = LocalTraining(epochs=1.5, batch_size=8, executor=executor, branches=branches)
    federation = tiny_federation(client=TinyClient(dropout=dropout), local=local, **kwargs)
    fit(federation, rounds=rounds, devices=devices)
    return federation.parameters_layout.flatten(federation.client).numpy().tobytes(), federation


def test_a_run_ends_with_the_same_bits() -> None:
    expected, _ = run("sequential")
    found, federation = run("graph", branches=3)
    assert federation.clients.way == "graph, 3 side by side"
    assert found == expected


@pytest.mark.parametrize(("attack", "malicious"), [(Relabel(), True), (Shrink(), False)])
def test_malicious_clients_stand_beside_others_unless_their_steps_are_followed(
    attack: Attack, malicious: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, together = BranchedTraining.train, []

    def train(self: BranchedTraining, clients: Any, buffers: list[str]) -> Any:
        together.append(len(clients))
        return real(self, clients, buffers)

    monkeypatch.setattr(BranchedTraining, "train", train)
    expected, federation = run("sequential", attacks=[attack], rounds=4)
    found, _ = run("graph", branches=3, attacks=[attack], rounds=4)
    assert found == expected
    cohorts = [federation.cohort.draw(0, t, federation.data.sizes).malicious for t in range(1, 4)]  # the first is tried
    assert any(cohort.any() for cohort in cohorts)
    assert together == [len(cohort) if malicious else int((~cohort).sum()) for cohort in cohorts]


def bits_on_ranks(branches: int) -> tuple[bytes, str]:
    bits, federation = run("graph", branches=branches, devices=dist.get_world_size())
    return bits, federation.clients.way


def test_the_same_bits_on_any_ranks() -> None:
    expected, _ = run("sequential")
    assert on_ranks(3, bits_on_ranks, 2) == [(expected, "graph, 2 side by side")] * 3


def test_what_fails_goes_on_one_after_the_other_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    expected, _ = run("sequential", dropout=0.5)
    with caplog.at_level(logging.WARNING, logger="fl_lightning"):
        found, federation = run("graph", branches=3, dropout=0.5)
    assert found == expected
    assert federation.clients.way == "graph"
    (line,) = [record.message for record in caplog.records if "side by side" in record.message]
    assert line.startswith("in round 1 clients are trained one after the other: TinyClient cannot be trained side by side: ")


def test_a_rule_that_trains_clients_in_its_own_way_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fl_lightning"):
        _, federation = run("graph", branches=3, rounds=1, aggregator=FLIP(), attacks=[])
    assert "clients are not trained together, as FLIP trains them in its own way" in caplog.text
    assert federation.clients.branched is None


@pytest.mark.parametrize(
    ("local", "many"),
    [
        ({"executor": "graph", "branches": 3}, r"\(branches \+ 2\) \* client: 5"),
        ({"executor": "graph", "branches": 100}, r"\(branches \+ 2\) \* client: 9"),
        ({"branches": 3}, ""),  # which auto cannot do, as the client does not say that it is recordable
        ({"executor": "stacked"}, r"branches \* client: 7"),
    ],
)
def test_the_memory_of_clients_trained_together_is_reckoned_with(
    local: dict[str, Any], many: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "available_bytes", lambda *_: 1000)
    with pytest.raises(ConfigurationError) as told:
        fit(tiny_federation(local=LocalTraining(**local)), tiny_data(), rounds=1)
    assert ("clients together" in str(told.value)) == bool(many)
    assert re.search(many, str(told.value))
