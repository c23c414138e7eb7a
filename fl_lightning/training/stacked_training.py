"""Train several clients at once: their parameters are stacked along a first axis, and a step is one call for all of them.

The user's `training_step` runs under `torch.vmap`, the user's optimizer on the stack. What cannot be trained so (dropout, an
LSTM, an optimizer that looks at whole tensors) is refused with a reason; `LocalTraining.train` trains it client by client. With
SGD, steps of modules that say `recordable = True` are recorded and replayed (`recorded_steps`): the same bits, without Python.

Letters: K clients in the stack, those that train longest first; h have not finished; g of these have batches of one size b.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Optimizer
from torch.utils._pytree import tree_unflatten
from torchmetrics import Metric

from fl_lightning.data.base import Samples
from fl_lightning.errors import cause, first_line
from fl_lightning.modules.hooks import hooks_in_steps
from fl_lightning.modules.kept_python import KeptPython
from fl_lightning.modules.recordable import aliases, is_recordable, named_tensors, python_state
from fl_lightning.modules.traced_graphs import NotRecordableError
from fl_lightning.seeding import global_draws
from fl_lightning.training.batches import epoch_batches, resident
from fl_lightning.training.client_logs import collected_logs
from fl_lightning.training.client_steps import read_loss
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.optimizers import LocalScheduler, configured
from fl_lightning.training.recorded_sgd import hyperparameters, sgd_step
from fl_lightning.training.recorded_steps import described
from fl_lightning.training.recordings import Recordings
from fl_lightning.training.stack import NotStackableError, Stack, clipped, stacked
from fl_lightning.training.training_step import TrainingStep
from fl_lightning.training.withheld import Unknown, without_trainer

log = logging.getLogger(__name__)

_Batch = tuple[int, int, Any]
"""How many samples it has, its number in its epoch, and itself."""


class Different(Unknown):
    """Stands for what is not the same for all clients of a stack."""


class StackedTraining:
    """Trains clients as `LocalTraining.train` does, on the same batches, but together.

    Results agree up to rounding. With SGD in float32 a client's update (new minus old weights) differs by less than 1e-5 of its
    norm, by 1e-4 where BatchNorm sees few samples, and in float64 by 2^29 times less. Adam and the like make whole steps of
    gradients that are 0 but for rounding, as of a bias before BatchNorm. In bf16 updates differ as much as from float32: under
    `torch.vmap` autocast reaches matrix products, but neither a CPU's convolutions nor losses. A stack takes K times the memory
    of a client.

    Args:
        module: the client. Parameters that require no gradient are shared by the stack and must not change.
        local: how long and how a client trains.
    """

    def __init__(self, module: L.LightningModule, local: LocalTraining) -> None:
        self.module, self.local = module, local
        self._client = TrainingStep(module)
        self._names = aliases(named_tensors(self._client))
        self._losses: Callable[..., Any] = torch.vmap(self._loss, in_dims=(0, 0, 0, None), randomness="error")
        self._recordable = is_recordable(module)
        self._recordings = Recordings()
        self._room: dict[str, Tensor] = {}
        self._momenta: dict[str, Tensor] = {}
        self._made_for: Any = None
        self._most = 0  # rows

    def __getstate__(self) -> dict[str, Any]:
        """For copies: recordings belong to the tensors that they were made for."""
        return {**vars(self), "_recordings": Recordings(), "_room": {}, "_momenta": {}, "_made_for": None}

    def train(self, clients: Sequence[tuple[Samples, torch.Generator]]) -> Iterator[tuple[int, dict[str, float]]]:
        """Train all clients from what the module holds. When this returns it is done; the iterator hands out the results.

        Args:
            clients: data and batch generator of each, as `LocalTraining.train` takes them. No generator's state changes.

        Yields:
            (i, what client i logged) for i = 0, ..., K-1, with that client's parameters and buffers in the module.

        Raises:
            NotStackableError: if it cannot be done, for whatever reason; the module is as it was.
        """
        before = {part: dict(vars(part)) for part in self.module.modules()}
        try:
            stack = self._train(clients, before)
        except Exception as error:
            for part, attributes in before.items():
                part.__dict__ = attributes
            raise NotStackableError(f"{type(self.module).__name__} cannot be trained in a stack: {_reason(error)}") from error
        return self._hand_out(stack)

    def _hand_out(self, stack: Stack) -> Iterator[tuple[int, dict[str, float]]]:
        own = dict((*self._client.named_parameters(), *self._client.named_buffers()))
        logs = {name: of_name.tolist() for name, of_name in stack.logs.items()}
        for i, row in enumerate(sorted(range(len(stack.order)), key=stack.order.__getitem__)):
            for name, trained in stack.trained.items():
                own[name].detach().copy_(trained[row])
            yield i, {name: of_name[row][0] / of_name[row][1] for name, of_name in logs.items() if of_name[row][1]}

    def _train(self, clients: Sequence[tuple[Samples, torch.Generator]], before: dict[nn.Module, dict[str, Any]]) -> Stack:
        """The trained stack; `before` are the attributes of the module's parts."""
        if any(isinstance(part, Metric) for part in self.module.modules()):
            raise NotStackableError("it holds torchmetrics objects, which keep one state for all clients")
        if hooks := hooks_in_steps(self.module):
            raise NotStackableError(f"it has hooks of its own, which are called for one client at a time: {', '.join(hooks)}")
        self.module.train()
        sizes = [len(samples) for samples, _ in clients]
        order = sorted(range(len(clients)), key=lambda i: (-self.local.num_steps(sizes[i]), -sizes[i]))
        with self.local.seen_by(self.module, max(sizes, default=0)) as trainer:
            optimizer, scheduler = configured(self.module)
        if trainer.asked and len({self.local.plan(n) for n in sizes}) > 1:
            raise NotStackableError("its configure_optimizers asks how long it trains, which is not the same for all clients")
        stack = Stack(self._client, order, optimizer, *self._rows(len(order), optimizer))
        epoch_steps = {replace(self.local, epochs=1.0).num_steps(n) for n in sizes if n}
        waits = scheduler.scheduler is not None and (scheduler.interval == "epoch" or scheduler.frequency > 1)
        if len(epoch_steps) > 1 and self.local.epochs > 1 and waits:
            raise NotStackableError("its scheduler waits for ends of epochs, which differ between clients of different sizes")
        optimizer.zero_grad()
        optimizer.step()  # does nothing without gradients, but schedulers want to follow a step
        streams = [self._batches(clients[i][0], clients[i][1].clone_state(), stack.device) for i in order]
        drawn, kept = global_draws(), KeptPython({"": self.module})
        with without_trainer(self.module):
            self._take_steps(stack, streams, optimizer, scheduler, epoch_steps, lambda: _check_untouched(before, kept, drawn))
        return stack

    def _take_steps(
        self,
        stack: Stack,
        streams: list[Iterator[_Batch]],
        optimizer: Optimizer,
        scheduler: LocalScheduler,
        epoch_steps: set[int],
        check: Callable[[], None],
    ) -> None:
        """All steps of a stack; `check` follows the first."""
        for step in count():
            batches = [batch for stream in streams[: stack.height] if (batch := next(stream, None)) is not None]
            if not batches:
                break
            if len(batches) < stack.height:
                stack.shrink(len(batches))
            self._step(stack, batches, step)
            scheduler.after_step(batches[0][1] + 1)
            if len(epoch_steps) == 1 and (step + 1) % max(epoch_steps) == 0:
                scheduler.after_epoch((step + 1) // max(epoch_steps))
            for group, of_own in zip(stack.optimizer.param_groups, optimizer.param_groups, strict=True):
                group.update({name: value for name, value in of_own.items() if name != "params"})
            if step == 0:
                check()

    def _rows(self, k: int, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the module holds, K times, and zeros like its parameters: always the same memory, as CUDA graphs know addresses.

        Returns:
            (K, ...) by name, of trainable parameters and buffers, and of the parameters alone if SGD has a momentum.
        """
        parameters = {name: p.detach() for name, p in self._client.named_parameters() if p.requires_grad}
        tensors = parameters | {name: buffer.detach() for name, buffer in self._client.named_buffers()}
        shapes = {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors.items()}
        remembers = type(optimizer) is SGD and any(group["momentum"] for group in optimizer.param_groups)
        made_for = (shapes, list(parameters), remembers, python_state(self.module))
        if made_for != self._made_for or k > self._most:
            self._made_for, self._most = made_for, k
            self._recordings.clear()
            self._room = {name: tensor.new_empty(k, *tensor.shape) for name, tensor in tensors.items()}
            self._momenta = {name: torch.empty_like(self._room[name]) for name in parameters if remembers}
        rows = {name: room[:k].copy_(tensors[name]) for name, room in self._room.items()}
        return rows, {name: momentum[:k].zero_() for name, momentum in self._momenta.items()}

    def _batches(self, samples: Samples, generator: torch.Generator, device: torch.device) -> Iterator[_Batch]:
        """A client's batches, drawn in the order in which `LocalTraining.train` draws them."""
        for order, sizes in epoch_batches(len(samples), self.local.epochs, self.local.batch_size, generator, device):
            for i, (size, batch) in enumerate(zip(sizes, samples.batches(order, sizes, generator), strict=True)):
                yield size, i, resident(batch, device)

    def _step(self, stack: Stack, batches: list[_Batch], step: int) -> None:
        """One step of the h clients; those with batches of one size are one call."""
        groups: dict[int, list[int]] = defaultdict(list)
        for row, (size, _, _) in enumerate(batches):
            groups[size].append(row)
        joined = {size: stacked([batches[row][2] for row in members]) for size, members in groups.items()}
        numbers = {number for _, number, _ in batches}
        number = Different("batch_idx") if len(numbers) > 1 else numbers.pop()
        if len(groups) == 1 and self._replay(stack, *joined.values()):
            return
        gradients: dict[str, Tensor] = {}
        for size, members in groups.items():
            rows: slice | Tensor = slice(members[0], members[-1] + 1)  # which copies nothing, but takes neighbours alone
            if members[-1] - members[0] + 1 > len(members):
                rows = torch.tensor(members).to(stack.device, non_blocking=True)
            of_group = self._gradients(stack, rows, joined[size], number, first=step == 0)
            if gradients and gradients.keys() != of_group.keys():
                raise NotStackableError("which parameters its loss depends on is not the same for all batches")
            if len(members) == stack.height:
                gradients, of_group = of_group, {}
            for name, gradient in of_group.items():
                gradients.setdefault(name, torch.empty_like(stack.parameters[name]))[rows] = gradient
        if self.local.gradient_clip_norm:
            gradients = torch.vmap(clipped, in_dims=(0, None))(gradients, self.local.gradient_clip_norm)
        for name, parameter in stack.parameters.items():
            parameter.grad = gradients.get(name)  # without one the optimizer passes the parameter over
        stack.optimizer.step()

    def _replay(self, stack: Stack, batch: Any) -> bool:
        """Take a step of all h clients by a recording, where there is or can be one."""
        if not self._recordable or type(stack.optimizer) is not SGD:
            return False
        leaves, key = described(batch, stack.optimizer)
        recording = self._recordings.recall(key)
        if recording is None:
            try:
                groups = hyperparameters(stack.optimizer, list(stack.parameters.values()))
                recording = self._recordings.find(key, self._function(stack, key[0], groups), [stack.state], [leaves])
            except NotRecordableError as error:
                log.info("stacked steps of %s are not recorded: %s", type(self.module).__name__, error)
                self._recordable = False
            if recording is None:
                return False
        recording.replay([stack.state], [[leaves]], [stack])
        return True

    def _function(self, stack: Stack, structure: Any, groups: list[dict[str, Any]]) -> Callable[..., Any]:
        """A step as a function of nothing but tensors, which it writes into, to what the clients log, (h, 2) each."""
        names, others = list(stack.parameters), list(stack.buffers)

        def step(*tensors: Tensor) -> tuple[list[Tensor], list[str]]:
            parameters, buffers = tensors[: len(names)], tensors[len(names) : len(names) + len(others)]
            momenta, leaves = tensors[len(names) + len(others) : len(stack.state)], list(tensors[len(stack.state) :])
            batch = tuple(leaves) if structure is None else tree_unflatten(leaves, structure)
            with torch.enable_grad(), without_trainer(self.module), self.local.autocast(stack.device):
                watched = dict(zip(names, [parameter.detach().requires_grad_() for parameter in parameters], strict=True))
                arguments = (watched, dict(zip(others, buffers, strict=True)), batch, Unknown("batch_idx"))
                losses, logs, after = self._losses(*arguments)
                found = torch.autograd.grad(losses, list(watched.values()), torch.ones_like(losses), allow_unused=True)
            gradients = {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}
            for name, buffer in zip(others, buffers, strict=True):
                buffer.copy_(after[name])
            if self.local.gradient_clip_norm:
                gradients = torch.vmap(clipped, in_dims=(0, None))(gradients, self.local.gradient_clip_norm)
            for group in groups:
                used = [i for i in group["places"] if names[i] in gradients]
                if used:
                    of_group = [momenta[i] if group["momentum"] else None for i in used]
                    sgd_step([parameters[i] for i in used], [gradients[names[i]] for i in used], of_group, group)
            return list(logs.values()), list(logs)

        return step

    def _gradients(
        self, stack: Stack, rows: slice | Tensor, batch: Any, number: int | Unknown, *, first: bool
    ) -> dict[str, Tensor]:
        """The gradients of a group of clients, (g, ...) each; their buffers and logs are brought up to date."""
        parameters = {name: stacked[rows].detach().requires_grad_() for name, stacked in stack.parameters.items()}
        arguments = (parameters, {name: stacked[rows] for name, stacked in stack.buffers.items()}, batch, number)
        with self.local.autocast(stack.device):
            losses, logs, buffers = self._losses(*arguments)
        # No loss depends on another client's parameters, so one backward pass gives each client its own gradient. In the first
        # step the module's own parameters are asked for too: if a loss depends on these, it passes by the stack.
        wanted = [*parameters.values(), *(stack.own if first else ())]
        found = torch.autograd.grad(losses, wanted, torch.ones_like(losses), allow_unused=True)
        if any(gradient is not None for gradient in found[len(parameters) :]):
            raise NotStackableError("it reaches its parameters by other ways than as attributes of modules")
        for name, buffer in buffers.items():
            stack.buffers[name][rows] = buffer
        for name, values in logs.items():
            stack.log(name, values, rows)
        return {name: gradient for name, gradient in zip(parameters, found, strict=False) if gradient is not None}

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any, number: int | Unknown) -> Any:
        """One client's loss; by name (2,) float32, the sum and the number of the values it logged; its buffers afterwards."""
        given = {**parameters, **buffers}
        state = {name: given[first] for name, first in self._names.items() if first in given}
        with collected_logs(self.module, traced=True) as logs:
            # Torch's own way to tie weights leaves modules that have two names with the stack's tensors in them.
            loss = read_loss(functional_call(self._client, state, (batch, number), tie_weights=False))
        if loss is None or logs.metrics:
            what = "logs torchmetrics objects" if logs.metrics else "skips a batch"
            raise NotStackableError(f"its training_step {what}, which may not be the same for all clients")
        if loss.is_complex():  # of which the stack would take gradients
            raise NotStackableError("its training_step gives a complex loss")
        if type(number) is Unknown and logs.plain_numbers:
            raise NotRecordableError("it logs numbers that are no tensors, which may differ from step to step")
        sums = {name: torch.as_tensor(of_name, device=loss.device).float().reshape(()) for name, of_name in logs.sums.items()}
        values = {name: torch.stack([total, torch.full_like(total, logs.counts[name])]) for name, total in sums.items()}
        # Where the module put another tensor in the place of a buffer, `functional_call` has put it into `state`.
        return loss.reshape(()), values, {name: state[name].detach() for name in buffers}


def _check_untouched(before: dict[nn.Module, dict[str, Any]], kept: KeptPython, drawn: bytes) -> None:
    """Refuse a module that keeps something of a client outside of its buffers, or random numbers that it must not share."""
    if drawn != global_draws():
        raise NotStackableError("its training_step or its data draw from the global random generators")
    for part, attributes in before.items():
        for name, value in vars(part).items():
            if name not in ("training", "_trainer") and (name not in attributes or attributes[name] is not value):
                raise NotStackableError(f"its training_step sets the attribute {name!r}, which would be one for all clients")
    if changed := next(kept.changes(), None):
        raise NotStackableError(f"its training_step changes {changed}, which would be one for all clients")


def _reason(error: Exception) -> str:
    """Why something did not work, in one line."""
    if "randomness" in first_line(error):
        return "its training_step draws random numbers (dropout?), which would differ from those of training one by one"
    return cause(error, NotStackableError, NotRecordableError)
