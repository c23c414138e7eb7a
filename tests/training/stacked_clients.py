"""What tests of stacked training share."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn, optim

from fl_lightning.data import TensorSamples
from fl_lightning.data.base import Samples
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.stack import NotStackableError
from fl_lightning.training.stacked_training import StackedTraining

FEATURES, CLASSES = 6, 3


Configure = Callable[[Any], Any]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(n: int, seed: int = 0, **kwargs: Any) -> TensorSamples:
    inputs = torch.randn(n, FEATURES, generator=rng(seed))
    return TensorSamples(inputs, inputs[:, :CLASSES].argmax(1), **kwargs)


def tables(sizes: Sequence[int], **kwargs: Any) -> list[Samples]:
    return [table(n, seed=i, **kwargs) for i, n in enumerate(sizes)]


def sgd(self: nn.Module) -> Any:
    return optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Client(L.LightningModule):
    """A small network; whatever a test is about is put in by keyword."""

    def __init__(
        self, *layers: nn.Module, configure: Configure = sgd, after: Callable[[Any, Tensor], Any] | None = None
    ) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 17), nn.Linear(17, CLASSES)
        self.rest = nn.Sequential(*layers, nn.ReLU(), self.last)
        self.configure, self.after = configure, after

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self.rest(self.first(batch[0])), batch[1])
        return loss if self.after is None else self.after(self, loss)

    def configure_optimizers(self) -> Any:
        return self.configure(self)


def state(client: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*client.named_parameters(), *client.named_buffers())}


def assert_refused(client: L.LightningModule, reason: str, data: Sequence[Samples] | None = None, epochs: float = 1.0) -> None:
    """The module is refused with one line, and it and the generators are as they were."""
    client.eval()
    before, attributes = state(client), [dict(vars(part)) for part in client.modules()]
    generators = [rng(i) for i in range(3)]
    with pytest.raises(NotStackableError, match=reason) as refusal:
        StackedTraining(client, LocalTraining(epochs=epochs, batch_size=8)).train(
            list(zip(data or tables([20, 9, 16]), generators, strict=True))
        )
    assert str(refusal.value).startswith(f"{type(client).__name__} cannot be trained in a stack: ")
    assert "\n" not in str(refusal.value)
    after = state(client)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in client.parameters())
    assert [dict(vars(part)) for part in client.modules()] == attributes
    assert all(torch.equal(g.get_state(), rng(i).get_state()) for i, g in enumerate(generators))
