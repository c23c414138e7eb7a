"""Time and memory of a round of a network of the size of BERT, with adapters alone trained or all of it.

    pip install -e '.[text]'
    OMP_NUM_THREADS=1 python -m benchmarks.adapters

Weights are random, and texts as well: what a round takes depends on neither. Every case has a process of its own, in which a
network of one narrow layer is trained before, so that what is imported on the way does not count. Memory is what the process
holds at most in training beyond what it held before, the network among the latter. Beside it stand what `Footprint` says, which
leaves activations out, and these: the tensors that one step keeps until gradients have come back through them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from typing import Any

import lightning as L
import torch
from torch.nn.functional import cross_entropy

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
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
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


def activations(client: L.LightningModule, batch: Any) -> int:
    """Bytes of what a step keeps for its gradients beside the network itself."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*client.parameters(), *client.buffers())}
    kept: dict[int, int] = {}

    def see(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        loss = cross_entropy(client(batch[0]), batch[1])  # kept while what was seen is counted, as memory is given out again
    found = sum(kept.values())
    del loss
    return found


def train(client: L.LightningModule, given: argparse.Namespace) -> Clock:
    """Some rounds, on texts of its own."""
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
    trainer.fit(federation, data)
    return clock


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of a case."""
    train(HuggingFaceClassifier(model={"model_type": "bert", **SMALL}, lora=CASES[name]), given)
    client = HuggingFaceClassifier(model={"model_type": "bert"}, lora=CASES[name])
    trained = sum(parameter.numel() for parameter in client.parameters() if parameter.requires_grad)
    footprint = Footprint(
        num_clients=given.clients,
        num_coordinates=trained,
        model_bytes=module_bytes(client),
        base_bytes=base_bytes(client),
        optimizer_copies=2,  # AdamW
    )
    before = start_of_peak(CPU)
    clock = train(client, given)
    peak = peak_since(before, CPU)
    seconds = [after - earlier for earlier, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return {
        "case": name,
        "parameters": sum(parameter.numel() for parameter in client.parameters()),
        "trained": trained,
        "model_mb": mebibytes(footprint.model_bytes),
        "beyond_mb": mebibytes(peak),
        "predicted_mb": mebibytes(footprint.total - footprint.model_bytes),
        "activations_mb": mebibytes(
            activations(client, texts(given.batch_size, given.tokens, 0).batch(torch.arange(given.batch_size)))
        ),
        "cpu_seconds": significant(min(seconds)),
        "sent_between_two_ranks_mb": mebibytes(4 * trained * (given.clients + 2)),
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
