"""Steps that are taken by the hundred on what a module computes: recorded once, and then replayed without Python.

A step is operations on tensors, written into tensors. The first steps of a kind are taken by plain PyTorch. Once they have
taken as long as a recording does, the operations are traced, and TorchScript's interpreter repeats them: without modules,
autograd and the bookkeeping of both. They are the same operations, so the bits are the same; two steps are tried in both ways
before a recording is used.

What a module takes from Python beside tensors would be recorded as it was the first time. So only modules whose class says
`recordable = True` are, as in local training, and recordings are thrown away when a plain attribute has changed.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.func import functional_call

from fl_lightning.errors import cause
from fl_lightning.modules.hooks import hooks_in_steps
from fl_lightning.modules.recordable import aliases, is_recordable, named_tensors, python_state
from fl_lightning.modules.traced_graphs import NotRecordableError, Replay, Steps, traced

log = logging.getLogger(__name__)

LEAST_SECONDS = 0.3
"""Of steps of a kind before these are recorded, which takes about as long."""

MOST_KINDS = 64
"""Recordings of a module: more than there are sizes of batches that come up again and again."""

Forward = Callable[[nn.Module, Tensor], Tensor]
"""What is asked of the module: inputs to outputs."""

Step = Callable[..., None]
"""`step(model, *state, *leaves)`, where `model` maps inputs to outputs, writes into the state. It may take gradients."""


def take_steps(
    module: L.LightningModule,
    forward: Forward,
    step: Step,
    kind: Any,
    state: list[Tensor],
    leaves: Sequence[list[Tensor]],
) -> None:
    """Take one step after the other, on the way that is fastest. The module's own tensors are read and never changed.

    Args:
        module: as `forward` takes it, in the mode that it is to be in.
        forward: of a module, or of one with other tensors in the place of its own.
        step: what is done.
        kind: names the step and all that it depends on beside tensors.
        state: what all steps read, and write into.
        leaves: of every step, the tensors that are its own; the same number each, of the same shapes.
    """
    recordings = RECORDINGS.setdefault(module, Recordings())
    if recordings.refused is None:
        key = (kind, *((tensor.shape, tensor.dtype) for tensor in (*own_tensors(module).values(), *state, *leaves[0])))
        steps = recordings.find(module, forward, step, key, state, leaves[0])
        if steps is not None:
            with torch.no_grad(), torch.jit.optimized_execution(False):  # the operations as they were recorded
                steps(state, list(leaves))
            return
        began = time.perf_counter()
        take_plainly(module, forward, step, state, leaves)
        recordings.seconds[key] += time.perf_counter() - began
    else:
        take_plainly(module, forward, step, state, leaves)


def take_plainly(module: nn.Module, forward: Forward, step: Step, state: list[Tensor], leaves: Sequence[list[Tensor]]) -> None:
    """The steps as they are written, by plain PyTorch."""
    with torch.no_grad():
        for of_step in leaves:
            step(lambda inputs: forward(module, inputs), *state, *of_step)


class Recordings:
    """What is recorded of one module's steps.

    Attributes:
        refused: why nothing is; None as long as something may be.
        seconds: that steps of a kind have taken without a recording.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self.seconds: dict[Any, float] = defaultdict(float)
        self.by_kind: dict[Any, Steps] = {}
        self.python: dict[str, Any] = {}

    def find(
        self, module: L.LightningModule, forward: Forward, step: Step, key: Any, state: list[Tensor], leaves: list[Tensor]
    ) -> Steps | None:
        """The recording of a kind, made now if that is worth it; None where there is none."""
        if self.by_kind and python_state(module) != self.python:
            self.by_kind.clear()
        if key not in self.by_kind:
            if self.seconds[key] < LEAST_SECONDS or len(self.by_kind) >= MOST_KINDS:
                return None
            self.python = python_state(module)
            with isolate_rng():  # recording runs the step, and draws what only the step itself may draw
                try:
                    self.by_kind[key] = recorded(module, forward, step, state, leaves)
                except Exception as error:  # a mistake of the user's own comes again without a recording
                    self.refused = cause(error, NotRecordableError)
            if self.refused is not None:
                log.debug("steps on %s are taken one by one in Python: %s", type(module).__name__, self.refused)
                return None
        steps, tensors = self.by_kind[key], [tensor.detach() for tensor in own_tensors(module).values()]
        return lambda state, leaves: steps([*tensors, *state], leaves)


RECORDINGS: WeakKeyDictionary[nn.Module, Recordings] = WeakKeyDictionary()
"""For as long as the modules live."""


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by the first of their names."""
    named = list(named_tensors(module))
    first = aliases(named)
    return {name: tensor for name, tensor in named if first[name] == name}


class Called(nn.Module):
    """A module's `forward` function as a module, which is what `torch.func.functional_call` calls."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.module, self.of = module, forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self.of(self.module, inputs)


def recorded(module: L.LightningModule, forward: Forward, step: Step, state: list[Tensor], leaves: list[Tensor]) -> Steps:
    """Steps of a kind, as a function of the module's own tensors and the state.

    Raises:
        NotRecordableError: where a step is more than operations on these, or cannot be replayed to the bit.
    """
    if not is_recordable(module):
        raise NotRecordableError(f"{type(module).__name__} does not say that it is recordable")
    if state[0].is_cuda:
        raise NotRecordableError("TorchScript replays steps on a CPU alone")
    if hooks := hooks_in_steps(module):
        raise NotRecordableError(f"it has hooks of its own, which are called at every step: {', '.join(hooks)}")
    own, called = own_tensors(module), Called(module, forward)
    first = aliases(named_tensors(module))

    def function(*tensors: Tensor) -> tuple[list[Tensor], list[str]]:
        by_name = dict(zip(own, tensors, strict=False))
        given = {f"module.{name}": by_name[of] for name, of in first.items()}
        # Torch's own way to tie weights leaves modules that have two names with these tensors in them.
        step(lambda inputs: functional_call(called, given, (inputs,), tie_weights=False), *tensors[len(own) :])
        return [], []

    arguments = [*(tensor.detach() for tensor in own.values()), *state]
    graph, _, draws = traced(function, arguments, leaves)
    if draws:
        raise NotRecordableError("its step draws random numbers")
    steps = Replay(graph, arguments, leaves)
    plain, replayed = deepcopy(state), deepcopy(arguments)
    take_plainly(module, forward, step, plain, [leaves, leaves])
    with torch.no_grad(), torch.jit.optimized_execution(False):
        steps(replayed, [leaves, leaves])
    if not all(same_bits(a, b) for a, b in zip(chain(own.values(), plain), replayed, strict=True)):
        raise NotRecordableError("replayed steps give other bits")
    return steps


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same, numbers that are none among it."""
    return bool(((a == b) | ((a != a) & (b != b))).all())
