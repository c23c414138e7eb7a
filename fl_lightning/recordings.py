"""The tensor operations of a step, recorded and replayed: by TorchScript on a CPU, as a CUDA graph on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fl_lightning.copying import copy_each
from fl_lightning.traced_graphs import factors_to_inputs, remove_detours, results_to_places, without_python

RECORD_AFTER = 3
"""Steps of a kind that are taken unrecorded first at most: a last batch of a rare size is not worth a recording."""

MOST_RECORDINGS = 256
"""More than there are sizes of a last batch, for batches of up to 256. Each holds a list of operations, and no tensors."""


class NotRecordableError(Exception):
    """Why a module's step cannot be recorded."""


class Logs(Protocol):
    """Whoever is told what steps log."""

    def log(self, name: str, value: Tensor) -> None:
        """A value of one step."""


def tell(logs: Logs, names: list[str], outputs: list[Tensor]) -> None:
    """Log what one step logged, in its order."""
    for name, value in zip(names, outputs, strict=False):  # without names there is an output all the same
        logs.log(name, value)


class Recording(Protocol):
    """The operations of a step for one shape of batch, replayed.

    Attributes:
        after: how many steps of a kind are taken before it is recorded.
        patient: whether steps may wait: they draw nothing that the making of the next batch may draw as well.
        fixed: whether it is about the very tensors that it was made with, not about any of their kind.
    """

    after: ClassVar[int]
    patient: bool
    fixed: bool

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        """Of each client a step for each of its batches, given as their leaves."""


class ScriptRecording:
    """Traced, and run by TorchScript's interpreter.

    Args:
        function: the step, as `RecordedSteps.function` gives it.
        states: of each client that takes its steps together with the others.
        leaves: of a batch of each.

    Attributes:
        after, patient, fixed: as of every `Recording`.
    """

    after = RECORD_AFTER
    fixed = False

    def __init__(self, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]) -> None:
        self.graph, self.names, draws = traced(function, states[0], leaves[0])
        if len(states) > 1 and draws:
            raise NotRecordableError(DRAWS)
        self.patient = not draws
        remove_detours(self.graph)
        results_to_places(self.graph)
        self.factors = factors_to_inputs(self.graph, len(states[0]))
        try:
            self.run = without_python(self.graph, [*states[0], *self.factors], leaves[0])
        except RuntimeError as error:
            raise NotRecordableError(f"its step cannot be replayed: {str(error).strip().splitlines()[0]}") from error

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        with torch.no_grad(), torch.jit.optimized_execution(False):  # the operations as they were recorded
            for state, of_client, log in zip(states, batches, logs, strict=True):
                for outputs in self.run([*state, *self.factors], of_client):
                    tell(log, self.names, outputs)


