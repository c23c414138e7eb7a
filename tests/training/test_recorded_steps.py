"""Recorded steps: the same bits as plain ones, for whatever can be recorded; a reason for whatever cannot."""

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import SGD, Adam

from fl_lightning.data import TensorSamples
from fl_lightning.models import CNN, LSTM, MLP, Classifier, ResNet18
from fl_lightning.training import recorded_steps, recordings
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recorded_steps import RecordedSteps
from fl_lightning.training.recordings import RECORD_AFTER, NotRecordableError, ScriptRecording
from fl_lightning.training.traced_graphs import factors_to_inputs, remove_detours, results_to_places, without_python
from fl_lightning.updates.layout import Snapshot, named_state


class Net(Classifier):
    """Anything that may stand in a step: BatchNorm, dropout, a frozen and an unused parameter, logs."""

    def __init__(self, configure: Any = None, **tweaks: Any) -> None:
        super().__init__(optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.configure, self.tweaks = configure, tweaks
        self.also: list[Any] = []
        self.body = self.net[0]  # a part that goes by two names
        self.register_buffer("average", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs * self.frozen)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        self.log("twice", loss * 2)
        self.log("twice", loss * 4)
        for part in self.also:
            part(self, batch_idx)
        if self.tweaks.get("read_back") and loss.item() > 100:
            return loss * 2
        if self.tweaks.get("skip"):
            return None
        self.average = 0.5 * self.average + loss.detach()  # in place of the one that was there
        return {"loss": loss} if self.tweaks.get("dict") else loss

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers() if self.configure is None else self.configure(self)


def samples(n: int, shape: tuple[int, ...] = (6,), seed: int = 0) -> TensorSamples:
    draws = torch.Generator().manual_seed(seed)
    return TensorSamples(torch.randn(n, *shape, generator=draws), torch.randint(3, (n,), generator=draws))


def trained(
    module: L.LightningModule, local: LocalTraining, clients: list[TensorSamples], stepper: RecordedSteps | None, **how: Any
) -> list[tuple[list[Tensor], dict[str, float]]]:
    """Everything that each client ends with, all from the same start."""
    start, found = Snapshot(module), []
    for i, data in enumerate(clients):
        torch.manual_seed(i)
        logs = local.train(module, data, torch.Generator().manual_seed(i), stepper=stepper, **how)
        found.append(([tensor.clone() for _, tensor in named_state(module)], logs))
        start.restore(module)
    return found


def assert_same(module: L.LightningModule, local: LocalTraining, clients: list[TensorSamples], **how: Any) -> RecordedSteps:
    stepper, own = RecordedSteps(module, local), list(module.parameters())
    expected = trained(module, local, clients, None, **how)
    found = trained(module, local, clients, stepper, **how)
    for (a, of_a), (b, of_b) in zip(expected, found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert of_a == of_b
    assert all(parameter is before for parameter, before in zip(module.parameters(), own, strict=True))
    return stepper


CLIENTS = [samples(n, seed=n) for n in (40, 41, 8, 3, 40, 33)]

OPTIMIZERS = {
    "plain": lambda m: SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9),
    "nesterov, decay": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "foreach": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.5, foreach=True),
    "groups": lambda m: SGD(
        [{"params": m.net[0].parameters(), "lr": 0.01}, {"params": [*m.net[4].parameters(), m.unused], "momentum": 0.0}],
        lr=0.1,
        momentum=0.9,
    ),
    "scheduler": lambda m: (
        [optimizer := SGD(m.parameters(), lr=0.1, momentum=0.9)],
        [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}],
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_bits_and_logs(name: str) -> None:
    torch.manual_seed(0)
    stepper = assert_same(Net(OPTIMIZERS[name]), LocalTraining(epochs=2.5, batch_size=8), CLIENTS)
    assert stepper.recordings


@pytest.mark.parametrize("local", [{"gradient_clip_norm": 0.05}, {"precision": "bf16"}, {"batch_size": 1, "epochs": 0.2}])
def test_whatever_local_training_asks_for(local: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Net() if local.get("batch_size") != 1 else MLP(sizes=(6, 5, 3))
    settings: dict[str, Any] = {"batch_size": 8, "epochs": 2.0, **local}
    assert_same(module, LocalTraining(**settings), CLIENTS)


def test_steps_of_other_kinds() -> None:
    assert_same(Net(dict=True), LocalTraining(batch_size=8), CLIENTS)
    assert_same(Net(), LocalTraining(batch_size=8), CLIENTS, steps=7)


def test_what_was_logged_may_be_changed_afterwards() -> None:
    module: Any = Net()
    module.net[3] = nn.Identity()  # steps that draw nothing are taken together, before anyone sees what they logged
    module.register_buffer("steps", torch.zeros(()))
    module.also.append(lambda m, _: m.log("steps", m.steps.add_(1.0)))
    stepper = assert_same(module, LocalTraining(batch_size=8), CLIENTS)
    assert stepper.recordings
    (_, logs), *_ = trained(module, LocalTraining(batch_size=8), CLIENTS, stepper)
    assert logs["steps"] == 3.0  # of 1, 2, ..., 5


def test_what_happens_between_steps_counts() -> None:
    module: Any = Net()

    def pull(step: int, steps: int) -> None:
        with torch.no_grad():
            module.net[0].weight.mul_(0.5 + step / steps)

    assert_same(module, LocalTraining(batch_size=8), CLIENTS, after_step=pull)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: CNN(image_size=8, channels=[4, 6], hidden=8), (3, 8, 8)),
        (lambda: CNN(image_size=8, channels=[4], hidden=8, channels_last=True), (3, 8, 8)),
        (lambda: ResNet18(stem="cifar", num_classes=3), (3, 8, 8)),
        (lambda: ResNet18(stem="cifar", num_classes=3, norm="group"), (3, 8, 8)),
    ],
    ids=["CNN", "channels last", "ResNet", "group norm"],
)
def test_the_packages_networks(module: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    stepper = assert_same(module(), LocalTraining(batch_size=2), [samples(2 * RECORD_AFTER + 5, shape)])
    assert stepper.recordings
    replayed: Any = next(iter(stepper.recordings.values()))
    assert isinstance(replayed.run, torch.jit.ScriptFunction), "replayed in Python"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each replay takes of a client."""
    found: list[int] = []
    real = ScriptRecording.replay

    def replay(self: Any, states: Any, batches: list[list[list[Tensor]]], logs: Any) -> None:
        found.append(len(batches[0]))
        real(self, states, batches, logs)

    monkeypatch.setattr(ScriptRecording, "replay", replay)
    return found


def without_dropout() -> Net:
    torch.manual_seed(0)
    module = Net()
    module.net[3] = nn.Identity()
    return module


def test_steps_that_draw_nothing_are_taken_together(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    data = [samples(n, seed=n) for n in (40, 40, 43, 48)]
    assert_same(without_dropout(), LocalTraining(batch_size=8), data)
    assert calls == [1, 1, 5, 5, 6]  # the first 3 of all are unrecorded, as is a rest of 3; recording replays its own batch
    calls.clear()
    monkeypatch.setattr(recorded_steps, "WAITING_BYTES", 2 * 8 * (6 * 4 + 8))
    assert_same(without_dropout(), LocalTraining(batch_size=8), data)
    assert max(calls) == 2
    calls.clear()
    assert_same(Net(), LocalTraining(batch_size=8), data)
    assert max(calls) == 1  # dropout, and samples that draw as they are read, share a generator


def test_steps_do_not_wait_beyond_what_looks_at_weights(calls: list[int]) -> None:
    module, seen = without_dropout(), []

    def look(step: int, steps: int) -> None:
        seen.append(module.average.item())

    assert_same(module, LocalTraining(batch_size=8), [samples(40, seed=1)] * 3, after_step=look)
    assert set(calls) == {1}
    assert seen[:15] == seen[15:]


def test_what_a_failed_client_left_waiting_is_forgotten() -> None:
    class Fails(TensorSamples):
        def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
            if len(indices) < 8:
                raise OSError("gone")
            return super().batch(indices, generator)

    module, local = without_dropout(), LocalTraining(batch_size=8)
    stepper, start, data = RecordedSteps(module, local), Snapshot(module), samples(40, seed=1)
    expected = trained(module, local, [data], None)
    trained(module, local, [data], stepper)
    with pytest.raises(OSError, match="gone"):
        trained(module, local, [Fails(torch.zeros(20, 6), torch.zeros(20).long())], stepper)
    start.restore(module)
    found = trained(module, local, [data], stepper)
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], expected[0][0], strict=True))


def test_rare_shapes_are_not_recorded() -> None:
    stepper = assert_same(Net(), LocalTraining(batch_size=8), [samples(n) for n in (24, 24, 13, 14, 15)])
    assert len(stepper.recordings) == 1
    assert len(stepper.recordings.seen) == 4  # full batches, and remainders of 5, 6 and 7


def test_a_replaced_buffer_is_found_again() -> None:
    torch.manual_seed(0)
    module, local = Net(), LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    trained(module, local, CLIENTS, stepper)
    module.net[1].running_mean = torch.full((16,), 0.5)
    expected = trained(module, local, CLIENTS, None)
    for (a, _), (b, _) in zip(expected, trained(module, local, CLIENTS, stepper), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Reads(MLP):
    """Its batches are of another kind."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1]), batch_idx)


class WithName(TensorSamples):
    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
        return (*super().batch(indices, generator), "a name")


class Counts(MLP):
    def __init__(self) -> None:
        super().__init__(sizes=(6, 3))
        self.metric = torchmetrics.MeanMetric()


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: Net(lambda m: Adam(m.parameters())), "its optimizer is Adam"),
        (lambda: Net(lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.5)), "dampening"),
        (lambda: Net(lambda m: SGD(m.parameters(), lr=torch.tensor(0.1))), "learning rate is a tensor"),
        (lambda: Net(read_back=True), "cannot be traced"),
        (lambda: Net(skip=True), "skipped a batch"),
        (Counts, "torchmetrics"),
    ],
)
def test_what_cannot_be_recorded_is_refused_with_a_reason(module: Any, reason: str) -> None:
    made, local = module(), LocalTraining(batch_size=8)
    with pytest.raises(NotRecordableError, match=reason):
        trained(made, local, CLIENTS, RecordedSteps(made, local))


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (lambda module, batch_idx: batch_idx == 0, "looks at batch_idx"),
        (lambda module, batch_idx: f"{batch_idx}", "looks at batch_idx"),
        (lambda module, batch_idx: batch_idx % 2 + 1, "looks at batch_idx"),
        (lambda module, batch_idx: module.current_epoch, "looks at the Trainer"),
        (lambda module, batch_idx: module.trainer.global_step, "looks at the Trainer"),
        (lambda module, batch_idx: module.log("constant", 3.0), "logs numbers that are no tensors"),
    ],
)
def test_what_changes_from_step_to_step_is_refused(look: Any, reason: str) -> None:
    module, local = Net(), LocalTraining(batch_size=8)
    module.also.append(look)
    with pytest.raises(NotRecordableError, match=reason):
        trained(module, local, CLIENTS, RecordedSteps(module, local))


