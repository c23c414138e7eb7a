"""What is not recorded, and why: steps, modules and batches that a recording would get wrong."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchmetrics
from recorded_clients import CLIENTS, Net, assert_same, samples, trained
from torch import Tensor
from torch.optim import SGD, Adam

from fl_lightning.data import TensorSamples
from fl_lightning.models import LSTM, MLP
from fl_lightning.modules.traced_graphs import NotRecordableError
from fl_lightning.training import recordings
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recorded_steps import RecordedSteps


class Reads(MLP):
    """Its batches are of another kind."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1]), batch_idx)


class DrawsFrom(MLP):
    """Draws by an operation whose name Python cannot read: `random_.from`."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * torch.empty(()).random_(1, 3)


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
        (lambda: DrawsFrom(sizes=(6, 3)), "cannot be traced"),
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
