"""What tests of clients side by side share."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from fl_lightning import LocalTraining
from fl_lightning.data import TensorSamples
from fl_lightning.models import Classifier
from fl_lightning.training.branched_training import BranchedTraining
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
