"""Seconds that a round takes longer where the rule examines every submitted model, against the forward passes alone.

    OMP_NUM_THREADS=1 python -m benchmarks.examination
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.examination

Measured is the phase `examination` of a federation: updates travel back to ranks, the global module becomes each submitted
model in turn, the rule has it predict noise, and what it measured is gathered. Against that stand as many forward passes, those
of this rank's share of the models, of one model on batches that are there already.
"""

from __future__ import annotations

import argparse
import os
import time

import lightning as L
import torch
from torch import Tensor

from benchmarks.common import emit, significant, summary, synchronize
from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.cli import quiet
from fl_lightning.data import IID, Noise, TensorSamples
from fl_lightning.models import CNN, MLP, Classifier, ResNet18
from fl_lightning.updates import UpdateShard

BATCH_SIZE = 250


class OnNoise(FedAvg):
    """The mean, after a look at each model's mean outputs on noise."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.probe = Noise(samples)

    def examine(self, module, probe, generator) -> Tensor:
        return torch.cat([module(inputs).softmax(1) for inputs, _ in probe]).mean(0)

    def forward(self, shard: UpdateShard) -> Tensor:
        assert shard.examined is not None
        return super().forward(shard)


class Rounds(L.Callback):
    """The seconds of the examination in each round."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._before = 0.0

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        now = pl_module.seconds["examination"]
        self.seconds.append(now - self._before)
        self._before = now


def passes(model: Classifier, batches: list[Tensor], models: int, device: torch.device) -> float:
    """Seconds of so many times all batches."""
    synchronize(device)
    began = time.perf_counter()
    with torch.no_grad():
        for _ in range(models):
            for batch in batches:
                model(batch).softmax(1)
    synchronize(device)
    return time.perf_counter() - began


def measure(name: str, model: Classifier, shape: tuple[int, ...], options: argparse.Namespace, device: torch.device) -> None:
    """Print the row of one network."""
    n, samples = options.clients, options.samples
    inputs = TensorSamples(torch.rand(8 * n, *shape), torch.arange(8 * n) % 2)
    data = FederatedDataModule.from_datasets(inputs, inputs, partition=IID(num_clients=n), eval_batch_size=BATCH_SIZE)
    rounds = Rounds()
    federation = Federation(
        model,
        OnNoise(samples),
        cohort=CohortSampler(clients_per_round=n, malicious_fraction=0.0),
        local=LocalTraining(batch_size=8, executor="sequential"),
    )
    trainer = L.Trainer(
        strategy="federated",
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        max_epochs=1 + options.repeats,
        callbacks=[rounds],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(federation, data)
    world, rank = trainer.world_size, trainer.global_rank
    own = len(range(rank, n + 1, world))  # the clients' models and the global one
    batches = [torch.rand(min(BATCH_SIZE, samples - i), *shape, device=device) for i in range(0, samples, BATCH_SIZE)]
    alone = [passes(model.to(device).eval(), batches, own, device) for _ in range(1 + options.repeats)][1:]
    examined = summary(rounds.seconds[1:])
    if rank == 0:
        row = {
            "network": name,
            "ranks": world,
            "clients": n,
            "samples": samples,
            "coordinates": sum(p.numel() for p in model.parameters()),
            "examination_seconds": examined,
            "forward_seconds": summary(alone),
            "ratio": significant(examined["median"] / summary(alone)["median"]),
            "repeats": options.repeats,
        }
        emit("examination", row, device)


def main() -> None:
    parser = argparse.ArgumentParser(description="Examining every submitted model, against the forward passes alone.")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--networks", nargs="+", default=["MLP", "CNN", "ResNet18"], choices=["MLP", "CNN", "ResNet18"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu (gloo) or cuda (nccl)")
    options = parser.parse_args()
    quiet()
    device = torch.device(options.device)
    made = {
        "MLP": (lambda: MLP(sizes=[64, 256, 10]), (64,)),
        "CNN": (lambda: CNN(), (3, 32, 32)),
        "ResNet18": (lambda: ResNet18(), (3, 32, 32)),
    }
    for name in options.networks:
        torch.manual_seed(0)
        measure(name, made[name][0](), made[name][1], options, device)


if __name__ == "__main__":
    main()