def test_hooks_are_refused() -> None:
    local = LocalTraining(batch_size=8)
    module: Any = Net()
    module.net[0].weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.raises(NotRecordableError, match="its parameters have hooks"):
        trained(module, local, CLIENTS, RecordedSteps(module, local))

    def configure(module: Any) -> SGD:
        optimizer = SGD(module.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer

    module = Net(configure)
    with pytest.raises(NotRecordableError, match="its optimizer has hooks"):
        trained(module, local, CLIENTS, RecordedSteps(module, local))


def test_an_attribute_that_changed_ends_a_recording() -> None:
    torch.manual_seed(0)
    module: Any = Net()
    module.factor = 1.0
    module.also.append(lambda module, _: module.log("factor", torch.tensor(module.factor)))
    local = LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    trained(module, local, CLIENTS, stepper)
    module.factor = 2.0
    assert [logs["factor"] for _, logs in trained(module, local, CLIENTS, stepper)] == [2.0] * len(CLIENTS)


def test_an_optimizer_of_other_parameters_ends_a_recording() -> None:
    torch.manual_seed(0)
    module: Any = Net(lambda m: SGD(m.net[m.which].parameters(), lr=0.1))
    module.which = 0
    local = LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    for which in (0, 4, 0):
        module.which = which
        expected = trained(module, local, CLIENTS, None)
        for (a, _), (b, _) in zip(expected, trained(module, local, CLIENTS, stepper), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_parameters_that_are_replaced_as_a_client_begins() -> None:
    class Renews(MLP):
        def configure_optimizers(self) -> Any:
            last: Any = self.layers[2]
            last.weight = nn.Parameter(last.weight.detach() * 0.5)
            return super().configure_optimizers()

    torch.manual_seed(0)
    module, local = Renews(sizes=(6, 6, 3)), LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    for data in CLIENTS:
        start = Snapshot(module)
        expected = [p.detach().clone() for p in (local.train(module, data, torch.Generator()), *module.parameters())[1:]]
        start.restore(module)
        local.train(module, data, torch.Generator(), stepper=stepper)
        stepper.known = True  # which is not so
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected, strict=True))


