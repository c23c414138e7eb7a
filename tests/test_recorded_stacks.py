"""Recorded steps of a stack: the same bits as unrecorded ones."""

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_graphs import Graph, act_out
from torch import Tensor, nn
from torch.optim import SGD, Adam

from fl_lightning import recordings
from fl_lightning.data import TensorSamples
from fl_lightning.local_training import LocalTraining
from fl_lightning.models import MLP, Classifier
from fl_lightning.stack import NotStackableError
from fl_lightning.stacked_training import StackedTraining
from fl_lightning.updates.layout import Snapshot, named_state

RAGGED = (40, 8, 43, 0, 40, 24, 17)


class Net(Classifier):
    """BatchNorm, a buffer that is replaced, a frozen parameter, logs; whatever a test is about is put in by keyword."""

    recordable = True

    def __init__(self, configure: Any = None, log: Any = None) -> None:
        super().__init__(optimizer=lambda parameters: SGD(parameters, lr=0.1, momentum=0.9))
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("average", torch.zeros(()))
        self.configure, self.logged, self.factor = configure, log, 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs * self.frozen)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.factor * super().training_step(batch, batch_idx)
        self.log("loss", loss)
        self.average = 0.5 * self.average + loss.detach()
        if self.logged is not None:
            self.logged(self, batch_idx)
        return loss

    def configure_optimizers(self) -> Any:
        return super().configure_optimizers() if self.configure is None else self.configure(self)


def ragged(sizes: tuple[int, ...] = RAGGED) -> list[tuple[TensorSamples, torch.Generator]]:
    found = []
    for i, n in enumerate(sizes):
        draws = torch.Generator().manual_seed(i)
        data = TensorSamples(torch.randn(n, 6, generator=draws), torch.randint(3, (n,), generator=draws))
        found.append((data, draws))
    return found


def trained(training: StackedTraining, sizes: tuple[int, ...] = RAGGED) -> list[tuple[list[Tensor], dict[str, float]]]:
    module, found = training.module, []
    start = Snapshot(module)
    device = next(module.parameters()).device
    for _, logs in training.train([(data.to(device), draws) for data, draws in ragged(sizes)]):
        found.append(([tensor.clone() for _, tensor in named_state(module)], logs))
    start.restore(module)
    return found


def unrecorded(module: Any, local: LocalTraining, sizes: tuple[int, ...] = RAGGED) -> list[Any]:
    training = StackedTraining(module, local)
    training._recordable = False
    return trained(training, sizes)


def assert_same(module: Any, local: LocalTraining, rounds: int = 3) -> StackedTraining:
    training, expected = StackedTraining(copy.deepcopy(module), local), unrecorded(module, local)
    for _ in range(rounds):
        for (a, of_a), (b, of_b) in zip(expected, trained(training), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
            assert of_a == of_b
    return training


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    return act_out(monkeypatch)


def plain(module: Net) -> SGD:
    return SGD(module.parameters(), lr=0.1, weight_decay=1e-3)


def stepwise(module: Net) -> Any:
    optimizer = SGD(module.parameters(), lr=0.2, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def grouped(module: Net) -> SGD:
    """One group has nothing to train."""
    return SGD([{"params": [module.frozen]}, {"params": module.net.parameters(), "momentum": 0.5}], lr=0.1)


@pytest.mark.parametrize("configure", [None, plain, stepwise, grouped])
@pytest.mark.parametrize("local", [{}, {"gradient_clip_norm": 0.05}, {"precision": "bf16"}])
def test_ragged_clients_round_after_round(configure: Any, local: dict[str, Any]) -> None:
    torch.manual_seed(0)
    assert assert_same(Net(configure), LocalTraining(epochs=2.5, batch_size=8, **local))._recordings


def test_the_packages_own_network() -> None:
    torch.manual_seed(0)
    assert assert_same(MLP(sizes=(6, 16, 3)), LocalTraining(epochs=2.0, batch_size=8))._recordings


def test_cuda_graphs_find_their_tensors_in_every_round(graphs: list[Graph]) -> None:
    torch.manual_seed(0)
    local = LocalTraining(epochs=2.0, batch_size=8)
    training = assert_same(Net(), local, rounds=4)
    made = len(graphs)
    assert made
    trained(training)
    assert len(graphs) == made
    for sizes in (RAGGED[:3], RAGGED + RAGGED[:2]):  # fewer clients, and more than ever
        for (a, _), (b, _) in zip(unrecorded(training.module, local, sizes), trained(training, sizes), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_copy_makes_its_own_recordings() -> None:
    torch.manual_seed(0)
    training = assert_same(Net(), LocalTraining(epochs=2.0, batch_size=8))
    twin = copy.deepcopy(training)
    assert not twin._recordings
    for (a, _), (b, _) in zip(trained(training), trained(twin), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_attribute_that_changed_ends_recordings() -> None:
    torch.manual_seed(0)
    local = LocalTraining(epochs=2.0, batch_size=8)
    training = assert_same(Net(), local)
    module: Any = training.module
    module.factor = 3.0
    for (a, _), (b, _) in zip(unrecorded(training.module, local), trained(training), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def adam(module: Net) -> Adam:
    return Adam(module.parameters())


def dampened(module: Net) -> SGD:
    return SGD(module.parameters(), lr=0.1, momentum=0.9, dampening=0.5)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (lambda: Net(adam), None),
        (lambda: Net(dampened), "dampening makes SGD's first step unlike the others"),
        (lambda: Net(log=lambda module, _: module.log("one", 1.0)), "it logs numbers that are no tensors"),
        (
            lambda: Net(log=lambda module, number: module.log("number", torch.ones(()) * (number + 1))),
            "its step looks at batch_idx",
        ),
    ],
)
def test_what_cannot_be_recorded_is_trained_as_before(
    module: Any, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        assert not assert_same(module(), LocalTraining(epochs=1.0, batch_size=8))._recordings
    assert (reason is None) == (not caplog.records)
    assert reason is None or f"stacked steps of Net are not recorded: {reason}" in caplog.text


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (lambda module, _: module.log("epoch", torch.ones(()) * module.trainer.current_epoch), "its step looks at the Trainer"),
        (lambda module, number: module.log("number", torch.ones(()) * (number + 1)), "its step looks at batch_idx"),
    ],
)
def test_what_differs_between_the_clients_of_a_stack_is_refused(log: Any, reason: str) -> None:
    net = Net(log=log)
    vars(net)["_trainer"] = SimpleNamespace(current_epoch=0)
    training = StackedTraining(net, LocalTraining(epochs=2.0, batch_size=8))
    with pytest.raises(NotStackableError, match=f"Net cannot be trained in a stack: {reason}"):
        training.train(ragged())


def test_modules_that_do_not_say_that_they_can_be_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Net, "recordable", False)
    assert not assert_same(Net(), LocalTraining(epochs=2.0, batch_size=8))._recordings


def test_where_there_are_many_recordings_further_kinds_go_unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "MOST_RECORDINGS", 2)
    assert len(assert_same(Net(), LocalTraining(epochs=2.5, batch_size=8), rounds=4)._recordings) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    torch.manual_seed(0)
    assert assert_same(Net().cuda(), LocalTraining(epochs=2.0, batch_size=8), rounds=4)._recordings
