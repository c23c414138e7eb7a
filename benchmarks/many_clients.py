"""What more clients cost where rounds have as many as before: dealing out, start, rounds, memory, checkpoints, records.

    OMP_NUM_THREADS=1 python -m benchmarks.many_clients

Clients have ten samples of ten numbers, a linear model is trained by 20 of them a round, four of them malicious. Rounds neither
evaluate nor write; one run more has a checkpoint and a `ClientRecord`. Seconds are of the processor, so that other programs
matter less; `ratio` is over the fewest clients, in the same run. Peak memory is that of a process of its own, all in all.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.common import alternate, emit, peak_bytes, significant, summary
from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks import ClientRecord, LastCheckpoint
from fl_lightning.cli import quiet
from fl_lightning.data import IID, TensorSamples
from fl_lightning.seeding import generator

SEED, SAMPLES, FEATURES, CLASSES = 0, 10, 10, 10
COHORT = CohortSampler(clients_per_round=20, malicious_fraction=0.2)


class Linear(L.LightningModule):
    """The smallest client, so that what grows with the number of clients shows most."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock(L.Callback):
    """The processor's seconds when rounds began, and when the last ended."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.times.append(time.process_time())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.times.append(time.process_time())


def samples(num_clients: int) -> TensorSamples:
    """Noise for all clients."""
    draws, n = generator(SEED, "many clients"), SAMPLES * num_clients
    return TensorSamples(torch.randn(n, FEATURES, generator=draws), torch.randint(CLASSES, (n,), generator=draws))


def dealt(train: TensorSamples, num_clients: int) -> FederatedDataModule:
    """The data module after its setup."""
    test = train.subset(torch.arange(100))
    data = FederatedDataModule.from_datasets(train, test, partition=IID(num_clients=num_clients), num_classes=CLASSES)
    data.setup("fit")
    return data


def train(data: FederatedDataModule, rounds: int, *callbacks: L.Callback, folder: str | None = None) -> tuple[float, float]:
    """Seconds from the call to the first round, and the median seconds of those after it."""
    clock = Clock()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=rounds,
        default_root_dir=folder,
        callbacks=[clock, *callbacks],
        logger=False,
        enable_checkpointing=any(isinstance(callback, LastCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    torch.manual_seed(SEED)
    local = LocalTraining(batch_size=SAMPLES, executor="sequential")
    federation = Federation(Linear(), FedAvg(), cohort=COHORT, local=local, seed=SEED)
    began = time.process_time()
    trainer.fit(federation, datamodule=data)
    return clock.times[0] - began, statistics.median(b - a for a, b in zip(clock.times[1:], clock.times[2:], strict=False))


def written(data: FederatedDataModule, rounds: int) -> dict[str, float]:
    """Bytes of a checkpoint, and of a round's rows in the record."""
    with tempfile.TemporaryDirectory() as folder:
        train(data, rounds, LastCheckpoint(), ClientRecord(), folder=folder)
        record = sum(file.stat().st_size for file in Path(folder, "clients").glob("*.parquet"))
        return {"checkpoint_bytes": Path(folder, "last.ckpt").stat().st_size, "record_bytes": round(record / rounds)}


def peak_of_process(num_clients: int) -> int:
    """The most memory of a new process that deals out and trains for three rounds."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(whole_run, num_clients).result()


def whole_run(num_clients: int) -> int:
    """Bytes at most, of this process."""
    silence()
    train(dealt(samples(num_clients), num_clients), 3)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def silence() -> None:
    """Nothing but rows."""
    quiet()
    for name in ("lightning.pytorch", "fl_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 3_400, 10_000, 100_000], help="numbers of clients")
    parser.add_argument("--rounds", type=int, default=30, help="of a run")
    parser.add_argument("--repeats", type=int, default=5, help="measured runs of each")
    options = parser.parse_args()
    silence()
    device = torch.device("cpu")
    given = {n: samples(n) for n in options.clients}
    data = {n: dealt(given[n], n) for n in options.clients}
    starts: dict[int, list[float]] = {n: [] for n in options.clients}

    def dealing(n: int) -> float:
        began = time.process_time()
        dealt(given[n], n)
        return time.process_time() - began

    def rounds(n: int) -> float:
        start, each = train(data[n], options.rounds)
        starts[n].append(start)
        return each

    deals = alternate({str(n): partial(dealing, n) for n in options.clients}, repeats=options.repeats)
    times = alternate({str(n): partial(rounds, n) for n in options.clients}, repeats=options.repeats)
    fewest = str(options.clients[0])
    for n in options.clients:
        ratios = [one / least for one, least in zip(times[str(n)], times[fewest], strict=True)]
        row = {
            "clients": n,
            "clients_per_round": COHORT.clients_per_round,
            "repeats": options.repeats,
            "round_seconds": summary(times[str(n)]),
            "ratio": summary(ratios),
            "dealing_seconds": summary(deals[str(n)]),
            "start_seconds": significant(statistics.median(starts[n])),
            "dealing_bytes": peak_bytes(partial(dealt, given[n], n), device),
            "peak_bytes": peak_of_process(n),
            "data_bytes": given[n].inputs.nbytes + given[n].targets.nbytes,
            **written(data[n], options.rounds),
        }
        emit("many_clients", row, device)


if __name__ == "__main__":
    main()
