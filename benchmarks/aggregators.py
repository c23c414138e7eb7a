"""Seconds and memory of each server rule, against FedAvg, one read of the updates and a trimmed mean by `torch.sort`.

    OMP_NUM_THREADS=1 python -m benchmarks.aggregators

A rule has to read the updates once and to write one vector. The bytes of that over its seconds, as a share of the bandwidth of
a copy of the updates, are `of_copy_bandwidth`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from copy import copy
from functools import partial

import torch

from benchmarks.common import alternate, emit, peak_bytes, significant, summary, timed
from benchmarks.plain_loop import sorted_trimmed_mean
from fl_lightning import aggregators
from fl_lightning.aggregators import (
    FLARE,
    Aggregator,
    Bucketing,
    DeepSight,
    FLDetector,
    Invariant,
    MeanVarianceRatio,
    NearestNeighborMixing,
    TrimmedMean,
)
from fl_lightning.machine.heap import keep_freed_memory
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.examined import Examined
from fl_lightning.updates.layers import Layer, layers_of
from fl_lightning.updates.trimming import COMPILED_ROWS


def rules(num_clients: int) -> list[Aggregator]:
    """Every rule with its defaults; a fifth of the clients is assumed malicious, the wrappers are put around a trimmed mean."""
    made: list[Aggregator] = [Bucketing(rule=TrimmedMean()), NearestNeighborMixing(rule=TrimmedMean())]
    plain = sorted({*aggregators.__all__} - {"Aggregator", "Bucketing", "NearestNeighborMixing"})
    made += [getattr(aggregators, name)() for name in plain]
    for rule in made:
        rule.expect(num_clients // 5)
    return made


CLASSES, FEATURES, SAMPLES = 10, 64, 100
"""Of the output layer, and of the root set, for rules that look at submitted models."""


def looked_at(shard: UpdateShard, rule: Aggregator) -> UpdateShard:
    """The shard for a rule that looks at models, which have been looked at already: `benchmarks.examination` times that.

    The last coordinates are the output layer.
    """
    if not isinstance(rule, (DeepSight, FLARE)):
        return shard
    numbers = 3 * CLASSES if isinstance(rule, DeepSight) else SAMPLES * FEATURES
    shard = copy(shard)
    head = CLASSES * (FEATURES + 1)
    shapes = [(shard.num_coordinates - head,), (CLASSES, FEATURES), (CLASSES,)]
    shard.layers = layers_of(["", "head.weight", "head.bias"], shapes)
    measured = torch.rand(shard.num_clients + 1, numbers, generator=torch.Generator().manual_seed(0)).to(shard.weights.device)
    shard.examination = lambda _: Examined(measured[1:], measured[0])
    return shard


def one_matrix(size: int) -> Layer:
    """A parameter tensor of so many elements, as square as can be, for rules that look at shapes."""
    rows = next(rows for rows in range(math.isqrt(size), 0, -1) if size % rows == 0)
    return Layer("weight", (rows, size // rows), 0)


def begin(rule: Aggregator, shard: UpdateShard) -> None:
    """Have a rule that predicts updates from earlier rounds see as many as it needs."""
    if isinstance(rule, FLDetector):
        for _ in range(rule.warmup_rounds + rule.window):
            rule(shard)


def in_a_row(run: Callable[[], object], device: torch.device) -> int:
    """Calls that a GPU is given one after the other: a hundredth of a second's, ten at most.

    One by itself would have the time in it that Python takes to launch it.
    """
    return max(1, min(10, round(0.01 / timed(run, device)()))) if device.type == "cuda" else 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of each rule on (clients, coordinates) updates.")
    parser.add_argument("--sizes", nargs="+", default=["20x40000", "20x1000000"], help="clients x coordinates")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    keep_freed_memory()  # as a federation does
    device = torch.device(options.device)
    for size in options.sizes:
        n, d = map(int, size.split("x"))
        draws = torch.Generator().manual_seed(0)
        shard = UpdateShard.from_updates(torch.randn(n, d, generator=draws).to(device))
        shard.root = shard.mean()  # in place of the server's own update, for rules that ask for one
        shard.broadcast = shard.root  # and of the global weights
        shard.layers = [one_matrix(d)]
        made = rules(n)
        candidates = {type(rule).__name__: partial(rule, looked_at(shard, rule)) for rule in made}
        on_compiled = UpdateShard.from_updates(shard.values)
        on_compiled.compiled = True
        by_kernel = [Invariant(tau=0.2, alpha=0.25), MeanVarianceRatio(alpha=0.25)] if n <= COMPILED_ROWS else []
        compiled = {f"{type(rule).__name__}, compiled": partial(rule, on_compiled) for rule in by_kernel}
        candidates |= compiled
        copied = torch.empty_like(shard.values)
        candidates["copy"] = partial(copied.copy_, shard.values)
        candidates["one read"] = partial(torch.mv, shard.values, torch.ones(d, device=device))
        candidates["torch.sort, trimmed mean"] = partial(sorted_trimmed_mean, shard.values, -(-n // 4))
        for name in (*compiled, "copy"):  # compiles, and has the system hand out the memory
            candidates[name]()
        # Before anything ran, so that no rule finds memory that another has freed.
        peaks = {name: peak_bytes(run, device) for name, run in candidates.items()}
        for rule in made:
            begin(rule, shard)
        clocks = {name: timed(run, device, in_a_row(run, device)) for name, run in candidates.items()}
        seconds = {name: summary(values) for name, values in alternate(clocks, repeats=options.repeats).items()}
        for name, of_rule in seconds.items():
            row = {
                "rule": name,
                "clients": n,
                "coordinates": d,
                "seconds": of_rule,
                "of_copy_bandwidth": significant((n + 1) / (2 * n) * seconds["copy"]["median"] / of_rule["median"]),
                "of_fedavg": significant(of_rule["median"] / seconds["FedAvg"]["median"]),
                "of_one_read": significant(of_rule["median"] / seconds["one read"]["median"]),
                "of_torch_sort": significant(of_rule["median"] / seconds["torch.sort, trimmed mean"]["median"]),
                "peak_mb": significant(peaks[name] / 2**20),
                "of_updates": significant(peaks[name] / (4 * n * d)),
                "repeats": options.repeats,
            }
            emit("aggregators", row, device)


if __name__ == "__main__":
    main()
