"""How clients' local steps are taken: as the module has them, or recorded and replayed.

Both give the same bits, so the choice is free. It is made by measurement: once local training has taken a second, one client is
trained in both ways, and the faster one goes on if the weights are equal to the bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from fl_lightning.data.base import Samples
from fl_lightning.local_training import LocalTraining
from fl_lightning.recorded_steps import NotRecordableError, RecordedSteps
from fl_lightning.updates.layout import Snapshot, named_state

log = logging.getLogger(__name__)

SECONDS_BEFORE_TRIAL = 1.0
"""Of sequential training, before a way that has to be prepared is tried: short runs are over before that would pay."""


class LocalExecutor:
    """Trains clients in one module, one after the other.

    Args:
        module: trained in place.
        local: how a client trains, and which executor is asked for.

    Attributes:
        chosen: `sequential` or `graph`; None while `auto` has not measured yet.
        reason: why `chosen` was, in a few words.
        start: what clients start from; set it whenever that changes.
    """

    def __init__(self, module: L.LightningModule, local: LocalTraining) -> None:
        self.module, self.local = module, local
        self.recorded: RecordedSteps | None = None
        self.chosen: Literal["sequential", "graph"] | None = None
        self.reason = "asked for"
        self.start = Snapshot(module)
        self.seconds = 0.0
        if local.executor == "graph":
            self.chosen = "graph"
        elif local.executor != "auto":
            self.chosen = "sequential"

    def train(
        self,
        samples: Samples,
        generator: torch.Generator,
        after_step: Callable[[int, int], None] | None = None,
        steps: int | None = None,
    ) -> dict[str, float]:
        """As `LocalTraining.train`, in the module, from the weights that it holds."""
        if self.chosen == "sequential":
            return self.local.train(self.module, samples, generator, after_step, steps)
        if self.chosen == "graph":
            return self._replay(samples, generator, after_step, steps)
        if self.seconds > SECONDS_BEFORE_TRIAL and after_step is None and steps is None and len(samples):
            return self._try(samples, generator)
        began = time.perf_counter()
        logs = self.local.train(self.module, samples, generator, after_step, steps)
        self.seconds += time.perf_counter() - began
        return logs

    def _replay(self, samples: Samples, generator: torch.Generator, *how: Any) -> dict[str, float]:
        """By recorded steps; sequentially, from the start and from now on, where a step cannot be recorded."""
        draws, global_draws = generator.get_state(), _collect_rng_states()
        try:
            if self.recorded is None:
                self.recorded = RecordedSteps(self.module, self.local)
            return self.local.train(self.module, samples, generator, *how, stepper=self.recorded)
        except NotRecordableError as error:
            self._choose("sequential", f"steps of {type(self.module).__name__} are not recorded: {error}")
        self.start.restore(self.module)
        generator.set_state(draws)
        _set_rng_states(global_draws)
        return self.local.train(self.module, samples, generator, *how)

    def _try(self, samples: Samples, generator: torch.Generator) -> dict[str, float]:
        """Train a client in both ways, from the same draws, and choose. The module ends as sequential training leaves it."""
        draws, name = generator.get_state(), type(self.module).__name__

        def timed(stepper: RecordedSteps | None) -> tuple[float, list[Tensor], dict[str, float]]:
            self.start.restore(self.module)
            generator.set_state(draws)
            self._wait()
            began = time.perf_counter()
            with isolate_rng():
                logs = self.local.train(self.module, samples, generator, stepper=stepper)
            self._wait()
            return time.perf_counter() - began, [tensor.clone() for _, tensor in named_state(self.module)], logs

        python = python_state(self.module)
        try:
            recorded = RecordedSteps(self.module, self.local)
            for _ in range(2):  # the first time is for recording
                seconds, found, _ = timed(recorded)
        except NotRecordableError as error:
            self._choose("sequential", f"steps of {name} are not recorded: {error}")
            return timed(None)[2]
        of_sequential, expected, logs = timed(None)
        changed = [key for key, value in python_state(self.module).items() if python.get(key) != value]
        if changed:
            self._choose("sequential", f"steps of {name} are not recorded: its {changed[0]} changes as it trains")
        elif not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
            self._choose("sequential", f"recorded steps of {name} give other bits")
        elif seconds >= of_sequential:
            self._choose("sequential", f"recorded steps of {name} take {seconds / of_sequential:.2f} times as long")
        else:
            self.recorded = recorded
            self._choose("graph", f"recorded steps of {name} take {seconds / of_sequential:.2f} times as long")
        return logs

    def _choose(self, executor: Literal["sequential", "graph"], reason: str) -> None:
        self.chosen, self.reason = executor, reason
        if executor == "sequential":
            self.recorded = None  # and its memory
        wanted = self.local.executor == "graph"
        log.log(logging.WARNING if wanted else logging.INFO, "local training is %s: %s", executor, reason)

    def _wait(self) -> None:
        device = next(self.module.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def python_state(module: nn.Module) -> dict[str, Any]:
    """What a module's steps might change beside tensors: plain attributes, and how long its lists are, by name."""
    found: dict[str, Any] = {}
    for place, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, (bool, int, float, str)):
                found[f"{place}.{name}".lstrip(".")] = value
            elif isinstance(value, (list, dict, set)) and not name.startswith("_"):
                found[f"{place}.{name}".lstrip(".")] = len(value)
    return found