def test_tied_weights() -> None:
    class Tied(MLP):
        def __init__(self) -> None:
            super().__init__(sizes=(6, 6, 6))
            self.layers[2].weight = self.layers[0].weight  # type: ignore[assignment]

    torch.manual_seed(0)
    assert_same(Tied(), LocalTraining(batch_size=8), CLIENTS)


def test_weights_that_are_replaced_between_steps() -> None:
    module: Any = Net()

    def replace(step: int, steps: int) -> None:
        module.net[0].weight.data = module.net[0].weight.data * 0.5

    assert_same(module, LocalTraining(batch_size=8), CLIENTS, after_step=replace)


def test_an_attribute_that_changes_between_steps() -> None:
    module: Any = Net()
    module.factor = 1.0
    module.also.append(lambda module, _: module.log("factor", torch.tensor(module.factor)))

    def change(step: int, steps: int) -> None:
        module.factor = float(step) if step < steps else 1.0

    assert_same(module, LocalTraining(batch_size=8), CLIENTS, after_step=change)


def test_what_is_trained_must_not_change_between_steps() -> None:
    module, local = Net(), LocalTraining(batch_size=8)
    with pytest.raises(NotRecordableError, match="what it trains changes between its steps"):
        trained(module, local, CLIENTS, RecordedSteps(module, local), after_step=lambda *_: module.unused.requires_grad_(False))


