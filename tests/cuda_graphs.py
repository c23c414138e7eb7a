"""CUDA graphs acted out on a CPU: what is captured is done again, on the same tensors, when it is replayed."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fl_lightning.training import recordings


class Stream:
    """Notes whom it waited for."""

    current: "Stream"

    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


class Graph:
    """Does again what was called while it was captured, on the same tensors, and remembers on which streams that was."""

    captured: "Graph | None" = None

    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Tensor, ...], list[Tensor]]] = []
        self.streams: list[Stream] = []
        self.forked = False
        self.joined: list[Stream] = []

    def pool(self) -> object:
        return None

    def replay(self) -> None:
        with torch.no_grad():
            for function, places, outputs in self.calls:
                for output, value in zip(outputs, function(*places)[0], strict=True):
                    output.copy_(value)


class Spied:
    """A step whose calls a `Graph` that is being captured notes."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *tensors: Tensor) -> tuple[list[Tensor], list[str]]:
        outputs, names = self.function(*tensors)
        if Graph.captured is not None:
            Graph.captured.calls.append((self.function, tensors, outputs))
            Graph.captured.streams.append(Stream.current)
        return outputs, names


def act_out(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Take the place of CUDA graphs, and have steps on a CPU recorded by them; all that are made."""
    made: list[Graph] = []
    Stream.current = Stream()

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    @contextmanager
    def capture(graph: Graph, **_: Any) -> Iterator[None]:
        made.append(graph)
        Graph.captured = graph
        main = Stream()
        with on(main):
            yield
        Graph.captured = None
        graph.joined = main.waited_for
        graph.forked = all(main in stream.waited_for[-1:] for stream in graph.streams)

    for name, stand_in in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
        "stream": on,
        "current_stream": lambda: Stream.current,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    class ActedOut(recordings.CudaRecording):
        streams: ClassVar[list[Stream]] = []  # of its own

        def __init__(self, function: Any, *of_clients: Any) -> None:
            super().__init__(Spied(function), *of_clients)

    monkeypatch.setattr(recordings.GraphPool, "shared", lambda: SimpleNamespace(anchor=Graph()))
    for name in ("ScriptRecording", "CudaRecording"):
        monkeypatch.setattr(recordings, name, ActedOut)
    return made
