"""The benchmark's networks in plain PyTorch and its data as tensors, for the peers that train such.

The networks are `fl_lightning.models.MLP`, `CNN` and `DropoutCNN` with their defaults, which peers' environments do not have.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    """45 - 128 - 256 - 2 with ReLU."""
    return nn.Sequential(nn.Linear(45, 128), nn.ReLU(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 2))


def cnn() -> nn.Module:
    """Two 3 x 3 convolutions with ReLU and pooling, a hidden layer of 512, ten classes; images (b, 3, 32, 32)."""
    first = [nn.Conv2d(3, 32, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(32, 64, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64 * 8 * 8, 512), nn.ReLU(), nn.Linear(512, 10))


def dropout_cnn() -> nn.Module:
    """`simple_cnn` of pfl-research's benchmarks, which takes images (b, 3, 32, 32) here, not (b, 32, 32, 3)."""
    first = [nn.Conv2d(3, 32, kernel_size=3), nn.ReLU(), nn.Conv2d(32, 64, kernel_size=3), nn.ReLU(), nn.MaxPool2d(2)]
    rest = [nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    model = nn.Sequential(*first, nn.Dropout(0.25), nn.Flatten(), *rest)
    for part in model:
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(part.weight)
    return model


def network(name: str) -> nn.Module:
    """One of the three, the same initial weights each time."""
    torch.manual_seed(0)
    return {"mlp": mlp, "cnn": cnn, "dropout_cnn": dropout_cnn}[name]()


@cache
def clients_data(path: str) -> tuple[Tensor, Tensor]:
    """Inputs (clients, n, ...) and targets (clients, n), read once by each process."""
    data = np.load(path)
    return torch.from_numpy(data["inputs"]), torch.from_numpy(data["targets"])


@torch.no_grad()
def mean_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Cross-entropy on the first ten samples of each client: inputs (clients, n, ...), targets (clients, n)."""
    return F.cross_entropy(model.eval()(inputs[:, :10].flatten(0, 1)), targets[:, :10].flatten()).item()
