"""The client module that the package's own networks share: cross entropy and an optimizer of the user's choice.

They define two methods for local training, `training_step` and `configure_optimizers`, as B. McMahan, E. Moore,
D. Ramage, S. Hampson, B. Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, https://arxiv.org/abs/1602.05629, algorithm 1 (ClientUpdate) needs no more. Any other LightningModule with
these two can be a client as well.
"""

from __future__ import annotations

from abc import abstractmethod

import lightning as L
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from fl_lightning.checked import Checked
from fl_lightning.modules.trainable import parts_of, trainable

IGNORED = -100
"""A target that is none, as PyTorch's losses have it."""


class Classifier(Checked, L.LightningModule):
    """A client that learns to classify by cross entropy, which it logs as `loss`; a subclass gives `forward`.

    Nothing is read back from a GPU in a step, so that it never waits.

    A subclass whose step depends on nothing but parameters, buffers, the batch and draws of PyTorch's global generator may say
    so by `recordable = True` in its own body; local training may then record its steps and replay them
    (`model.local.executor: auto`).

    Attributes:
        padding: the target that counts for nothing in the loss.

    Args:
        optimizer: makes the optimizer from the parameters. It is made anew for every client and round: clients keep no
            state. In YAML, a `class_path` and its `init_args` without the parameters.

    Example:
        >>> class Linear(Classifier):
        ...     def __init__(self) -> None:
        ...         super().__init__(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        ...         self.layer = torch.nn.Linear(45, 2)
        ...
        ...     def forward(self, inputs: Tensor) -> Tensor:
        ...         return self.layer(inputs)
    """

    padding: int = IGNORED

    def __init__(self, *, optimizer: OptimizerCallable) -> None:
        super().__init__()
        self._make_optimizer = optimizer

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Class scores.

        Args:
            inputs: (b, ...) model inputs, as the data module's batches hold them.

        Returns:
            (b, C) logits; (b, L, C) where there is a class at every position.
        """
        raise NotImplementedError

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross entropy of one batch, of all positions but padding.

        Args:
            batch: inputs (b, ...) and targets (b,) or (b, L) int64.
            batch_idx: number of the batch; unused.

        Returns:
            The loss, a scalar tensor.
        """
        inputs, targets = batch
        loss = F.cross_entropy(self(inputs).flatten(0, -2), targets.flatten(), ignore_index=self.padding)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Optimizer:
        """A fresh optimizer over the trainable parameters."""
        return self._make_optimizer(trainable(parts_of(self)))
