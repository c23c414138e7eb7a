"""The tensor operations of a step, recorded and replayed: by TorchScript on a CPU, as a CUDA graph on a GPU."""

from __future__ import annotations

import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.errors import first_line
from fl_lightning.modules.traced_graphs import NotRecordableError, Replay, takes_the_same, traced
from fl_lightning.training.client_logs import LogCollector, log_together
from fl_lightning.training.flat_state import look
from fl_lightning.training.scripts import SCRIPTS, step_kind
from fl_lightning.updates.copying import copy_each

RECORD_AFTER = 3
"""Steps of a kind that are taken unrecorded first at most: a last batch of a rare size is not worth a recording."""

MOST_RECORDINGS = 256
"""More than there are sizes of a last batch, for batches of up to 256. Each holds a list of operations; a CUDA graph also has
places for a batch of each branch."""

STALE_AFTER = 4 * MOST_RECORDINGS
"""Steps without a recording's kind, after which it may be given up for another."""


class Logs(Protocol):
    """Whoever is told what steps log."""

    def log_steps(self, name: str, values: list[Tensor]) -> None:
        """Values of one step after the other."""

    def log(self, name: str, value: Tensor) -> None:
        """A value of one step."""


def tell(logs: Logs, names: list[str], outputs: list[list[Tensor]]) -> None:
    """Log what some steps logged, given per step, name by name: there are many steps, and few names."""
    for name, *values in zip(names, *outputs, strict=False):  # without names there is an output all the same
        logs.log_steps(name, values)


class Recording(Protocol):
    """The operations of a step for one shape of batch, replayed.

    Attributes:
        after: how many steps of a kind are taken before it is recorded.
        patient: whether steps may wait for others, to be taken in one call.
        draws: whether they draw random numbers; they may wait then only where the making of the next batch draws none.
        fixed: whether it is about the very tensors that it was made with, not about any of their kind.
    """

    after: ClassVar[int]
    patient: ClassVar[bool]
    draws: bool
    fixed: bool

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        """Of each client a step for each of its batches, given as their leaves."""


class ScriptRecording:
    """Traced, and run by TorchScript's interpreter.

    Args:
        function: the step, as `RecordedSteps.function` gives it.
        states: of each client that takes its steps together with the others.
        leaves: of a batch of each.
        kind: under which other runs may know such steps; empty where they do not.

    Attributes:
        after, patient, draws, fixed: as of every `Recording`.
    """

    after = RECORD_AFTER
    patient = True
    fixed = False

    def __init__(
        self, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]], kind: str = ""
    ) -> None:
        if not self.know(kind, function, states[0], leaves[0]):
            self.graph, self.names, self.draws = traced(function, states[0], leaves[0])
            try:
                self.run = Replay(self.graph, states[0], leaves[0])
            except RuntimeError as error:
                raise NotRecordableError(f"its step cannot be replayed: {first_line(error)}") from error
            if kind:
                SCRIPTS.made(kind, self.run.script, self.draws)
        if len(states) > 1 and self.draws:
            raise NotRecordableError(DRAWS)

    def know(self, kind: str, function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]) -> bool:
        """Take over what another run has recorded of such steps, if it is right for these."""
        kept = SCRIPTS.kept.get(kind)
        if kept is None:
            return False
        try:
            self.run = Replay.of(kept.script)
        except RuntimeError:
            return False
        names = takes_the_same(self.run, function, state, leaves)
        self.names, self.draws = names or [], kept.draws
        return names is not None

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        with torch.no_grad(), torch.jit.optimized_execution(False):  # the operations as they were recorded
            for state, of_client, log in zip(states, batches, logs, strict=True):
                tell(log, self.names, self.run(state, of_client))


class CudaRecording:
    """Captured as a CUDA graph, which reads batches from places of its own; clients' steps are its parallel branches.

    Args:
        function, states, leaves: as `ScriptRecording` takes them.

    Attributes:
        after, patient, draws, fixed: as of every `Recording`.
    """

    after = 1  # two steps' time is what a graph takes to be made
    patient = False  # all that Python does for a step is to launch the graph
    draws = False  # which matters to steps that wait
    fixed = True

    streams: ClassVar[list[Any]] = []
    """One per branch, the same for all graphs, as memory of the pool belongs to a stream."""

    def __init__(self, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]) -> None:
        self.function = function
        before = [(tensor, tensor.clone()) for state in states for tensor in apart(state)]
        self.places = [[torch.empty_like(leaf).copy_(leaf) for leaf in of_client] for of_client in leaves]
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        try:
            self.pool = GraphPool.shared()
            with torch.no_grad(), torch.cuda.stream(main):  # which a capture that fails may leave for another
                side.wait_stream(main)
                with torch.cuda.stream(side):  # libraries set themselves up at first use, which must not be captured
                    self.step_of_each(states)
                main.wait_stream(side)
                self.captured = torch.cuda.CUDAGraph()
                with torch.cuda.graph(self.captured, pool=self.pool.anchor.pool(), capture_error_mode=OTHER_THREADS_GO_ON):
                    found = self.step_of_each(states)
        except RuntimeError as error:
            raise NotRecordableError(f"no CUDA graph can be made of its step: {first_line(error)}") from error
        finally:
            main.wait_stream(side)
            for tensor, kept in before:
                tensor.copy_(kept)
        self.outputs, (self.names, *_) = [outputs for outputs, _ in found], [names for _, names in found]

    def step_of_each(self, states: list[list[Tensor]]) -> list[tuple[list[Tensor], list[str]]]:
        """What the step of each client gives; those of several run at the same time, each on a stream that branches off."""
        if len(states) == 1:
            return [self.function(*states[0], *self.places[0])]
        while len(self.streams) < len(states):
            self.streams.append(torch.cuda.Stream())
        outputs, begun, main = [], [], torch.cuda.current_stream()
        try:
            for state, places, stream in zip(states, self.places, self.streams, strict=False):
                stream.wait_stream(main)
                begun.append(stream)
                with torch.cuda.stream(stream):
                    outputs.append(self.function(*state, *places))
        finally:  # a capture cannot be ended before
            for stream in begun:
                main.wait_stream(stream)
        return outputs

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        places = list(chain(*self.places))
        for leaves in zip(*batches, strict=True):
            copy_each(places, list(chain(*leaves)))
            self.captured.replay()
            for i, name in enumerate(self.names):  # the next replay writes over the outputs
                values, collectors = (
                    [outputs[i] for outputs in self.outputs],
                    [log for log in logs if isinstance(log, LogCollector)],
                )
                if len(collectors) == len(logs):
                    log_together(collectors, name, values)
                else:
                    for log, value in zip(logs, values, strict=True):
                        log.log(name, value.clone())


