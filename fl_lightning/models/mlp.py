"""The perceptron of the phishing task: 45 - 128 - 256 - 2 with ReLU, 39,426 parameters.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, table 3 (SGD with learning rate 0.1).

Differs from the paper: it states no momentum; 0.9 is the default here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models.base import Classifier


class MLP(Classifier):
    """Linear layers with ReLU between them. Inputs are flattened, so images work too.

    Args:
        sizes: units per layer: features, hidden layers (none gives a linear classifier), classes.
        optimizer: makes the optimizer from the parameters, anew for every client and round.

    Example:
        >>> model = MLP()
        >>> sum(p.numel() for p in model.parameters())
        39426
        >>> model(torch.zeros(3, 45)).shape
        torch.Size([3, 2])
    """

    recordable = True
    perceptron = True

    def __init__(
        self,
        *,
        sizes: Sequence[int] = (45, 128, 256, 2),
        optimizer: OptimizerCallable = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    ) -> None:
        super().__init__(optimizer=optimizer)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ConfigurationError(
                f"MLP.sizes must hold the number of features and of classes at least, each 1 or more, got "
                f"{list(sizes)}; the phishing task's are [45, 128, 256, 2]"
            )
        self.num_features = sizes[0]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (b, C) of inputs (b, ...) with `sizes[0]` numbers per sample."""
        features = inputs.flatten(1)
        if features.shape[1] != self.num_features:
            raise ConfigurationError(
                f"MLP.sizes starts with {self.num_features} features, but a sample has {features.shape[1]} "
                f"(shape {tuple(inputs.shape[1:])}); make that the first of the sizes"
            )
        return self.layers(features)
