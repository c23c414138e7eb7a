"""Train several clients side by side by recorded steps, each in tensors of its own: the same bits as one after the other.

A small network's step leaves most of a GPU idle. There the steps of all clients whose steps are alike are one CUDA graph, in
which each client's is a branch (`RecordedSteps.step_together`). On a CPU the branches are taken in turn.

B clients have a seat at a time, those that train longest first; whoever has finished makes room for the next.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from fl_lightning.data.base import Samples
from fl_lightning.errors import cause
from fl_lightning.modules.traced_graphs import NotRecordableError
from fl_lightning.seeding import global_draws
from fl_lightning.training.batches import epoch_batches, resident
from fl_lightning.training.client_logs import LogCollector
from fl_lightning.training.client_trainer import ClientTrainer
from fl_lightning.training.flat_state import look
from fl_lightning.training.local_training import LocalTraining, NotTogetherError
from fl_lightning.training.optimizers import LocalScheduler, configured
from fl_lightning.training.recorded_steps import Held, RecordedSteps, described
from fl_lightning.training.recordings import kind_for

Client = tuple[Samples, torch.Generator]
"""A client's data, and the generator of its batches."""

Averages = Callable[[], dict[str, float]]
"""What a client logged, averaged over its steps; on a GPU whoever asks waits for it."""