def test_parameters_of_two_types_are_refused() -> None:
    module, local = Net(), LocalTraining(batch_size=8)
    module.unused.data = module.unused.data.double()
    with pytest.raises(NotRecordableError, match="of several types"):
        trained(module, local, CLIENTS, RecordedSteps(module, local))


def test_where_there_are_many_recordings_further_kinds_go_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST_RECORDINGS", 1)
    torch.manual_seed(0)
    made = []
    real = recordings.traced
    monkeypatch.setattr(recordings, "traced", lambda *arguments: made.append(arguments) or real(*arguments))
    assert len(assert_same(Net(), LocalTraining(batch_size=8), [samples(52)] * 8).recordings) == 1
    assert len(made) == 1, "none is made twice"


def test_a_recording_that_has_not_been_used_for_long_gives_its_place_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learning rate of each round's own makes new kinds of steps for ever."""
    monkeypatch.setattr(recordings, "MOST_RECORDINGS", 2)
    monkeypatch.setattr(recordings, "STALE_AFTER", 30)
    torch.manual_seed(0)
    local, kinds = LocalTraining(batch_size=8), []
    module: Any = Net()
    stepper = RecordedSteps(module, local)
    for t in range(12):
        module.configure = lambda module, lr=0.1 * 0.9**t: SGD(module.parameters(), lr=lr, momentum=0.9)
        ((expected, _),) = trained(module, local, [samples(80)], None)
        ((found, _),) = trained(module, local, [samples(80)], stepper)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        kinds.append(set(stepper.recordings))
        assert len(kinds[-1]) <= 2
    assert len(set().union(*kinds)) > 4


