"""What tests of checks of clients share."""

from typing import Any

import lightning as L
import torch
from tiny import CLASSES, FEATURES
from torch import Tensor, nn


class Client(L.LightningModule):
    """Trains whatever network it is given."""

    def __init__(self, net: Any = None, configure: Any = None) -> None:
        super().__init__()
        self.net: Any = nn.Linear(FEATURES, CLASSES) if net is None else net
        self.configure = configure

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1) if self.configure is None else self.configure(self)


def compiled() -> nn.Module:
    layer = nn.Linear(FEATURES, CLASSES)
    layer.compile(backend="eager")
    return layer
