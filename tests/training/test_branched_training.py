"""Clients side by side: the same bits as one after the other; a reason for whatever cannot be trained so."""

import copy
import logging
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cuda_graphs import Graph, act_out
from ranks import on_ranks
from tiny import Relabel, Shrink, TinyClient, fit, tiny_data, tiny_federation
from torch import Tensor, nn
from torch.optim import SGD

from fl_lightning import Federation, LocalTraining, resources
from fl_lightning.aggregators import FLIP
from fl_lightning.attacks import Attack
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import CNN, MLP, Classifier
from fl_lightning.training import recorded_steps
from fl_lightning.training.branched_training import BranchedTraining
from fl_lightning.training.flat_state import look
from fl_lightning.training.local_training import NotTogetherError
from fl_lightning.updates.layout import Snapshot, buffer_layout, named_state, parameter_layout

RAGGED = (40, 8, 43, 0, 40, 24, 17)

Result = tuple[list[Tensor], dict[str, float]]


class Net(Classifier):
    """BatchNorm, a buffer that is replaced, a frozen parameter, logs; whatever a test is about is put in by keyword."""

    def __init__(self, *layers: nn.Module, configure: Any = None) -> None:
        super().__init__(optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), *layers, nn.Linear(16, 3))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("average", torch.zeros(()))
        self.configure = configure

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs * self.frozen)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        self.average = 0.5 * self.average + loss.detach()
        return loss

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers() if self.configure is None else self.configure(self)


def by(interval: str) -> Any:
    def configure(module: Net) -> Any:
        optimizer = SGD(module.parameters(), lr=0.2, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    return configure


def samples(n: int, shape: tuple[int, ...] = (6,), seed: int = 0, **kwargs: Any) -> TensorSamples:
    draws = torch.Generator().manual_seed(seed)
    return TensorSamples(torch.randn(n, *shape, generator=draws), torch.randint(3, (n,), generator=draws), **kwargs)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sent(module: Any) -> list[Tensor]:
    """What a client sends: weights and floating-point buffers."""
    return [tensor.clone() for layout in (parameter_layout, buffer_layout) for tensor in layout(module).tensors(module)]


def in_turn(module: Any, local: LocalTraining, clients: list[TensorSamples]) -> list[Result]:
    start, found = Snapshot(module), []
    for i, data in enumerate(clients):
        logs = local.train(module, data, rng(i))
        found.append((sent(module), logs))
        start.restore(module)
    return found


def side_by_side(training: BranchedTraining, clients: list[TensorSamples]) -> list[Result]:
    module, found = training.module, {}
    before = [tensor.clone() for _, tensor in named_state(module)]
    given = [(data, rng(i)) for i, data in enumerate(clients)]
    for i, logs, held in training.train(given, buffer_layout(module).names):
        found[i] = [tensor.clone() for tensor in (*held.weights, *held.buffers)], logs
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, named_state(module), strict=True)), "the module was trained"
    return [(tensors, logs()) for tensors, logs in (found[i] for i in range(len(clients)))]


