"""CPU seconds of server rules in another checkout and in this one, measured in turn.

    OMP_NUM_THREADS=1 python -m benchmarks.in_turn --before ../before --sizes 1000x100000 --rules Krum Bulyan

Each checkout has a process of its own, which keeps its updates and answers one call at a time, so that a change of the
machine's load meets both alike. A fifth of the clients is assumed malicious; NearestNeighborMixing and Bucketing are put around
a trimmed mean. `ratio` is the smallest of `before` over the smallest of `after`; `same` tells whether both gave the same bits,
`apart` how far the results are from each other, as a share of the largest entry.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch

from benchmarks.common import emit, significant

CHILD = """
import json, sys, time
import numpy as np
import torch
from fl_lightning import aggregators
from fl_lightning.machine.heap import keep_freed_memory
from fl_lightning.updates import UpdateShard

torch.set_num_threads(1)
keep_freed_memory()
shard = None
for line in sys.stdin:
    n, d, name, file = json.loads(line)
    if shard is None or (shard.num_clients, shard.width) != (n, d):
        shard = UpdateShard.from_updates(torch.randn(n, d, generator=torch.Generator().manual_seed(0)))
        shard.root = shard.mean()
    make = getattr(aggregators, name)
    rule = make(rule=aggregators.TrimmedMean()) if name in ("Bucketing", "NearestNeighborMixing") else make()
    rule.expect(n // 5)
    began = time.process_time()
    found = rule(shard)
    seconds = time.process_time() - began
    np.save(file, found.numpy())
    print(json.dumps(seconds), flush=True)
"""


class Checkout:
    """A process that runs the rules of a checkout."""

    def __init__(self, folder: Path) -> None:
        variables = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=folder, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, n: int, d: int, rule: str, file: Path) -> float:
        """CPU seconds of one call, whose result is saved in `file`."""
        asked, answers = _pipes(self.process)
        asked.write(json.dumps([n, d, rule, str(file)]) + "\n")
        asked.flush()
        return float(json.loads(answers.readline()))


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Rules of two checkouts in turn.")
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--sizes", nargs="+", default=["1000x100000"], help="clients x coordinates")
    parser.add_argument("--rules", nargs="+", default=["Krum", "MultiKrum", "NearestNeighborMixing", "Bucketing", "Bulyan"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    checkouts = {
        "before": Checkout(options.before.resolve()),
        "after": Checkout(Path(__file__).resolve().parent.parent),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.npy" for name in checkouts}
        for size in options.sizes:
            n, d = map(int, size.split("x"))
            for rule in options.rules:
                least = dict.fromkeys(checkouts, float("inf"))
                for _ in range(options.repeats):
                    for name, checkout in checkouts.items():
                        least[name] = min(least[name], checkout.seconds(n, d, rule, files[name]))
                before, after = (np.load(files[name]) for name in ("before", "after"))
                row = {
                    "rule": rule,
                    "clients": n,
                    "coordinates": d,
                    "cpu_seconds": {name: significant(seconds) for name, seconds in least.items()},
                    "ratio": significant(least["before"] / least["after"]),
                    "same": before.tobytes() == after.tobytes(),
                    "apart": significant(float(np.abs(before - after).max() / np.abs(before).max())),
                    "repeats": options.repeats,
                }
                emit("in_turn", row, torch.device("cpu"))
    for checkout in checkouts.values():
        checkout.process.communicate()


if __name__ == "__main__":
    main()