def test_what_lies_in_the_memory_of_another_is_not_kept_twice() -> None:
    vector, other = torch.zeros(8), torch.zeros(3)
    kept = recordings.apart([vector, vector[:2], other, vector[6:].view(2, 1), vector[2:4]])
    assert [tensor.data_ptr() for tensor in kept] == [vector.data_ptr(), other.data_ptr()]
    halves = recordings.apart([vector[:4], vector[4:], vector])
    assert len(halves) == 3, "neither half covers the whole"


def test_a_thrifty_recording_waits_until_it_is_worth_its_price(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    class Dear:
        after, fixed, patient = 3, False, True

        def __init__(self, *_: Any) -> None:
            now[0] += 5.0

    monkeypatch.setattr(recordings, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(recordings, "kind_for", lambda _: Dear)

    def steps_before_a_recording(key: str, seconds: float) -> int:
        count = 0
        while made.find(key, lambda: None, [[torch.zeros(1)]], [[]]) is None:
            count += 1
            with made.without(key):
                now[0] += seconds
        return count

    made = recordings.Recordings()
    assert steps_before_a_recording("first", 1.0) == 3
    made.thrifty = True
    assert steps_before_a_recording("second", 0.5) == 10
    assert steps_before_a_recording("third", 100.0) == 3


def test_batches_that_are_not_tensors_are_refused() -> None:
    module, local = Reads(sizes=(6, 3)), LocalTraining(batch_size=8)
    data = WithName(torch.randn(20, 6), torch.randint(3, (20,)))
    with pytest.raises(NotRecordableError, match=r"hold \['Tensor', 'str'\], not tensors alone"):
        trained(module, local, [data], RecordedSteps(module, local))


def test_an_lstm_is_refused() -> None:
    module = LSTM(dimension=4, hidden=5, optimizer=lambda parameters: SGD(parameters, lr=0.1))
    data, local = samples(30, (7, 5)).relabel(torch.zeros(30).long()), LocalTraining(batch_size=4)
    with pytest.raises(NotRecordableError, match="cannot be"):
        trained(module, local, [data], RecordedSteps(module, local))


def test_a_graph_that_torchscript_does_not_know_is_replayed_as_it_is() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            torch._foreach_add_([x], 1.0)  # TorchScript does not see that this writes into x
            return [x]

    x = torch.ones(2)
    graph = make_fx(Unknown())(x.clone())
    steps = without_python(graph, [], [x])
    assert torch.equal(x, torch.ones(2)), "the example is not written into"
    assert not isinstance(steps, torch.jit.ScriptFunction)
    steps([], [[x], [x]])
    assert torch.equal(x, torch.full((2,), 3.0))


def test_constants_of_a_step() -> None:
    class Weighted(MLP):
        weight: Any

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (self.weight * 0.3)

    module = Weighted(sizes=(6, 5, 3))
    module.__dict__["weight"] = torch.tensor(1.7)  # neither parameter nor buffer
    assert assert_same(module, LocalTraining(batch_size=8), CLIENTS).recordings


def test_results_are_written_to_their_places() -> None:
    def function(*tensors: Tensor) -> list[Tensor]:
        product, total, read_before, used_twice, wide, spread, x = tensors
        read = read_before * 2
        shared = x @ x
        product.copy_(x.t() @ x)
        total.copy_(x.sum([0], keepdim=True).view(3))
        read_before.copy_(x @ x.t())
        used_twice.copy_(shared)
        wide.copy_(x @ x)
        spread.copy_(x @ x)
        return [read, shared, product * total]

    x = torch.randn(3, 3)
    places = [torch.randn(shape) for shape in ((3, 3), (3,), (3, 3), (3, 3))] + [
        torch.randn(3, 3).double(),
        torch.randn(2, 3, 3),
    ]
    graph = make_fx(function)(*(place.clone() for place in places), x)
    results_to_places(graph)
    assert graph.code.count("aten.copy_.") == 4  # what is read before, needed elsewhere, of another type or shape
    assert graph.code.count("aten.mm.out") == graph.code.count("aten.sum.IntList_out") == 1
    first, second = ([place.clone() for place in places] for _ in range(2))
    expected, found = function(*first, x), graph(*second, x)
    assert all(torch.equal(a, b) for a, b in zip((*first, *expected), (*second, *found), strict=True))


def test_a_place_that_is_written_twice_holds_what_came_last() -> None:
    def function(place: Tensor, x: Tensor) -> list[Tensor]:
        place.copy_(x @ x)
        place.copy_(x.t() @ x, non_blocking=True)
        return [x]

    x = torch.randn(3, 3)
    graph, place = make_fx(function)(torch.zeros(3, 3), x), torch.zeros(3, 3)
    results_to_places(graph)
    graph(place, x)
    assert torch.equal(place, x.t() @ x)


def test_two_steps_are_tried_on_tensors_that_share_memory_as_the_state_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that reads weights as they were before its first step must be found out."""

    def function(vector: Tensor, part: Tensor, x: Tensor) -> list[Tensor]:
        out = part * x
        vector.add_(1.0)
        return [out]

    def unlike(state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        outputs = [[state[1] * x] for (x,) in batches]
        state[0].add_(float(len(batches)))
        return outputs

    vector, x = torch.zeros(4), torch.ones(2)
    state = [vector, vector[:2]]
    graph = make_fx(function)(*state, x)
    monkeypatch.setattr(torch.jit, "CompilationUnit", lambda _: SimpleNamespace(steps=unlike))
    vector.zero_()
    assert without_python(graph, state, [x]) is not unlike


def test_an_attribute_that_changes_as_a_client_begins() -> None:
    class Fades(MLP):
        factor = 1.0
        clients = 0

        def configure_optimizers(self) -> Any:
            self.clients += 1
            self.factor = 0.5 if self.clients > 4 else 1.0
            return super().configure_optimizers()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * self.factor

    def all_of(stepper_for: Any) -> list[Tensor]:
        torch.manual_seed(0)
        module, found = Fades(sizes=(6, 6, 3)), []
        stepper, start = stepper_for(module), Snapshot(module)
        for _ in range(6):
            local.train(module, samples(40), torch.Generator().manual_seed(0), stepper=stepper)
            found += [p.detach().clone() for p in module.parameters()]
            start.restore(module)
            if stepper is not None:
                stepper.known = True
        return found

    local = LocalTraining(batch_size=8)
    expected = all_of(lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(all_of(lambda module: RecordedSteps(module, local)), expected, strict=True))
    assert not torch.equal(expected[0], expected[-4])


def test_gradients_are_written_where_sgd_reads_them() -> None:
    stepper = assert_same(MLP(sizes=(6, 5, 3)), LocalTraining(batch_size=8), [samples(40)] * 2)
    recording: Any = next(iter(stepper.recordings.values()))
    assert len(stepper.recordings) == 1
    assert "copy_" not in recording.graph.code
    assert recording.graph.code.count("aten.add_.") == 2  # momentum and weights, whatever the number of layers


def test_detours_and_numbers_leave_a_recording() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        x.mul_(0.9).add_(y.t().t().t() * 0.1).mul_(0.9)
        return [x.detach().double() * 0.9, x * 2]

    x, y = torch.randn(3, 3), torch.randn(3, 3)
    graph = make_fx(function)(x.clone(), y)
    remove_detours(graph)
    factors = factors_to_inputs(graph, 1)
    assert [factor.item() for factor in factors] == pytest.approx([0.9, 0.1, 0.9])
    assert graph.code.count("aten.t.") == 1
    assert "detach" not in graph.code
    assert "0.9" in graph.code  # a double's, which would be another number as float32
    first, second = x.clone(), x.clone()
    expected, found = function(first, y), graph(second, *factors, y)
    assert all(torch.equal(a, b) for a, b in zip((first, *expected), (second, *found), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
def test_cuda_graphs_give_the_same_bits(channels_last: bool) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.manual_seed(0)
    module = CNN(image_size=8, channels=[4, 6], hidden=8, channels_last=channels_last).cuda()
    data = [samples(n, (3, 8, 8)).to(torch.device("cuda")) for n in (40, 41, 40)]
    assert assert_same(module, LocalTraining(batch_size=8), data).recordings