OTHER_THREADS_GO_ON = "thread_local"
"""Of a capture's error modes: what other threads do, NCCL's say, is not its business."""


class GraphPool:
    """Memory that all CUDA graphs share, as they never run at the same time; it is kept for as long as there is one.

    Attributes:
        anchor: a graph that does next to nothing: PyTorch gives a pool up with its last graph, and knows it no more.
    """

    current: ClassVar[Callable[[], GraphPool | None]] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.anchor = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.anchor, capture_error_mode=OTHER_THREADS_GO_ON):
            torch.zeros((), device="cuda")

    @classmethod
    def shared(cls) -> GraphPool:
        """The one that is there, or a new one."""
        pool = cls.current() or cls()
        cls.current = weakref.ref(pool)
        return pool


def apart(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors without those that lie in the memory of one before them.

    >>> vector = torch.zeros(4)
    >>> len(apart([vector, vector[:2], torch.zeros(3)]))
    2
    """
    found, spans = [], []
    for tensor in tensors:
        begin = tensor.data_ptr()
        end = begin + tensor.nbytes
        if not any(first <= begin and end <= last for first, last in spans):
            spans.append((begin, end))
            found.append(tensor)
    return found


DRAWS = "its step draws random numbers, which is done client by client"


def kind_for(state: list[Tensor]) -> type[ScriptRecording] | type[CudaRecording]:
    """How steps on such tensors are recorded."""
    return CudaRecording if state[0].is_cuda else ScriptRecording


class Recordings(dict[Any, Recording]):
    """Recordings by kind of step, the last used one last.

    Where there are `MOST_RECORDINGS` of them, further kinds go unrecorded until one has not been used for long: kinds that take
    turns must not push each other out, to be recorded again and again.

    Attributes:
        thrifty: whether a kind has to wait until its unrecorded steps have taken as long as a recording takes. Recordings then
            never cost much more than they save, however many sizes of a last batch there are, and however few rounds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thrifty = False
        self.seen: Counter[Any] = Counter()
        self.spent: dict[Any, float] = defaultdict(float)  # seconds of unrecorded steps
        self.price = 0.0  # seconds that a recording took, at least
        self.steps = 0
        self.used: dict[Any, int] = {}  # when, in steps
        self.draws: bool | None = None  # whether steps draw random numbers; None while none has been traced

    def clear(self) -> None:
        super().clear()
        self.used.clear()
        self.draws = None

    def recall(self, key: Any) -> Recording | None:
        """The recording of a kind, for a step; None where there is none."""
        self.steps += 1
        recording = self.pop(key, None)
        if recording is not None:
            self[key] = recording
            self.used[key] = self.steps
        return recording

    @contextmanager
    def without(self, key: Any) -> Iterator[None]:
        """Around a step of a kind that is not recorded."""
        began = time.perf_counter()
        yield
        self.spent[key] += time.perf_counter() - began

    def find(
        self,
        key: Any,
        function: Callable[..., Any],
        states: list[list[Tensor]],
        leaves: list[list[Tensor]],
        about: Callable[[], Any] | None = None,
    ) -> Recording | None:
        """A new recording of a kind of step that has none; None if it has not been seen often enough, or is one too many.

        Args:
            key: the kind.
            function, states, leaves: as recordings take them.
            about: tells what steps depend on beside the kind, where other runs may have recorded the same.

        Raises:
            NotRecordableError: where the step cannot be recorded.
        """
        kind = kind_for(states[0])
        self.seen[key] += 1
        if self.seen[key] <= kind.after or (self.thrifty and self.spent[key] < self.price):
            return None
        if len(self) >= MOST_RECORDINGS:
            oldest = next(iter(self))
            if self.steps - self.used[oldest] <= STALE_AFTER:
                return None
            del self[oldest], self.used[oldest]
        began = time.perf_counter()
        with isolate_rng():  # recording runs the step, and draws what only the replay may draw
            self[key] = self._record(kind, function, states, leaves, key, about)
        took = time.perf_counter() - began
        self.price = min(self.price or took, took)
        self.used[key] = self.steps
        return self[key]

    def _record(
        self,
        kind: type[Any],
        function: Callable[..., Any],
        states: list[list[Tensor]],
        leaves: list[list[Tensor]],
        key: Any,
        about: Callable[[], Any] | None,
    ) -> Recording:
        if kind is CudaRecording:
            if self.draws is None:  # a graph is captured in no time, but takes what a step reads back to Python for granted
                _, _, self.draws = traced(function, states[0], leaves[0])
            if len(states) > 1 and self.draws:
                raise NotRecordableError(DRAWS)
        elif about is not None:
            return kind(function, states, leaves, step_kind(about(), key, [look(tensor) for tensor in states[0]]))
        return kind(function, states, leaves)
