"""How clients' local steps are taken: as the module has them, or recorded and replayed.

Both give the same bits, so the choice is free. `auto` makes it by measurement: once local training has taken a second, one
client is trained in both ways, and the faster one goes on if weights and logs are equal to the bit. Where recorded steps paid
in a run before (`trials`), the first client is, and they go on if the bits are equal. As what a step takes from elsewhere in
Python may change later, `auto` records only modules whose class says `recordable = True`; the package's own do. `graph` records
any module, if the first client's weights and logs are equal to the bit.

On a GPU libraries add up in any order unless told not to (`Trainer(deterministic=True)`), and a client trained twice ends with
two results. Recorded steps must then come as close to one of them as the other does, but for a factor of `MOST_NOISE`, and
these two have to lie close together.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from fl_lightning.attacks.base import Stage
from fl_lightning.data.base import Samples
from fl_lightning.errors import cause, enumerated
from fl_lightning.modules.kept_python import KeptPython
from fl_lightning.modules.recordable import is_recordable, python_state
from fl_lightning.modules.structure import Structure
from fl_lightning.modules.traced_graphs import NotRecordableError
from fl_lightning.training.idle_clients import Taken
from fl_lightning.training.local_training import Follower, LocalTraining
from fl_lightning.training.optimizers import Configure, LocalScheduler, configured
from fl_lightning.training.recorded_steps import RecordedSteps
from fl_lightning.training.recordings import RECORD_AFTER
from fl_lightning.training.trials import TRIALS, kind_of
from fl_lightning.updates.layout import Snapshot, named_state

log = logging.getLogger(__name__)

SECONDS_BEFORE_TRIAL = 1.0
"""Of sequential training, before a way that has to be prepared is tried: short runs are over before that would pay."""

MOST_NOISE = 4.0
"""How much further from sequential training recorded steps may end than another sequential one, where that differs."""

LARGEST_NOISE = 0.01
"""Of the way from start to end: two sequential trainings that are further apart draw from somewhere, which is no rounding."""

Draws = Callable[[], torch.Generator]
"""Seeds the global generators for a client and gives its own; the same at every call, as training may have to begin again."""


class LocalExecutor:
    """Trains clients in one module, one after the other.

    Args:
        module: trained in place, or by recorded steps on copies of its parameters.
        local: how a client trains, and which executor is asked for.
        configure: makes a client's optimizer.

    Attributes:
        start: what clients start from, where they train; set in every round.
        ahead: whether what the last client ended with, but for buffers, is in `weights` alone, and the module's parameters are
            as they were.
        taken: what became of the batches that were taken as the module has them.
        chosen: `sequential` or `graph`; None while that is open.
        known_to_pay: whether recorded steps were faster in runs before this one.
        reason: why, in a few words.
    """

    def __init__(self, module: L.LightningModule, local: LocalTraining, configure: Configure = configured) -> None:
        self.module, self.local, self.configure = module, local, configure
        self._start: Snapshot | None = None
        self.ahead = False
        self.recorded: RecordedSteps | None = None
        self.kept: KeptPython | None = None
        self.structure: Structure | None = None  # as long as nobody but clients' steps has had the module in hands
        self.told: set[str] = set()
        self.chosen: Literal["sequential", "graph"] | None = None
        self.reason = "asked for"
        self.seconds = 0.0
        self.taken = Taken()
        if local.executor in ("sequential", "stacked"):
            self.chosen = "sequential"
        elif local.executor == "auto" and not is_recordable(module):
            self._choose("sequential", f"{type(module).__name__} does not say that it is recordable")
        self.known_to_pay = self.chosen is None and local.executor == "auto" and TRIALS.pays(kind_of(module, local))

    def __getstate__(self) -> dict[str, Any]:
        """For copies: recordings belong to the module that they were made for."""
        undone = {
            "recorded": None,
            "kept": None,
            "structure": None,
            "ahead": False,
            "chosen": None if self.recorded is not None else self.chosen,
        }
        return {**vars(self), **undone}

    @property
    def start(self) -> Snapshot | None:
        return self._start

    @start.setter
    def start(self, start: Snapshot | None) -> None:
        self._start = start
        self.look_anew()
        if start is not None and (self.kept is None or any(self.kept.changes())):
            self.kept = KeptPython({"": self.module})

    def look_anew(self) -> None:
        """Others than clients' steps have had the module in hands, and may have changed more than its values."""
        self.ahead = False
        self.structure = None
        if self.recorded is not None:
            self.recorded.known = False

    @property
    def weights(self) -> list[Tensor]:
        """The trainable parameters that the last client ended with, in the order of `parameter_layout`."""
        if self.ahead and self.recorded is not None:
            return self.recorded.weights
        return [parameter.detach() for parameter in self.module.parameters() if parameter.requires_grad]

    def start_anew(self) -> None:
        """Have the module hold what the next client starts from."""
        assert self.start is not None, "clients start from somewhere"
        if not self.ahead or len(self.start) > len(self.weights):
            self.start.restore(self.module)
        self.put_back()
        self.ahead = False

    def put_back(self) -> None:
        """Undo what the last client has changed in Python beside its tensors, and say so once."""
        changed = [] if self.kept is None else self.kept.restore()
        if changed:
            self.structure = None
        if new := sorted({*changed} - self.told):
            self.told.update(new)
            log.warning(
                "the client %s changes %s as it trains, which is put back after every client, as clients keep no state",
                type(self.module).__name__,
                enumerated(new),
            )

    def train(
        self,
        samples: Samples,
        draws: Draws,
        after_step: Callable[[int, int], None] | None = None,
        steps: int | None = None,
        follower: Follower | None = None,
        stage: Stage | None = None,
    ) -> dict[str, float]:
        """As `LocalTraining.train`, from what the module holds; what comes of it is in `weights`, and the module's buffers.

        A `follower` needs Python in every step: its client is trained sequentially, and tells nothing of the others. It alone
        may have a `stage`, which says for itself how long and by what optimizer it trains.
        """
        self.ahead = False
        if follower is not None:
            self.look_anew()
            logs = self._train(samples, draws(), after_step, steps, stage=stage, follower=follower)
            self.structure = None  # attacks have more to do with the module
            return logs
        if self.chosen == "graph":
            return self._replay(samples, draws, after_step, steps)
        patient = self.local.executor == "auto" and self.seconds < SECONDS_BEFORE_TRIAL and not self.known_to_pay
        if self.chosen is None and not patient and after_step is None and steps is None and len(samples):
            return self._try(samples, draws)
        began = time.perf_counter()
        logs = self._train(samples, draws(), after_step, steps, taken=self.taken)
        self.seconds += time.perf_counter() - began
        return logs

    def _train(self, *arguments: Any, stage: Stage | None = None, **named: Any) -> dict[str, float]:
        """`LocalTraining.train` of the module."""
        local, configure = self.local, self.configure
        if stage is not None and stage.epochs is not None:
            local = replace(local, epochs=stage.epochs)
        if stage is not None and stage.optimizer is not None:
            made = stage.optimizer, LocalScheduler(stage.scheduler)
            configure = lambda _: made  # noqa: E731
        if self.structure is None:
            self.structure = Structure(self.module)
        return local.train(self.module, *arguments, configure=configure, structure=self.structure, **named)

    def _replay(
        self, samples: Samples, draws: Draws, after_step: Callable[[int, int], None] | None, steps: int | None
    ) -> dict[str, float]:
        """By recorded steps; sequentially, from the start and from now on, where that fails."""
        assert self.start is not None, "clients start from somewhere"
        assert self.recorded is not None, "graph has been chosen"
        try:
            self.recorded.lazy = after_step is None  # which wants to see the module
            logs = self._train(samples, draws(), after_step, steps, stepper=self.recorded)
            self.recorded.known = self.ahead = self.recorded.lazy
            return logs
        except Exception as error:  # a mistake of the user's own comes again below
            self._choose("sequential", self._refusal(error))
        self.start.restore(self.module)
        self.put_back()
        return self._train(samples, draws(), after_step, steps, taken=self.taken)

    def _try(self, samples: Samples, draws: Draws) -> dict[str, float]:
        """Train a client in both ways, from the same draws, and choose. The module ends as sequential training leaves it."""
        assert self.start is not None, "clients start from somewhere"
        start, name = self.start, type(self.module).__name__

        def timed(stepper: RecordedSteps | None) -> tuple[float, list[Tensor], dict[str, float]]:
            start.restore(self.module)
            self.put_back()
            self._wait()
            began = time.perf_counter()
            taken = self.taken if stepper is None else None
            logs = self._train(samples, draws(), stepper=stepper, taken=taken)
            self._wait()
            return time.perf_counter() - began, [tensor.clone() for _, tensor in named_state(self.module)], logs

        python = python_state(self.module)
        try:
            if self.kept is not None and self.kept.generators:
                raise NotRecordableError(f"it draws from a generator of its own, {next(iter(self.kept.generators))}")
            recorded = RecordedSteps(self.module, self.local)
            for _ in range(RECORD_AFTER + 1):  # by then every shape of its batches is recorded
                timed(recorded)
            seconds, found, found_logs = timed(recorded)
        except Exception as error:
            self._choose("sequential", self._refusal(error))
            return timed(None)[2]
        of_sequential, expected, logs = timed(None)
        changed = [key for key, value in python_state(self.module).items() if python.get(key) != value]
        same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)) and found_logs == logs
        if not same and adds_in_any_order(found[0].device):
            _, again, logs = timed(None)
            same = agree(found, expected, again, start.tensors) and found_logs.keys() == logs.keys()
        if TRIALS.tell is not None:
            TRIALS.tell(kind_of(self.module, self.local), seconds, of_sequential)
        took = f"recorded steps of {name} take {seconds / of_sequential:.2f} times as long"
        if changed:
            self._choose("sequential", f"steps of {name} are not recorded: its {changed[0]} changes as it trains")
        elif not same:
            self._choose("sequential", f"recorded steps of {name} give other bits")
        elif seconds >= of_sequential and self.local.executor == "auto" and not self.known_to_pay:
            self._choose("sequential", took)
        else:
            self.recorded = recorded
            self.recorded.recordings.thrifty = True
            self._choose("graph", took)
        return logs

    def _refusal(self, error: Exception) -> str:
        return f"steps of {type(self.module).__name__} are not recorded: {cause(error, NotRecordableError)}"

    def _choose(self, executor: Literal["sequential", "graph"], reason: str) -> None:
        self.chosen, self.reason = executor, reason
        if executor == "sequential":
            self.recorded = None  # and its memory
        failed = self.local.executor == "graph" and executor == "sequential"
        log.log(logging.WARNING if failed else logging.INFO, "local training is %s: %s", executor, reason)

    def _wait(self) -> None:
        device = next(self.module.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def adds_in_any_order(device: torch.device) -> bool:
    """Whether the same operations may give other bits the next time."""
    return device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()


def agree(found: list[Tensor], expected: list[Tensor], again: list[Tensor], start: list[Tensor]) -> bool:
    """Whether a training ends where others may, of which two ended at `expected` and `again`; whole numbers are the same."""
    if any(not a.is_floating_point() and not torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
        return False
    noise, way = distance(again, expected), distance(start, expected)
    return noise <= LARGEST_NOISE * way and 0 < distance(found, expected) <= MOST_NOISE * noise


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    """The Euclidean distance of what two modules hold."""
    pairs = [(a, b) for a, b in zip(some, others, strict=True) if a.is_floating_point()]
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in pairs))
