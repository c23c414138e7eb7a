"""What clients log while they train: averaged over the steps of each, then over the clients of a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric


class LogCollector:
    """Takes the place of `LightningModule.log` while a client trains; keeps sums on a GPU, so steps never wait.

    Args:
        traced: whether what is logged is followed by a tracer, and has no values yet.
    """

    plain_numbers = False  # whether some were logged that are no tensors

    def __init__(self, *, traced: bool = False) -> None:
        self.traced = traced
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}
        self.metrics: dict[str, Metric] = {}

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        if isinstance(value, Tensor):  # which is asked first, as it is soon seen and most are
            # Nobody waits for a CPU's, and numbers are added in no time.
            value = value.item() if value.is_cpu and not self.traced else value.detach()
        elif isinstance(value, Metric):
            self.metrics[name] = value
            return
        else:
            self.plain_numbers = True
            value = float(value)
        if name in self.sums:
            self.sums[name] = self.sums[name] + value
        else:  # a copy, as a tensor that the module goes on to change may be logged
            self.sums[name] = value.clone() if isinstance(value, Tensor) else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def log_steps(self, name: str, values: list[Tensor]) -> None:
        """Values of one step after the other, on one device, as `log` adds them up."""
        if not values[0].is_cpu:
            for value in values:
                self.log(name, value)
            return
        total = self.sums.get(name, 0.0)
        for value in values:
            total += value.item()
        self.sums[name], self.counts[name] = total, self.counts.get(name, 0) + len(values)

    def averages(self) -> dict[str, float]:
        averages = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        return averages | {name: float(metric.compute()) for name, metric in self.metrics.items()}


def log_together(logs: Sequence[LogCollector], name: str, values: list[Tensor]) -> None:
    """A value of a step of each of several clients, on a GPU by one launch; the values may be written over afterwards."""
    sums = [total for total in (log.sums.get(name) for log in logs) if isinstance(total, Tensor)]
    if len(sums) == len(logs) and all(total.dtype == value.dtype for total, value in zip(sums, values, strict=True)):
        torch._foreach_add_(sums, values)
        for log in logs:
            log.counts[name] += 1
    else:
        for log, value in zip(logs, values, strict=True):
            log.log(name, value)


@contextmanager
def collected_logs(
    module: L.LightningModule, parts: Iterable[nn.Module] | None = None, *, traced: bool = False
) -> Iterator[LogCollector]:
    """Send `self.log` of the module to a collector; `parts` are all of its parts, where they are at hand."""
    collector = LogCollector(traced=traced)
    with logs_to(module, collector.log, parts):
        yield collector


@contextmanager
def logs_to(
    module: L.LightningModule, function: Callable[..., None], parts: Iterable[nn.Module] | None = None
) -> Iterator[None]:
    """Call `function` in place of `log` of the module and the LightningModules in it, also if another stands there already."""
    owners = [part.__dict__ for part in (module.modules() if parts is None else parts) if "_trainer" in part.__dict__]
    before = [owner.get("log") for owner in owners]
    for owner in owners:
        owner["log"] = function  # shadows the method, also for self.log_dict, which calls it
    try:
        yield
    finally:
        for owner, shadowed in zip(owners, before, strict=True):
            del owner["log"]
            if shadowed is not None:
                owner["log"] = shadowed


def sort_logs(of_ranks: list[list[tuple[int, dict[str, float]]]]) -> list[dict[str, float]]:
    """What each client of the cohort logged, in cohort order, so that the number of ranks does not show.

    Args:
        of_ranks: per rank, (position in the cohort, metrics) of its clients.
    """
    return [metrics for _, metrics in sorted((entry for rank in of_ranks for entry in rank), key=lambda entry: entry[0])]


def average_logs(of_clients: list[dict[str, float]]) -> dict[str, float]:
    """The average of what clients logged, each name over those who did."""
    values: dict[str, list[float]] = defaultdict(list)
    for metrics in of_clients:
        for name, value in metrics.items():
            values[f"client/{name}"].append(value)
    return {name: sum(of_name) / len(of_name) for name, of_name in values.items()}
