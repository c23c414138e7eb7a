"""Client updates per second of `Federation` on one rank, against the plain loop of `plain_loop.py`.

    OMP_NUM_THREADS=1 python -m benchmarks.rounds

Both train the same clients of the same cohorts on the same batches with the same rule and end with the same weights, which
is checked. Neither evaluates, checkpoints or logs. The plain loop has its inputs standardised and its cohorts drawn before
the clock starts; `Federation` has chosen and prepared its executor in rounds before.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks.common import alternate, emit, significant, summary, synchronize
from benchmarks.plain_loop import flat, plain_rounds, sorted_invariant, weighted_mean
from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg, Invariant
from fl_lightning.cli import quiet
from fl_lightning.data import IID, Dirichlet, Partition, Phishing, TensorSamples
from fl_lightning.models import CNN, MLP, Classifier, ResNet18
from fl_lightning.seeding import generator
from fl_lightning.training import executor as executors
from fl_lightning.updates import parameter_layout

SEED = 0
TAU, ALPHA = 0.6, 0.25
BATCH_SIZE = 64


class Stopwatch(L.Callback):
    """The seconds from the start of a round to the end of the last; the model is as it was at first when the clock starts.

    An executor is chosen before: at once, as clients of a fast machine do not take a second in the rounds until then.
    """

    def __init__(self, first: int, weights: Tensor) -> None:
        self.first, self.weights = first, weights
        self.began = self.seconds = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        executors.SECONDS_BEFORE_TRIAL = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        if trainer.current_epoch == self.first:
            assert pl_module.clients.executor.chosen is not None, "the clock would count the choice of an executor"
            client: Any = pl_module.client
            parameter_layout(client).load(client, self.weights.to(pl_module.device))
            synchronize(pl_module.device)
            self.began = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        synchronize(pl_module.device)
        self.seconds = time.perf_counter() - self.began


@dataclass
class Case:
    """What is trained, and the weights that each way ended with.

    Attributes:
        warm_rounds: rounds of `Federation` before the clock starts, in which it prepares its executor.
        ours: the network of `Federation`, where it is not `model`; it starts from the same weights.
        local: how `Federation` trains, beside the size of batches.
        batch_size: B.
        momentum: of the plain loop's SGD, as `model` has it.
    """

    task: str
    rule: str
    model: Classifier
    data: FederatedDataModule
    learning_rate: float
    clients_per_round: int
    rounds: int
    device: torch.device
    warm_rounds: int = 0
    ours: Classifier | None = None
    local: dict[str, Any] = field(default_factory=dict)
    batch_size: int = BATCH_SIZE
    momentum: float = 0.9

    def __post_init__(self) -> None:
        self.data.setup("fit")
        self.cohort = CohortSampler(clients_per_round=self.clients_per_round, malicious_fraction=0.0)
        self.weights: dict[str, Tensor] = {}
        self.executor = ""

    def federation(self) -> float:
        """Seconds of the rounds of `Federation`."""
        weights = parameter_layout(self.model).flatten(self.model)
        model = copy.deepcopy(self.ours or self.model)
        parameter_layout(model).load(model, weights)
        rule = FedAvg() if self.rule == "FedAvg" else Invariant(tau=TAU, alpha=ALPHA)
        local = LocalTraining(batch_size=self.batch_size, **self.local)
        stopwatch = Stopwatch(self.warm_rounds, weights)
        federation = Federation(model, rule, cohort=self.cohort, local=local, seed=SEED)
        L.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=self.warm_rounds + self.rounds,
            callbacks=[stopwatch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            deterministic=self.device.type == "cuda",
        ).fit(federation, datamodule=self.data)
        self.executor = federation.clients.way
        self.weights["federation"] = parameter_layout(model).flatten(model).cpu()
        return stopwatch.seconds

    def plain(self) -> float:
        """Seconds of the same rounds of the plain loop."""
        torch.use_deterministic_algorithms(False)  # which the federation's Trainer has asked for
        model = copy.deepcopy(self.model).to(self.device)
        inputs, targets = (part.to(self.device) for part in self.data.train.batch(torch.arange(len(self.data.train))))
        first, last = self.warm_rounds, self.warm_rounds + self.rounds
        cohorts = [self.cohort.draw(SEED, t, self.data.sizes).clients.tolist() for t in range(first, last)]
        trim = -(-self.clients_per_round // 4)
        synchronize(self.device)
        began = time.perf_counter()
        plain_rounds(
            model,
            inputs,
            targets,
            self.data.clients,
            cohorts,
            rule=weighted_mean if self.rule == "FedAvg" else lambda updates, _: sorted_invariant(updates, TAU, trim),
            optimizer=partial(torch.optim.SGD, lr=self.learning_rate, momentum=self.momentum),
            shuffle=lambda t, client, n: torch.randperm(n, generator=generator(SEED, "batches", first + t, client)),
            batch_size=self.batch_size,
        )
        synchronize(self.device)
        seconds = time.perf_counter() - began
        self.weights["plain"] = flat(model).cpu()
        return seconds


def phishing(partition: Partition | None = None) -> Phishing:
    """100 clients of 500 samples, or 50,000 samples as they are dealt out."""
    return Phishing(partition or IID(num_clients=100), num_train=50_000)


def images(partition: Partition, n: int) -> FederatedDataModule:
    """n random images of CIFAR-10's shape."""
    draws = generator(SEED, "benchmark images")
    samples = TensorSamples(torch.randn(n, 3, 32, 32, generator=draws), torch.randint(10, (n,), generator=draws))
    return FederatedDataModule.from_datasets(samples, samples, partition=partition, num_classes=10)


