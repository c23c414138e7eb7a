"""Client updates per second of `Federation` on several ranks, against one rank of the same machine.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling

Runs on one rank and on several are started in turn, each as torchrun would; a run times its own rounds, without its start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import torch

from benchmarks.common import alternate, emit, significant, summary
from benchmarks.rounds import BATCH_SIZE, SEED, Stopwatch, images, phishing
from fl_lightning import CohortSampler, Federation, LocalTraining
from fl_lightning.aggregators import Invariant
from fl_lightning.cli import quiet
from fl_lightning.data import IID
from fl_lightning.machine.launched import launched
from fl_lightning.models import CNN, MLP
from fl_lightning.updates import parameter_layout

TASKS = {  # clients per round, and rounds before and after the clock starts
    "mlp": (20, 40, 60),
    "cnn": (8, 1, 1),
}


def one_run(task: str, result: Path) -> None:
    """Train on the ranks that this process is one of; rank 0 writes the seconds."""
    clients, warm, rounds = TASKS[task]
    torch.manual_seed(SEED)
    mlp = task == "mlp"
    model, data = (MLP(), phishing()) if mlp else (CNN(channels_last=True), images(IID(num_clients=10), 5_000))
    federation = Federation(
        model,
        Invariant(tau=0.6, alpha=0.25),
        cohort=CohortSampler(clients_per_round=clients, malicious_fraction=0.0),
        local=LocalTraining(batch_size=BATCH_SIZE),
        seed=SEED,
    )
    stopwatch = Stopwatch(warm, parameter_layout(model).flatten(model))
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="federated",
        max_epochs=warm + rounds,
        callbacks=[stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **launched(),  # pyrefly: ignore[bad-argument-type]
    )
    trainer.fit(federation, datamodule=data)
    if trainer.is_global_zero:
        result.write_text(json.dumps({"seconds": stopwatch.seconds, "executor": federation.clients.way}))


def main() -> None:
    parser = argparse.ArgumentParser(description="Federation on several ranks against one.")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", nargs=2, metavar=("TASK", "FILE"), help="one run, as this script starts itself")
    options = parser.parse_args()
    quiet()
    if options.worker:
        one_run(options.worker[0], Path(options.worker[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for task, (clients, _, rounds) in TASKS.items():
            result = Path(folder) / task

            def seconds(ranks: int, task: str = task, result: Path = result) -> float:
                command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
                command += ["-m", "benchmarks.scaling", "--worker", task, str(result)]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
                return json.loads(result.read_text())["seconds"]

            runs = {"one": lambda: seconds(1), "several": lambda: seconds(options.ranks)}
            measured = alternate(runs, repeats=options.repeats, warm_up=0)
            rates = {name: [clients * rounds / s for s in found] for name, found in measured.items()}
            ratios = [several / one for several, one in zip(rates["several"], rates["one"], strict=True)]
            row = {"task": task, "ranks": options.ranks, "clients_per_round": clients, "rounds": rounds}
            row |= {"executor": json.loads(result.read_text())["executor"], "ratio": summary(ratios)}
            row |= {f"{name}_updates_per_second": summary(rate) for name, rate in rates.items()}
            of_fastest = significant(max(rates["several"]) / max(rates["one"]))  # least disturbed
            emit("scaling", row | {"repeats": options.repeats, "of_fastest": of_fastest}, torch.device("cpu"))


if __name__ == "__main__":
    main()
