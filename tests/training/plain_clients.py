"""What tests of clients' steps share."""

from typing import Any

import lightning as L
import torch
from torch import nn

from fl_lightning.data import TensorSamples
from fl_lightning.training.local_training import LocalTraining

N, BATCH, EPOCHS = 20, 8, 2


def data() -> TensorSamples:
    inputs = torch.randn(N, 4, generator=torch.Generator().manual_seed(9))
    return TensorSamples(inputs, (inputs[:, 0] > 0).long())


class Batches:
    """Those that local training draws, epoch by epoch, as a loader."""

    def __init__(self) -> None:
        self.draws = torch.Generator().manual_seed(3)

    def __len__(self) -> int:
        return -(-N // BATCH)

    def __iter__(self):
        samples = data()
        for indices in torch.randperm(N, generator=self.draws).split(BATCH):
            yield samples.batch(indices)


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def by_lightning(module: L.LightningModule, **kwargs: Any) -> L.Trainer:
    """Trained by Lightning."""
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    trainer = L.Trainer(**settings)
    loader: Any = Batches()
    trainer.fit(module, loader)
    return trainer


def by_us(module: L.LightningModule, **kwargs: Any) -> dict[str, float]:
    """Trained as a client."""
    local = LocalTraining(epochs=EPOCHS, batch_size=BATCH, **kwargs)
    return local.train(module, data(), torch.Generator().manual_seed(3))


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
