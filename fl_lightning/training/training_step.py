"""A client's `training_step` as a function of its tensors, for executors that call it with others than its own."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from fl_lightning.modules.hooks import num_arguments


class TrainingStep(nn.Module):
    """A client's `training_step` as a `forward`, which is what `torch.func.functional_call` calls."""

    PREFIX = "client"
    """Of the names of the client's tensors."""

    def __init__(self, client: L.LightningModule) -> None:
        super().__init__()
        self.client = client
        self.num_arguments = num_arguments(client.training_step)

    def forward(self, *arguments: Any) -> Any:  # batch, batch_idx
        return self.client.training_step(*arguments[: self.num_arguments])
