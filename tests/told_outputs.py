"""A client whose outputs a test decides on."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class Net(L.LightningModule):
    """Returns what it is told to make of a linear layer's output."""

    def __init__(self, output: Any = lambda z: z, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, outputs)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self.layer(x))
