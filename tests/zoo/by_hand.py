"""One client and one round, in a federation and in a loop of a few lines that knows of none."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
from tiny import tiny_trainer
from torch import Tensor, nn

from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.data import FullCopies, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import derive_seed, generator, seed_global_generators

N, BATCH, SEED = 12, 4, 3


def needed(module: str) -> Any:
    """A module of a package of the extra `zoo`; the test is skipped where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} is not installed ({error}): pip install -e '.[test,zoo]'")


def inputs(kind: str) -> tuple[Tensor, int]:
    """Seeded inputs and the number of their classes."""
    draws = torch.Generator().manual_seed(7)
    if kind == "rows":
        return torch.randn(N, 6, generator=draws), 3
    if kind == "pairs":
        return torch.randn(N, 6, generator=draws), 2
    if kind == "fingerprints":
        return torch.rand(N, 6144, generator=draws), 3
    if kind == "tokens":
        return torch.randint(1, 20, (N, 8), generator=draws), 3
    if kind == "series":
        return torch.randn(N, 8, 6, generator=draws), 3
    assert kind == "pictures"
    return torch.randn(N, 3, 32, 32, generator=draws), 10


class Wrapped(L.LightningModule):
    """A network of another package as a client."""

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor], Any] | None = None, optimizer: Any = None) -> None:
        super().__init__()
        self.net = net
        self.call, self.optimizer = call or (lambda net, x: net(x)), optimizer

    def forward(self, x: Tensor) -> Any:
        return self.call(self.net, x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output = self(batch[0])
        logits = getattr(output, "logits", output[0] if isinstance(output, tuple) else output)
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9) if self.optimizer is None else self.optimizer(self)


@dataclass(frozen=True)
class Trained:
    """What became of a module.

    Attributes:
        before: its parameters at first.
        after: at the end.
    """

    before: list[Tensor]
    after: list[Tensor]


def data_of(kind: str) -> tuple[TensorSamples, int]:
    features, classes = inputs(kind)
    return TensorSamples(features, torch.arange(N) % classes), classes


def in_a_federation(client: Any, kind: str) -> Trained:
    samples, classes = data_of(kind)
    federation = Federation(
        client,
        FedAvg(),
        cohort=CohortSampler(1, malicious_fraction=0.0),
        local=LocalTraining(batch_size=BATCH, executor="sequential"),
        seed=SEED,
    )
    before = [p.detach().clone() for p in client.parameters()]
    data = FederatedDataModule.from_datasets(
        samples, samples, partition=FullCopies(num_clients=1), num_classes=classes, seed=SEED
    )
    tiny_trainer(1).fit(federation, data)
    return Trained(before, [p.detach().clone() for p in client.parameters()])


def by_hand(client: Any, kind: str, step: Callable[[Any, Callable[[], Tensor]], Any]) -> Trained:
    """The same client's training: every batch once, in the order that its seed stands for."""
    samples, _ = data_of(kind)
    before = [p.detach().clone() for p in client.parameters()]
    client.__dict__["log"] = lambda *_, **__: None
    client.train()
    seed_global_generators(derive_seed(SEED, "client", 0, 0))
    configured = client.configure_optimizers()
    while isinstance(configured, (tuple, list)):
        configured = configured[0]
    if hasattr(configured, "train"):  # pyrefly: ignore
        configured.train()
    for batch_idx, indices in enumerate(torch.randperm(N, generator=generator(SEED, "batches", 0, 0)).split(BATCH)):
        batch = samples.batch(indices)

        def closure(batch: Any = batch, batch_idx: int = batch_idx) -> Tensor:
            with torch.enable_grad():
                output = client.training_step(batch, batch_idx)
                loss = output["loss"] if isinstance(output, dict) else output
                configured.zero_grad()
                loss.backward()
            return loss

        step(configured, closure)
    if hasattr(configured, "eval"):
        configured.eval()
    return Trained(before, [p.detach().clone() for p in client.parameters()])


def gradients_first(optimizer: Any, closure: Callable[[], Tensor]) -> None:
    closure()
    optimizer.step()


def closure_alone(optimizer: Any, closure: Callable[[], Tensor]) -> None:
    optimizer.step(closure)


def both(optimizer: Any, closure: Callable[[], Tensor]) -> None:
    """As SAM wants it: gradients are there, and can be asked for once more."""
    closure()
    optimizer.step(closure)


def outcome(make: Callable[[], Any], kind: str, *steps: Callable[..., Any]) -> str:
    """`works`, or the line of the refusal; fails where neither is so.

    The federation's client has to end where the loop's does, within what float32 allows for an update, old minus new, to be
    taken from the old weights again.
    """
    torch.manual_seed(SEED)
    client = make()
    twin = copy.deepcopy(client)
    found: Trained | str
    try:
        found = in_a_federation(client, kind)
    except ConfigurationError as error:
        found = str(error)
    if isinstance(found, str):
        assert "\n" not in found
        return found
    expected = [by_hand(copy.deepcopy(twin), kind, step).after for step in steps or (gradients_first,)]
    assert any(not torch.equal(a, b) for a, b in zip(found.before, found.after, strict=True)), "nothing was learned"
    eps = torch.finfo(torch.float32).eps
    ways = []
    for after in expected:
        pairs = list(zip(found.before, found.after, after, strict=True))
        ways.append(all(bool(((b - c).abs() <= eps * ((a - c).abs() + c.abs())).all()) for a, b, c in pairs))
    assert any(ways), (
        f"ends elsewhere than the loop: {[max(map(float, map(largest, found.after, after))) for after in expected]}"
    )
    return "works"


def largest(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().max()