@dataclass
class Underway:
    """A client that is being trained.

    Attributes:
        number: which one it is of those that are trained.
        optimizer: of the module's own parameters, and never stepped: it says how the client's own would be.
        batches: those to come; once the next is asked for, a step has been taken.
        logs: what it has logged so far.
        leaves: the tensors of the next batch.
        kind: of the step on it; None where there is no batch any more.
    """

    number: int
    optimizer: Optimizer
    batches: Iterator[Any]
    logs: LogCollector
    leaves: list[Tensor] = field(default_factory=list)
    kind: tuple[Any, ...] | None = None

    def advance(self) -> None:
        """Turn to the next batch."""
        batch = next(self.batches, None)
        self.leaves, self.kind = ([], None) if batch is None else described(batch, self.optimizer)


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
        self.states: list[list[Tensor]] = []  # of each seat, as `self.steps.state`
        self.alone: list[Tensor] = []  # the same
        self.made_for: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: recordings belong to the module that they were made for."""
        return {**vars(self), "steps": RecordedSteps(self.module, self.local), "states": [], "alone": [], "made_for": None}

    def train(self, clients: Sequence[Client], buffers: list[str]) -> Iterator[tuple[int, Averages, Held]]:
        """Train all clients from what the module holds, and goes on to hold.

        Args:
            clients: data and batch generator of each, as `LocalTraining.train` takes them.
            buffers: the names of those that are asked for.

        Yields:
            (i, what client i logged, what it ends with until the next is asked for), in whatever order.

        Raises:
            NotTogetherError: if it cannot be done, for whatever reason. Clients that were handed out before are trained.
        """
        try:
            yield from self._train(clients, buffers)
        except Exception as error:
            why = cause(error, NotRecordableError, NotTogetherError)
            raise NotTogetherError(f"{type(self.module).__name__} cannot be trained side by side: {why}") from error

    def _train(self, clients: Sequence[Client], buffers: list[str]) -> Iterator[tuple[int, Averages, Held]]:
        lengths = [self.local.num_steps(len(samples)) for samples, _ in clients]
        waiting = deque(sorted(range(len(clients)), key=lambda i: (-lengths[i], -len(clients[i][0]))))
        seats: list[Underway] = []  # the client in seat b trains in `self.states[b]`
        taken: Counter[Any] = Counter()  # steps by kind
        self.module.train()
        with self.local.seen_by(self.module, len(clients[0][0])):
            self._prepare(configured(self.module)[0])
        drawn = global_draws()

        def begin(b: int) -> Underway:
            i = waiting.popleft()
            return self._begin(b, i, *clients[i])

        while waiting or seats:
            while waiting and len(seats) < self.local.branches:
                seats.append(begin(len(seats)))
            finished = [b for b, client in enumerate(seats) if client.kind is None]
            if finished and drawn != global_draws():
                raise NotTogetherError("it or its data draw from the global random generators")
            for b in reversed(finished):
                yield seats[b].number, seats[b].logs.averages, self.steps.held(self.states[b], buffers)
                if waiting:
                    seats[b] = begin(b)
                    continue
                last = seats.pop()
                if b < len(seats):
                    self.steps.copy(self.states[len(seats)], self.states[b])
                    seats[b] = last
            if not finished:
                self._step(seats, taken)

    def _prepare(self, optimizer: Optimizer) -> None:
        """See what the module is like in this round, and make room for its steps; the optimizer is like those to come."""
        self.steps.begin(optimizer)
        made_for = self.steps.flat, [look(tensor) for tensor in self.steps.state]
        if made_for != self.made_for:
            self.states = []
            self.alone = self.steps.another() if kind_for(self.steps.state).fixed else []
            self.made_for = made_for

    def _begin(self, b: int, number: int, samples: Samples, draws: torch.Generator) -> Underway:
        """Have a client take seat b, with the weights that the module holds."""
        logs = LogCollector()
        with self.local.seen_by(self.module, len(samples)) as trainer:
            optimizer, scheduler = configured(self.module)
        trainer.use(optimizer, scheduler.configs, logs)
        if b == len(self.states):
            self.states.append(self.steps.another())
        self.steps.copy(self.steps.state, self.states[b])
        client = Underway(number, optimizer, self._batches(samples, draws, scheduler, trainer), logs)
        client.advance()
        return client

    def _batches(
        self, samples: Samples, generator: torch.Generator, scheduler: LocalScheduler, trainer: ClientTrainer
    ) -> Iterator[Any]:
        """A client's batches, drawn as `LocalTraining.train` draws them; once the next is asked for, a step has been taken."""
        device = self.steps.state[0].device
        batches = epoch_batches(len(samples), self.local.epochs, self.local.batch_size, generator, device)
        for epoch, (order, sizes) in enumerate(batches):
            trainer.begin_epoch(epoch, len(sizes))
            for batch_idx, batch in enumerate(samples.batches(order, sizes, generator)):
                yield resident(batch, device)
                trainer.global_step += 1
                if scheduler.scheduler is not None:
                    with trainer.seen_by(part for _, part in self.steps.python.parts):
                        scheduler.after_step(batch_idx + 1)
                        if batch_idx + 1 == len(sizes):
                            scheduler.after_epoch(epoch + 1)

    def _step(self, seats: list[Underway], taken: Counter[Any]) -> None:
        """A step of the clients whose steps are of one kind: the one taken least so far, so that nobody waits for long.

        A last batch comes before full ones, and may make room; clients whose learning rates have gone on before those of others
        who began later, who then go on together.
        """
        kinds: dict[Any, list[int]] = defaultdict(list)
        for b, client in enumerate(seats):
            kinds[client.kind].append(b)
        kind, of_kind = min(kinds.items(), key=lambda entry: (taken[entry[0]], len(entry[1])))
        taken[kind] += len(of_kind)
        if len(of_kind) > 1 and self.alone:
            of_kind = self._to_the_front(seats, of_kind)
        members = [seats[b] for b in of_kind]
        self.steps.step_together(
            kind,
            {b: self.states[b] for b in of_kind},
            members[0].optimizer,
            [client.leaves for client in members],
            [client.logs for client in members],
            self.alone,
        )
        for client in members:
            client.advance()

    def _to_the_front(self, seats: list[Underway], places: list[int]) -> list[int]:
        """Seat the clients in these places, ascending, in the first ones: a graph for each number of them is enough then."""
        for front, b in enumerate(places):
            if b != front:
                self.steps.copy(self.states[front], self.alone)
                self.steps.copy(self.states[b], self.states[front])
                self.steps.copy(self.alone, self.states[b])
                seats[front], seats[b] = seats[b], seats[front]
        return list(range(len(places)))
