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

from fl_lightning.traced_graphs import factors_to_inputs, remove_detours, results_to_places, without_python

RECORD_AFTER = 3
"""Steps of a kind that are taken unrecorded first: a last batch of a rare size is not worth a recording."""

MOST_RECORDINGS = 32


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


class Recording:
    """The operations of a step for one shape of batch, found by running it on copies of its tensors, and replayed.

    Args:
        function: the step, as `RecordedSteps.function` gives it.
        states: of each client that takes its steps together with the others.
        leaves: of a batch of each.

    Attributes:
        patient: whether steps may wait: they draw nothing that the making of the next batch may draw as well.
        fixed: whether it is about the very tensors that it was made with, not about any of their kind.
    """

    fixed = False

    def __init__(self, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]) -> None:
        self.names: list[str] = []

        def outputs(*tensors: Tensor) -> list[Tensor]:
            found, self.names = function(*tensors)
            return found or [tensors[-1]]  # a graph has an output

        try:
            with torch.no_grad():
                self.graph = make_fx(outputs)(*(tensor.clone() for tensor in (*states[0], *leaves[0])))
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            raise NotRecordableError(f"its step cannot be traced: {str(error).strip().splitlines()[0]}") from error
        remove_detours(self.graph)
        results_to_places(self.graph)
        self.patient = not any(
            torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in self.graph.graph.nodes
        )
        if len(states) > 1 and not self.patient:
            raise NotRecordableError("its step draws random numbers, which is done client by client")
        self.prepare(states, leaves)

    def prepare(self, states: list[list[Tensor]], leaves: list[list[Tensor]]) -> None:
        """Find out how the operations are replayed."""
        self.factors = factors_to_inputs(self.graph, len(states[0]))
        try:
            self.run = without_python(self.graph, [*states[0], *self.factors], leaves[0])
        except RuntimeError as error:
            raise NotRecordableError(f"its step cannot be replayed: {str(error).strip().splitlines()[0]}") from error

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        """Of each client a step for each of its batches, given as their leaves."""
        with torch.no_grad(), torch.jit.optimized_execution(False):  # the operations as they were recorded
            for state, of_client, log in zip(states, batches, logs, strict=True):
                for outputs in self.run([*state, *self.factors], of_client):
                    tell(log, self.names, outputs)


class CudaRecording(Recording):
    """Replayed as a CUDA graph, which reads batches from places of its own; clients' steps are its parallel branches."""

    fixed = True

    pool: Any = None
    """One for all graphs: they never run at the same time."""

    streams: ClassVar[list[Any]] = []
    """One per branch, the same for all graphs, as memory of the pool belongs to a stream."""

    def prepare(self, states: list[list[Tensor]], leaves: list[list[Tensor]]) -> None:
        self.patient = False  # all that Python does here is to launch the graph
        before = [[tensor.clone() for tensor in state] for state in states]
        side = torch.cuda.Stream()
        try:
            self.places = [[torch.empty_like(leaf).copy_(leaf) for leaf in of_client] for of_client in leaves]
            CudaRecording.pool = CudaRecording.pool or torch.cuda.graph_pool_handle()
            self.captured = torch.cuda.CUDAGraph()
            with torch.no_grad():
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # libraries set themselves up at first use, which must not be captured
                    for _ in range(3):
                        self.step_of_each(states)
                torch.cuda.current_stream().wait_stream(side)
                # Other threads, NCCL's say, may go on.
                with torch.cuda.graph(self.captured, pool=self.pool, capture_error_mode="thread_local"):
                    self.outputs = self.step_of_each(states)
        except RuntimeError as error:
            raise NotRecordableError(f"no CUDA graph can be made of its step: {str(error).splitlines()[0]}") from error
        finally:
            torch.cuda.current_stream().wait_stream(side)
            for tensor, kept in zip(chain(*states), chain(*before), strict=True):
                tensor.copy_(kept)

    def step_of_each(self, states: list[list[Tensor]]) -> list[list[Tensor]]:
        """What the step of each client gives; those of several run at the same time, each on a stream that branches off."""
        if len(states) == 1:
            return [self.graph(*states[0], *self.places[0])]
        while len(self.streams) < len(states):
            self.streams.append(torch.cuda.Stream())
        outputs, main = [], torch.cuda.current_stream()
        for state, places, stream in zip(states, self.places, self.streams, strict=False):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                outputs.append(self.graph(*state, *places))
        for stream in self.streams[: len(states)]:
            main.wait_stream(stream)
        return outputs

    def replay(self, states: list[list[Tensor]], batches: list[list[list[Tensor]]], logs: Sequence[Logs]) -> None:
        for leaves in zip(*batches, strict=True):
            for place, leaf in zip(chain(*self.places), chain(*leaves), strict=True):
                place.copy_(leaf)
            self.captured.replay()
            for outputs, log in zip(self.outputs, logs, strict=True):
                tell(log, self.names, [output.clone() for output in outputs])  # the next replay writes over them


def kind_for(state: list[Tensor]) -> type[Recording]:
    """How steps on such tensors are recorded."""
    return CudaRecording if state[0].is_cuda else Recording


class Recordings(dict[Any, Recording]):
    """Recordings by kind of step. The oldest is given up where there are too many."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def find(
        self, key: Any, function: Callable[..., Any], states: list[list[Tensor]], leaves: list[list[Tensor]]
    ) -> Recording | None:
        """The recording of a kind of step, made once the kind has been seen often enough; None before.

        Args:
            key: the kind.
            function, states, leaves: as `Recording` takes them.
        """
        if key not in self:
            self.seen[key] += 1
            if self.seen[key] <= RECORD_AFTER:
                return None
            if len(self) == MOST_RECORDINGS:
                self.pop(next(iter(self)))
            with isolate_rng():  # recording runs the step, and draws what only the replay may draw
                self[key] = kind_for(states[0])(function, states, leaves)
        return self[key]
