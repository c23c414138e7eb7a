"""What tests of recorded steps share."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import SGD

from fl_lightning.data import TensorSamples
from fl_lightning.models import Classifier
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recorded_steps import RecordedSteps
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