def cases(rounds: int, device: torch.device, branches: list[int]) -> Iterator[Case]:
    """The MLP and the CNN by each executor, and the ways that a configuration can make the CNN faster.

    Args:
        rounds: of the MLP.
        device: that is trained on.
        branches: numbers of clients side by side.
    """
    few = max(1, rounds // 10)
    emails, pictures = phishing(), images(IID(num_clients=10), 5_000)
    mlp, cnn, channels_last = MLP(), CNN(), CNN(channels_last=True)
    for rule in ("FedAvg", "Invariant"):
        for executor in ("sequential", "graph", "stacked", "auto") if rule == "FedAvg" else ("auto",):
            local = {"executor": executor}
            yield Case("phishing, MLP", rule, mlp, emails, 0.1, 20, rounds, device, warm_rounds=2 * rounds, local=local)
    skewed = phishing(Dirichlet(num_clients=100, alpha=0.5))
    for local in ({"executor": "sequential"}, {}):
        yield Case("phishing, MLP, label skew", "FedAvg", mlp, skewed, 0.1, 20, rounds, device, 2 * rounds, local=local)
    for many in branches:
        local = {"executor": "graph", "branches": many}
        yield Case("phishing, MLP", "FedAvg", mlp, emails, 0.1, 20, rounds, device, warm_rounds=2 * rounds, local=local)
        yield Case("images 3 x 32 x 32, CNN", "FedAvg", cnn, pictures, 0.01, 4, few, device, 3, local=local)
    for ours, name in ((cnn, "CNN"), (channels_last, "CNN, channels last")):
        yield Case(f"images 3 x 32 x 32, {name}", "FedAvg", cnn, pictures, 0.01, 4, few, device, 1, ours)
    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        name, local = "images 3 x 32 x 32, CNN, channels last, bf16", {"precision": "bf16"}
        yield Case(name, "FedAvg", cnn, pictures, 0.01, 4, few, device, 1, channels_last, local)


def resnets(device: torch.device) -> Iterator[Case]:
    """The paper's networks and clients on CIFAR-10, label skew and all, in float32 and under bf16 autocast."""
    pictures = images(Dirichlet(num_clients=100, alpha=0.5), 50_000)
    model = ResNet18(stem="imagenet", num_classes=1000, channels_last=True)
    for precision in ("32", "bf16"):
        local = {"precision": precision}
        task = f"images 3 x 32 x 32, ResNet-18, label skew, {precision}"
        yield Case(task, "Invariant", model, pictures, 0.01, 20, 5, device, 25, local=local)


def main() -> None:
    parser = argparse.ArgumentParser(description="Federation against the plain loop, in client updates per second.")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of one run with the MLP; a tenth of it with the CNN")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--task", default="", help="a part of the names of tasks; only these are measured")
    parser.add_argument("--branches", type=int, nargs="*", default=[], help="also so many clients side by side")
    options = parser.parse_args()
    quiet()
    torch.manual_seed(SEED)
    device = torch.device(options.device)
    of_device = resnets(device) if device.type == "cuda" else ()
    for case in chain(cases(options.rounds, device, options.branches), of_device):
        if options.task not in case.task:
            continue
        seconds = alternate({"plain": case.plain, "federation": case.federation}, repeats=options.repeats)
        updates = case.rounds * case.clients_per_round
        rates = {name: [updates / s for s in measured] for name, measured in seconds.items()}
        ratios = [ours / plain for ours, plain in zip(rates["federation"], rates["plain"], strict=True)]
        row = {"task": case.task, "rule": case.rule, "clients_per_round": case.clients_per_round, "rounds": case.rounds}
        row |= {"asked": case.local.get("executor", "auto"), "executor": case.executor}
        row |= {f"{name}_updates_per_second": summary(rate) for name, rate in rates.items()}
        difference = (case.weights["federation"] - case.weights["plain"]).abs().max().item()
        row |= {"ratio": summary(ratios), "largest_difference": significant(difference), "repeats": options.repeats}
        emit("rounds", row, device)


if __name__ == "__main__":
    main()
