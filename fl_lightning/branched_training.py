"""Train several clients side by side by recorded steps, each in tensors of its own: the same bits as one after the other.

A small network's step leaves most of a GPU idle. There a step of all clients is one CUDA graph, in which each client's is a
branch (`RecordedSteps.step_together`). On a CPU the branches are taken in turn.

Letters: B clients are side by side, those that train longest first; h have not finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from fl_lightning.data.base import Samples
from fl_lightning.flat_state import look
from fl_lightning.local_training import (
    LocalScheduler,
    LocalTraining,
    LogCollector,
    NotTogetherError,
    epoch_batches,
    read_optimizers,
    resident,
)
from fl_lightning.recorded_steps import Held, RecordedSteps
from fl_lightning.recordings import NotRecordableError, kind_for
from fl_lightning.seeding import global_draws

Client = tuple[Samples, torch.Generator]
"""A client's data, and the generator of its batches."""


class BranchedTraining:
    """Trains clients as `LocalTraining.train` does, on the same batches and bit for bit the same, but B at a time.

    That takes the memory of B clients and of one or two more (see `Footprint.branches`), and steps that draw nothing from the
    global generators: they are seeded for one client at a time.

    Args:
        module: the client, whose steps can be recorded.
        local: how clients train; `local.branches` is B.

    Raises:
        NotRecordableError: where that can be seen at once.
    """

    def __init__(self, module: L.LightningModule, local: LocalTraining) -> None:
        self.module, self.local = module, local
        self.steps = RecordedSteps(module, local)
        self.states: list[list[Tensor]] = []  # of each branch, as `self.steps.state`
        self.alone: list[Tensor] = []  # the same
        self.made_for: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: recordings belong to the module that they were made for."""
        return {**vars(self), "steps": RecordedSteps(self.module, self.local), "states": [], "alone": [], "made_for": None}

    def train(self, clients: Sequence[Client], buffers: list[str]) -> Iterator[tuple[int, dict[str, float], Held]]:
        """Train all clients from what the module holds, and goes on to hold.

        Args:
            clients: data and batch generator of each, as `LocalTraining.train` takes them.
            buffers: the names of those that are asked for.

        Yields:
            (i, what client i logged, what it ends with until the next is asked for), in whatever order.

        Raises:
            NotTogetherError: if it cannot be done, for whatever reason. Clients that were handed out before are trained.
        """
        steps = [self.local.num_steps(len(samples)) for samples, _ in clients]
        order = sorted(range(len(clients)), key=lambda i: (-steps[i], -len(clients[i][0])))
        for first in range(0, len(order), self.local.branches):
            members = order[first : first + self.local.branches]
            try:
                logs = self._train([clients[i] for i in members])
                trained = [self.steps.held(state, buffers) for state in self.states[: len(members)]]
            except Exception as error:
                line = str(error).strip().split("\n")[0]
                kind = "" if isinstance(error, (NotRecordableError, NotTogetherError)) else f"{type(error).__name__}: "
                name = type(self.module).__name__
                raise NotTogetherError(f"{name} cannot be trained side by side: {kind}{line}") from error
            for i, of_client, held in zip(members, logs, trained, strict=True):
                yield i, of_client.averages(), held

    def _train(self, clients: Sequence[Client]) -> list[LogCollector]:
        """Train B clients or fewer, in this order, in the first of `self.states`; what each logged."""
        self.module.train()
        # Of the module's own parameters, and never stepped: they say how a client's own would be.
        optimizers = [read_optimizers(self.module.configure_optimizers()) for _ in clients]
        self.steps.begin(optimizers[0][0])
        start = self.steps.state
        made_for = self.steps.flat, [look(tensor) for tensor in start]
        if made_for != self.made_for:
            self.states, self.alone, self.made_for = [], [], made_for
            if kind_for(start).fixed:
                self.alone = self.steps.another()
        while len(self.states) < len(clients):
            self.states.append(self.steps.another())
        for state in self.states[: len(clients)]:
            self.steps.copy(start, state)
        drawn, logs = global_draws(), [LogCollector() for _ in clients]
        streams = {
            b: self._batches(samples, draws, scheduler)
            for b, ((samples, draws), (_, scheduler)) in enumerate(zip(clients, optimizers, strict=True))
        }
        while batches := {b: batch for b, stream in streams.items() if (batch := next(stream, None)) is not None}:
            of_each = {b: (self.states[b], batch, optimizers[b][0], logs[b]) for b, batch in batches.items()}
            self.steps.step_together(of_each, self.alone)
        if drawn != global_draws():
            raise NotTogetherError("its training_step or its data draw from the global random generators")
        return logs

    def _batches(self, samples: Samples, generator: torch.Generator, scheduler: LocalScheduler) -> Iterator[Any]:
        """A client's batches, drawn as `LocalTraining.train` draws them; once the next is asked for, a step has been taken."""
        step, device = 0, self.steps.state[0].device
        batches = epoch_batches(len(samples), self.local.epochs, self.local.batch_size, generator, device)
        for epoch, (order, sizes) in enumerate(batches, 1):
            for batch in samples.batches(order, sizes, generator):
                yield resident(batch, device)
                step += 1
                scheduler.after_step(step)
            scheduler.after_epoch(epoch)
