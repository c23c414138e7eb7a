"""Metrics whose value has the same bits on any number of ranks: shares, and torchmetrics objects.

Evaluation batches are the same whatever the number of ranks, but sums of floats depend on their order. So the state that each
batch leaves in a metric is kept by itself, and in the end every rank merges all of them in the order of batches.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.text import Perplexity

from fl_lightning.errors import ConfigurationError, cause
from fl_lightning.updates.gathering import gather_objects

State = dict[str, Any]
"""A metric's sums, or lists of tensors, by name."""


class Measure:
    """A metric and what it was fed with on this rank.

    Args:
        metric: a copy of it is fed.
        device: where batches are.
    """

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric = alone(metric).to(device)
        self.states: list[tuple[int, State]] = []  # by the number of the batch

    def update(self, number: int, *values: Tensor) -> None:
        """Feed it with the batch of a number, from 0 over all ranks."""
        self.metric.reset()
        self.metric.update(*values)
        self.states.append((number, state_of(self.metric)))

    @property
    def found(self) -> list[tuple[int, State]]:
        """What other ranks need of it."""
        return [(number, _on_cpu(state)) for number, state in self.states]

    def value(self, ranks: Sequence[list[tuple[int, State]]]) -> Tensor:
        """Its value, on the CPU, given what was found on every rank."""
        states = sorted((entry for found in ranks for entry in found), key=lambda entry: entry[0])
        return merged(copy.deepcopy(self.metric).cpu(), [state for _, state in states])


class Share:
    """The share of hits among what counts. Whole numbers are added up, whose sum is exact in any order.

    Args:
        device: where batches are.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)

    def update(self, number: int, hits: Tensor, counted: Tensor) -> None:
        """Another batch, of any number: of each prediction, (b,) or (b, L) bool, whether it hits and whether it counts."""
        self.counts += torch.stack([(hits & counted).sum(), counted.sum()])

    @property
    def found(self) -> list[int]:
        """What other ranks need of it: hits, and what counts."""
        return self.counts.tolist()

    def value(self, ranks: Sequence[list[int]]) -> Tensor:
        """() float64, NaN where nothing counts, given what was found on every rank."""
        hits, counted = torch.tensor(ranks, dtype=torch.float64).sum(0)
        return hits / counted


def values_of(measures: Mapping[str, Measure | Share], device: torch.device) -> dict[str, Tensor]:
    """The value () of each over the batches of all ranks, the same on every one; all ranks must ask alike."""
    ranks = gather_objects({name: measure.found for name, measure in measures.items()}, device)
    return {name: measure.value([rank[name] for rank in ranks]).to(device) for name, measure in measures.items()}


def merged(metric: Metric, states: Sequence[State]) -> Tensor:
    """The value of a metric that was fed with what left these states, one after the other."""
    metric.reset()
    for state in reversed(states):  # what is merged comes before what is there, where states are lists
        metric.merge_state(state)
    metric._update_count = len(states)  # merging does not count, and a metric without an update warns
    return metric.compute()


def state_of(metric: Metric) -> State:
    """What a metric was fed with since its reset; its next reset leaves that alone."""
    return {name: list(value) if isinstance(value, list) else value for name, value in metric.metric_state.items()}


def alone(metric: Metric) -> Metric:
    """A copy, which never asks other ranks by itself."""
    metric = copy.deepcopy(metric)
    for part in metric.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = _never
    metric.reset()
    return metric


def as_taken(metric: Metric, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What `Outcome.for_metrics` gives, as the metric takes it: perplexity wants a batch of sequences."""
    return (predictions[None], targets[None]) if isinstance(metric, Perplexity) else (predictions, targets)


def check_metric(name: str, metric: Any, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Try a metric before training.

    Args:
        name: the setting, for messages.
        metric: what was given.
        parts: predictions and targets of two batches, as `Outcome.for_metrics` gives them.

    Raises:
        ConfigurationError: it is no torchmetrics object, takes other things, gives more than one number, or its states cannot
            be merged, so that its value would depend on the number of ranks.
    """
    if not isinstance(metric, Metric):
        raise ConfigurationError(
            f"{name} must be a torchmetrics object, such as torchmetrics.classification.MulticlassF1Score(num_classes=10), got "
            f"{metric!r:.60}"
        )
    kind = type(metric).__name__
    try:
        whole = alone(metric).to(parts[0][0].device)
        for part in parts:
            whole.update(*as_taken(metric, *part))
        value = whole.compute()
    except Exception as error:  # whatever a metric may do
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in parts[0])
        raise ConfigurationError(
            f"{name}: {kind} cannot be fed with predictions and targets of shapes {shapes}: {cause(error)}; change its "
            "settings, or take another"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigurationError(f"{name}: {kind} gives {found}; it must give one number, as with average: macro")
    try:
        measure = Measure(metric, parts[0][0].device)
        for number, part in enumerate(parts):
            measure.update(number, *as_taken(metric, *part))
        again = merged(alone(metric).cpu(), [_on_cpu(state) for _, state in measure.states])
    except Exception as error:
        raise ConfigurationError(
            f"{name}: what {kind} knows of two batches cannot be merged ({cause(error)}), so that ranks could not share it; "
            "take another"
        ) from error
    if not torch.allclose(again.double().cpu(), value.double().cpu(), rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ConfigurationError(
            f"{name}: {kind} gives {value.item():.6g} for two batches in a row, but {again.item():.6g} for both merged, so "
            "that ranks could not share it; take another"
        )


def _never() -> bool:
    return False


def _on_cpu(state: State) -> State:
    return {
        name: [entry.detach().cpu() for entry in value] if isinstance(value, list) else value.detach().cpu()
        for name, value in state.items()
    }