def assert_same(module: Any, local: LocalTraining, clients: list[TensorSamples], rounds: int = 1) -> BranchedTraining:
    training, expected = BranchedTraining(copy.deepcopy(module), local), in_turn(module, local, clients)
    for _ in range(rounds):
        for (a, of_a), (b, of_b) in zip(expected, side_by_side(training, clients), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            assert of_a == of_b
    return training


def ragged(**kwargs: Any) -> list[TensorSamples]:
    return [samples(n, seed=i, **kwargs) for i, n in enumerate(RAGGED)]


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


# ---- CUDA graphs, acted out on a CPU ---------------------------------------------------------------------------------


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    return act_out(monkeypatch)


def test_a_cuda_graph_holds_a_branch_for_each_client(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    assert_same(Net(), LocalTraining(epochs=2.0, batch_size=8, branches=3), ragged(), rounds=4)
    assert max(len(graph.calls) for graph in graphs) == 3
    for graph in graphs:
        count = len(graph.calls)
        assert len(set(graph.streams)) == count
        assert len({places[0].data_ptr() for _, places, _ in graph.calls}) == count, "clients share weights"
        if count > 1:  # all branch off from the stream of the capture, which waits for all of them in the end
            assert graph.forked
            assert graph.joined == graph.streams


def test_clients_that_are_alone_in_a_kind_of_step_share_its_cuda_graph(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    training = assert_same(Net(), LocalTraining(epochs=2.0, batch_size=8, branches=3), ragged(), rounds=5)
    alone = [graph for graph in graphs if len(graph.calls) == 1]
    assert len(alone) > 1
    for graph in alone:
        ((_, tensors, _),) = graph.calls
        assert tensors[0] is training.alone[0]
    kinds = [tuple(look(tensor) for tensor in graph.calls[0][1]) for graph in alone]
    assert len(set(kinds)) == len(kinds), "a kind was recorded twice"


CHANGING = (56, 35, 56, 11, 35, 56, 35)
"""Batches of eight: the three of 35 end with a batch of three, while those of 56 in the seats before theirs go on."""


def test_a_cuda_graph_of_several_clients_is_one_of_the_first_seats(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moved = BranchedTraining._to_the_front, []

    def to_the_front(self: BranchedTraining, seats: Any, places: list[int]) -> list[int]:
        moved.append(places != list(range(len(places))))
        return real(self, seats, places)

    monkeypatch.setattr(BranchedTraining, "_to_the_front", to_the_front)
    torch.manual_seed(0)
    clients = [samples(n, seed=i) for i, n in enumerate(CHANGING)]
    training = assert_same(Net(), LocalTraining(batch_size=8, branches=5), clients, rounds=4)
    assert any(moved)
    several = [graph for graph in graphs if len(graph.calls) > 1]
    for graph in several:
        assert all(tensors[0] is training.states[b][0] for b, (_, tensors, _) in enumerate(graph.calls))
    kinds = [(len(graph.calls), tuple(look(tensor) for tensor in graph.calls[0][1])) for graph in several]
    assert len(set(kinds)) == len(kinds), "a kind was recorded twice"


def test_those_who_change_seats_keep_their_learning_rates(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    clients = [samples(n, seed=i) for i, n in enumerate(CHANGING)]
    assert_same(Net(configure=by("step")), LocalTraining(batch_size=8, branches=5), clients, rounds=4)
    assert graphs


def test_one_client_is_a_cuda_graph_without_branches(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    module, local = Net(), LocalTraining(epochs=2.0, batch_size=8)
    expected = in_turn(module, local, ragged())
    stepper, start = recorded_steps.RecordedSteps(module, local), Snapshot(module)
    for i, data in enumerate(ragged()):
        logs = local.train(module, data, rng(i), stepper=stepper)
        assert all(torch.equal(x, y) for x, y in zip(expected[i][0], sent(module), strict=True))
        assert logs == expected[i][1]
        start.restore(module)
    assert graphs
    assert {len(graph.calls) for graph in graphs} == {1}
    assert parameter_layout(module).num_coordinates > 0


def test_a_buffer_that_comes_later_finds_room() -> None:
    torch.manual_seed(0)
    module: Any = MLP(sizes=(6, 16, 3))
    local, clients = LocalTraining(batch_size=8, branches=3), ragged()
    training = BranchedTraining(module, local)
    side_by_side(training, clients)
    module.register_buffer("late", torch.ones(5))
    for (a, _), (b, _) in zip(in_turn(module, local, clients), side_by_side(training, clients), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_branches_of_a_cuda_graph_give_the_same_bits() -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.manual_seed(0)
    module = CNN(image_size=8, channels=[4, 6], hidden=8).cuda()
    images = [samples(n, (3, 8, 8), seed=i).to(torch.device("cuda")) for i, n in enumerate((*CHANGING, 41, 24))]
    training = assert_same(module, LocalTraining(batch_size=8, branches=5), images, rounds=4)
    assert training.steps.recordings
