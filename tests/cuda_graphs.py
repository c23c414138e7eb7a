"""CUDA graphs acted out on a CPU: what is captured is done again, on the same tensors, when it is replayed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fl_lightning import recordings


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

    def replay(self) -> None:
        for module, places, outputs in self.calls:
            for output, value in zip(outputs, module(*places), strict=True):
                output.copy_(value)


class Spied:
    """A traced graph whose calls a `Graph` that is being captured notes."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.module, self.graph, self.recompile = module, module.graph, module.recompile

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        outputs = self.module(*tensors)
        if Graph.captured is not None:
            Graph.captured.calls.append((self.module, tensors, outputs))
            Graph.captured.streams.append(Stream.current)
        return outputs


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
        "graph_pool_handle": object,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(recordings, "make_fx", lambda function: lambda *tensors: Spied(make_fx(function)(*tensors)))
    monkeypatch.setattr(recordings, "Recording", recordings.CudaRecording)
    monkeypatch.setattr(recordings.CudaRecording, "streams", [])
    return made
