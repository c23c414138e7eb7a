"""Time and memory of a round of a network of the size of BERT, with adapters alone trained or all of it.

    pip install -e '.[text]'
    OMP_NUM_THREADS=1 python -m benchmarks.adapters

Weights are random, and texts as well: what a round takes depends on neither. Every case has a process of its own. Memory is
what the process holds at most in training beyond what it held before, the network among the latter; beside it stands what
`Footprint` says, which leaves activations out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

import lightning as L
import torch

import fl_lightning.machine.strategy  # noqa: F401  registers strategy="federated"
from benchmarks.common import emit, significant
from benchmarks.memory import mebibytes, peak_since, start_of_peak
from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.data import IID, TensorSamples
from fl_lightning.machine.footprint import Footprint, module_bytes
from fl_lightning.models import HuggingFaceClassifier, LoRA
from fl_lightning.modules.frozen_base import base_bytes

CASES: dict[str, LoRA | None] = {"adapters": LoRA(r=32), "whole": None}
CPU = torch.device("cpu")


def texts(n: int, tokens: int, seed: int) -> TensorSamples:
    draws = torch.Generator().manual_seed(seed)
    return TensorSamples(torch.randint(0, 30_000, (n, tokens), generator=draws), torch.arange(n) % 2)


class Clock(L.Callback):
    """Seconds of this process's own at the end of each round, which others on the machine do not lengthen much."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ends = [time.process_time()]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ends.append(time.process_time())


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of a case."""
    client = HuggingFaceClassifier(model={"model_type": "bert"}, lora=CASES[name])
    trained = sum(parameter.numel() for parameter in client.parameters() if parameter.requires_grad)
    footprint = Footprint(
        num_clients=given.clients,
        num_coordinates=trained,
        model_bytes=module_bytes(client),
        base_bytes=base_bytes(client),
        optimizer_copies=2,  # AdamW
    )
    share = texts(given.clients * given.batches * given.batch_size, given.tokens, 0)
    data = FederatedDataModule.from_datasets(share, texts(4, given.tokens, 1), partition=IID(num_clients=given.clients))
    cohort = CohortSampler(clients_per_round=given.clients, malicious_fraction=0.0)
    federation = Federation(client, FedAvg(), cohort=cohort, local=LocalTraining(batch_size=given.batch_size))
    clock = Clock()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        strategy="federated",
        max_epochs=given.rounds,
        limit_val_batches=0,
        callbacks=[clock],
        **quiet,
    )
    before = start_of_peak(CPU)
    trainer.fit(federation, data)
    peak = peak_since(before, CPU)
    seconds = [after - earlier for earlier, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return {
        "case": name,
        "parameters": sum(parameter.numel() for parameter in client.parameters()),
        "trained": trained,
        "model_mb": mebibytes(footprint.model_bytes),
        "beyond_mb": mebibytes(peak),
        "predicted_mb": mebibytes(footprint.total - footprint.model_bytes),
        "cpu_seconds": significant(min(seconds)),
        "exchanged_mb": mebibytes(4 * trained * (given.clients + 1)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--batches", type=int, default=2, help="of each client in a round")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in CASES:
        with context.Pool(1) as pool:
            emit("adapters", {**vars(given), **pool.apply(measure, (name, given))}, CPU)


if __name__ == "__main__":
    main()