class CudaRecording:
    """Captured as a CUDA graph, which reads batches from places of its own; clients' steps are its parallel branches.

    Args:
        function, states, leaves: as `ScriptRecording` takes them.

    Attributes:
        after, patient, fixed: as of every `Recording`.
    """

    after = 1  # two steps' time is what a graph takes to be made
    patient = False  # all that Python does for a step is to launch the graph
    fixed = True

    anchor: Any = None
    """A graph whose memory pool is that of all others, as they never run at the same time. A pool ends with its last graph."""

    streams: ClassVar[list[Any]] = []
    """One per branch, the same for all graphs, as memory of the pool belongs to a stream."""

    def __init__(self, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]) -> None:
        self.function = function
        before = [[tensor.clone() for tensor in state] for state in states]
        self.places = [[torch.empty_like(leaf).copy_(leaf) for leaf in of_client] for of_client in leaves]
        side = torch.cuda.Stream()
        try:
            if CudaRecording.anchor is None:
                anchor = torch.cuda.CUDAGraph()
                with torch.cuda.graph(anchor, capture_error_mode="thread_local"):
                    torch.zeros((), device=before[0][0].device)
                CudaRecording.anchor = anchor
            with torch.no_grad():
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # libraries set themselves up at first use, which must not be captured
                    self.step_of_each(states)
                torch.cuda.current_stream().wait_stream(side)
                self.captured = torch.cuda.CUDAGraph()
                # Other threads, NCCL's say, may go on.
                with torch.cuda.graph(self.captured, pool=self.anchor.pool(), capture_error_mode="thread_local"):
                    found = self.step_of_each(states)
        except RuntimeError as error:
            raise NotRecordableError(f"no CUDA graph can be made of its step: {str(error).splitlines()[0]}") from error
        finally:
            torch.cuda.current_stream().wait_stream(side)
            for tensor, kept in zip(chain(*states), chain(*before), strict=True):
                tensor.copy_(kept)
        self.outputs, (self.names, *_) = [outputs for outputs, _ in found], [names for _, names in found]

    def step_of_each(self, states: list[list[Tensor]]) -> list[tuple[list[Tensor], list[str]]]:
        """What the step of each client gives; those of several run at the same time, each on a stream that branches off."""
        if len(states) == 1:
            return [self.function(*states[0], *self.places[0])]
        while len(self.streams) < len(states):
            self.streams.append(torch.cuda.Stream())
        outputs, main = [], torch.cuda.current_stream()
        for state, places, stream in zip(states, self.places, self.streams, strict=False):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                outputs.append(self.function(*state, *places))
        for stream in self.streams[: len(states)]:
            main.wait_stream(stream)
        return outputs

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        places = list(chain(*self.places))
        for leaves in zip(*batches, strict=True):
            copy_each(places, list(chain(*leaves)))
            self.captured.replay()
            for outputs, log in zip(self.outputs, logs, strict=True):
                tell(log, self.names, [output.clone() for output in outputs])  # the next replay writes over them


DRAWS = "its step draws random numbers, which is done client by client"


def traced(
    function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]
) -> tuple[torch.fx.GraphModule, list[str], bool]:
    """The operations of a step, what it logs, and whether it draws random numbers; tried on copies of its tensors.

    Raises:
        NotRecordableError: where it is more than operations on these tensors.
    """
    names: list[str] = []

    def outputs(*tensors: Tensor) -> list[Tensor]:
        nonlocal names
        found, names = function(*tensors)
        return found or [tensors[-1]]  # a graph has an output

    try:
        with torch.no_grad():
            graph = make_fx(outputs)(*(tensor.clone() for tensor in (*state, *leaves)))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise NotRecordableError(f"its step cannot be traced: {str(error).strip().splitlines()[0]}") from error
    draws = any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in graph.graph.nodes)
    return graph, names, draws


def kind_for(state: list[Tensor]) -> type[ScriptRecording] | type[CudaRecording]:
    """How steps on such tensors are recorded."""
    return CudaRecording if state[0].is_cuda else ScriptRecording


class Recordings(dict[Any, Recording]):
    """Recordings by kind of step. Where there are `MOST_RECORDINGS` of them, further kinds go unrecorded."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()
        self.draws: bool | None = None  # whether steps draw random numbers; None while none has been traced

    def clear(self) -> None:
        super().clear()
        self.draws = None

    def find(
        self, key: Any, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]
    ) -> Recording | None:
        """The recording of a kind of step, made once the kind has been seen often enough; None where there is none.

        Args:
            key: the kind.
            function, states, leaves: as recordings take them.

        Raises:
            NotRecordableError: where the step cannot be recorded.
        """
        if key not in self:
            kind = kind_for(states[0])
            self.seen[key] += 1
            if self.seen[key] <= kind.after or len(self) >= MOST_RECORDINGS:
                return None
            with isolate_rng():  # recording runs the step, and draws what only the replay may draw
                self[key] = self._record(kind, function, states, leaves)
        return self[key]

    def _record(
        self, kind: type[Any], function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]
    ) -> Recording:
        if kind is CudaRecording:
            if self.draws is None:  # a graph is captured in no time, but takes what a step reads back to Python for granted
                _, _, self.draws = traced(function, states[0], leaves[0])
            if len(states) > 1 and self.draws:
                raise NotRecordableError(DRAWS)
        return kind(function, states, leaves)
