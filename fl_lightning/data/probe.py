"""Inputs on which a rule looks at the models that clients submit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from fl_lightning.checked import real, whole
from fl_lightning.data.base import Samples, TensorSamples
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.steady_reading import SteadyReading
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator


@dataclass(frozen=True)
class Noise:
    """Inputs of the task's shape whose numbers are drawn uniformly from [low, high), anew in every round.

    Models see the numbers as they are: they stand for inputs that are scaled and normalised already.

    Attributes:
        samples: how many, at least 1.
        low: the least number.
        high: more than `low`.

    Example:
        >>> Noise(samples=20_000)
        Noise(samples=20000, low=0.0, high=1.0)
    """

    samples: int = 2000
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        low, high = real("Noise.low", self.low), real("Noise.high", self.high)
        vars(self).update(samples=whole("Noise.samples", self.samples, 1), low=low, high=high)  # frozen from here on
        if not -math.inf < low < high < math.inf:
            raise ConfigurationError(f"Noise needs numbers with low < high, got {low} and {high}; 0 and 1 are usual")


Probe = Noise | Samples | Tensor | Literal["root"] | None
"""Noise, the server's root set, samples or inputs (P, ...) of the rule's own, or none."""


class ProbeBatches:
    """A round's probe in batches, the same for every model and on every rank. May be gone through again and again.

    Batches are as `training_step` takes them, on the training device, of `data.eval_batch_size` samples. Where there are inputs
    alone, as of noise, they are `(inputs, targets)` with all targets 0.

    Args:
        probe: what is asked for.
        data: the task, after its setup.
        device: where batches are wanted.
        seed: the experiment's seed.

    Attributes:
        round_number: t; noise is that of this round.
    """

    def __init__(self, probe: Probe, data: FederatedDataModule, device: torch.device, seed: int) -> None:
        self.device, self.seed, self.batch_size, self.round_number = device, seed, data.eval_batch_size, 0
        self._noise = probe if isinstance(probe, Noise) else None
        self._like = input_like(data) if isinstance(probe, Noise) else torch.empty(0)
        samples = data.root_samples if isinstance(probe, str) else probe
        if isinstance(samples, Tensor):
            samples = TensorSamples(samples, torch.zeros(len(samples), dtype=torch.int64, device=samples.device))
        self._samples = samples.to(device) if isinstance(samples, Samples) else None

    def __len__(self) -> int:
        """P, the number of samples."""
        return self._noise.samples if self._noise is not None else 0 if self._samples is None else len(self._samples)

    def __iter__(self) -> Iterator[Any]:
        reading = None if self._samples is None else SteadyReading(self._samples, self.seed, -1)
        for number, indices in enumerate(torch.arange(len(self)).split(self.batch_size) if len(self) else ()):
            batch = self._draw(len(indices), number) if reading is None else reading.batch(indices, number)
            yield move_data_to_device(batch, self.device)

    def _draw(self, b: int, number: int) -> tuple[Tensor, Tensor]:
        """Noise for a batch."""
        assert self._noise is not None
        draws = generator(self.seed, "probe", self.round_number, number)
        drawn = torch.rand(b, *self._like.shape, generator=draws, dtype=self._like.dtype)
        low, high = self._noise.low, self._noise.high
        return drawn.mul_(high - low).add_(low), torch.zeros(b, dtype=torch.int64)


def input_like(data: FederatedDataModule) -> Tensor:
    """An input of the task as its model gets it, without the batch's axis.

    Raises:
        ConfigurationError: it is no tensor of real numbers.
    """
    batch = SteadyReading(data.train, data.seed, -1).batch(torch.zeros(1, dtype=torch.int64), 0)
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        found = f"{inputs.dtype}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
        raise ConfigurationError(
            f"a probe of Noise needs inputs that are tensors of real numbers, but the task's are {found}; use the root set as "
            "the probe, or samples of your own"
        )
    return inputs[0].detach().cpu()


def check_probe(probe: Any, data: FederatedDataModule, who: str) -> None:
    """Raise `ConfigurationError` unless a rule's probe is one, and there is what it asks for.

    Args:
        probe: what `Aggregator.probe` is.
        data: after its setup.
        who: the rule's name.
    """
    if isinstance(probe, Noise):
        input_like(data)
    elif isinstance(probe, str) and probe == "root":
        if data.root_samples is None:
            raise ConfigurationError(
                f"{who} examines models on clean samples of the server's own; set data.root, for example {{samples: 100}}, to "
                "keep some training samples from the clients"
            )
    elif probe is not None and not isinstance(probe, (Samples, Tensor)):
        raise ConfigurationError(
            f'{who}.probe must be Noise(samples=...), "root", Samples or a tensor of inputs (P, ...), got {probe!r}'
        )
