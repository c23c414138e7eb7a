"""Modules of unusual kinds that are trained as by hand."""

from typing import Any

import pytest
import torch
from checked_clients import Client, compiled
from tiny import CLASSES, FEATURES, fit, tiny_tensors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.data import IID, TensorSamples


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.last = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


class Masked(nn.Module):
    """Has a mask of -inf, as transformers do, in a buffer that is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((FEATURES, FEATURES), -torch.inf).triu(1))
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(((self.mask + x[:, None]).softmax(-1) @ x[:, :, None])[:, :, 0])


class Caches(nn.Module):
    """Keeps a cache that grows with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(1), persistent=False)
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.cache) < len(x):
            self.cache = torch.zeros(len(x))
        return self.layer(x) + self.cache[: len(x), None]


class CannotBeCopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot be copied")


TRAINABLE = {
    "tied": Tied,
    "masked": Masked,
    "caches": Caches,
    "not copied": lambda: CannotBeCopied(FEATURES, CLASSES),
    "compiled in place": compiled,
    "compiled layer": lambda: torch.compile(nn.Linear(FEATURES, CLASSES), backend="eager"),
    "scripted layer": lambda: torch.jit.script(nn.Linear(FEATURES, CLASSES)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(FEATURES, CLASSES)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(FEATURES, CLASSES)),
    "double": lambda: nn.Linear(FEATURES, CLASSES, dtype=torch.float64),
    "lazy, made before": lambda: made(nn.LazyLinear(CLASSES)),
    "frozen half": lambda: nn.Sequential(FrozenHalf(), nn.Linear(FEATURES, CLASSES)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(FEATURES, CLASSES), "weight", 0.5),
}


class FrozenHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(FEATURES, dtype=torch.bfloat16), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def made(net: nn.Module) -> nn.Module:
    net(torch.zeros(1, FEATURES))
    return net


@pytest.mark.parametrize("kind", TRAINABLE)
def test_modules_of_all_kinds_train_as_by_hand(kind):
    """A client alone, for a round, against a loop without a federation."""
    dtype = torch.float64 if kind == "double" else torch.float32
    drawn = tiny_tensors(24)
    data = TensorSamples(drawn.inputs.to(dtype), drawn.targets)
    torch.manual_seed(5)
    client = Client(TRAINABLE[kind]())
    torch.manual_seed(5)
    by_hand = Client(TRAINABLE[kind]())
    federation = Federation(
        client, FedAvg(), cohort=CohortSampler(1, malicious_fraction=0.0), local=LocalTraining(batch_size=24)
    )
    fit(federation, FederatedDataModule.from_datasets(data, data, partition=IID(num_clients=1), num_classes=CLASSES), rounds=3)

    for _ in range(3):  # whole batches, so that the order of the samples does not count
        optimizer = by_hand.configure_optimizers()
        by_hand.training_step((data.inputs, data.targets), 0).backward()
        optimizer.step()
        optimizer.zero_grad()
    for (name, found), expected in zip(client.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}", check_dtype=True
        )
