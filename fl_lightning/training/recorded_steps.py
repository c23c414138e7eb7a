"""A client's local step - forward, backward, optimizer - recorded once and replayed, bit for bit the same.

Small models spend most of a step in Python: modules, autograd's bookkeeping, the optimizer. All of it ends in the same
sequence of tensor operations for every batch of one shape. That sequence is recorded (`make_fx`) and replayed without Python:
on a CPU by TorchScript's interpreter, several steps in a call, on a GPU as a CUDA graph, which also spares the launch of every
kernel.

The operations, and so the bits, are those of plain PyTorch. What cannot be recorded is refused (`NotRecordableError`): values
read back to Python inside a step, other optimizers than SGD, torchmetrics objects, parameters of several types.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchmetrics import Metric

from fl_lightning.modules.hooks import hooks_in_steps
from fl_lightning.modules.recordable import PythonState, aliases, named_tensors
from fl_lightning.modules.traced_graphs import NotRecordableError
from fl_lightning.training.client_logs import LogCollector, logs_to
from fl_lightning.training.client_steps import read_loss
from fl_lightning.training.flat_state import FlatState, look
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recorded_sgd import ARGUMENTS, clip, hyperparameters, settings_of, sgd_step
from fl_lightning.training.recordings import Recording, Recordings, kind_for, tell
from fl_lightning.training.training_step import TrainingStep
from fl_lightning.training.trials import kind_of
from fl_lightning.training.withheld import Unknown, without_trainer
from fl_lightning.updates.copying import copy_each

WAITING_BYTES = 2**20
"""Of batches that wait for their steps to be taken in one call: a step that reads more takes long enough by itself."""


class Held(NamedTuple):
    """What a client ends with: its trainable parameters and floating-point buffers, in the order of their layouts."""

    weights: list[Tensor]
    buffers: list[Tensor]


class RecordedSteps:
    """The steps of one module, client after client.

    What a step takes from Python beside tensors would be recorded as it was the first time. So the number of the batch and the
    Trainer (the epoch, and with it the round) are withheld while recording, and recordings are thrown away whenever a plain
    attribute of the module has changed. Other sources - global variables, a clock - go unseen.

    Args:
        module: its parameters are copied, for steps that change the copies; its buffers are read and written.
        local: how a client trains.

    Attributes:
        known: whether the module has the parts and tensors that it had when the last client began, so that they need not be
            looked for again. Whoever calls `begin` has to know.
        lazy: whether what a client ends with stays in `weights`, and the module's parameters are left as they were.

    Raises:
        NotRecordableError: also from `step`, with the module's values in any state.
    """

    def __init__(self, module: L.LightningModule, local: LocalTraining) -> None:
        if any(isinstance(part, Metric) for part in module.modules()):
            raise NotRecordableError("it holds torchmetrics objects, which count in Python")
        if hooks := hooks_in_steps(module):
            raise NotRecordableError(f"it has hooks of its own, which are called at every step: {', '.join(hooks)}")
        self.module, self.local = module, local
        self.step_of = TrainingStep(module)
        self.recordings = Recordings()
        self.known = self.lazy = self.plain = False
        self.settings: Settings | None = None
        self.waiting: list[list[Tensor]] = []
        self.waiting_for: Recording
        self.flat: FlatState | None = None
        self.own: list[Tensor] = []
        self.state: list[Tensor] = []
        self.made_for: Any = None
        self.optimized: Any = None

    def begin(self, optimizer: Optimizer, plain: bool = False) -> None:
        """Another client, whose fresh `optimizer` remembers nothing; `plain`: nothing but its steps draws until it ends."""
        self.waiting = []  # of a client whose training failed
        self.plain = plain
        # Of what may change from client to client: what the user's own Python may do while optimizers are made.
        still = self.known and self.python.same() and all(p.requires_grad for p in self.parameters)
        if not still:
            self.inspect()
        optimized = self.read(optimizer)
        if still and optimized != self.optimized:  # so there is more that is not known
            self.inspect()
            optimized = self.read(optimizer)
        if self.flat is None or optimized != self.optimized:
            self.flat, self.optimized = FlatState(self.parameters, remembers=optimized[-1]), optimized
            self.recordings.clear()
        self.flat.momenta.zero_()  # which is what SGD's momentum is before the first step
        self.settings = settings_in(optimizer) if plain else None  # which nobody changes until it ends
        self.load()

    def inspect(self) -> None:
        """See what the module is like, and give up recordings that were made when it was otherwise."""
        named = list(named_tensors(self.step_of))
        self.names = aliases(named)
        self.tensors = {name: tensor for name, tensor in named if self.names[name] == name}
        trained = {name: p for name, p in self.tensors.items() if p.requires_grad and isinstance(p, nn.Parameter)}
        self.parameters: list[Tensor] = list(trained.values())
        if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.parameters):
            raise NotRecordableError("its parameters have hooks")
        self.looks = list(map(look, self.parameters))
        self.python = PythonState(list(self.module.named_modules()))
        made_for = (list(trained), list(self.tensors), self.python.state)
        if made_for != self.made_for:
            self.made_for = made_for
            self.trained, self.others = list(trained), [name for name in self.tensors if name not in trained]
            self.recordings.clear()

    def read(self, optimizer: Optimizer) -> tuple[Any, ...]:
        """Take over an optimizer's groups. Returns what vectors depend on: looks, groups' members, any momentum."""
        self.groups = hyperparameters(optimizer, self.parameters)
        return self.looks, [group["places"] for group in self.groups], any(group["momentum"] for group in self.groups)

    def load(self) -> None:
        """Begin the next step with the module's values."""
        assert self.flat is not None, "begin has been called"
        self.own = [self.tensors[name].detach() for name in self.trained]
        copy_each(self.flat.places, self.own)
        state = state_of(self.flat, [self.tensors[name].detach() for name in self.others])
        if kind_for(state).fixed and [new.data_ptr() for new in state] != [old.data_ptr() for old in self.state]:
            self.recordings.clear()
        self.state = state

    def look_again(self) -> None:
        """The module may be another now, though not in what it trains; so may the optimizer's settings."""
        self.settings = None
        trained, looks = self.trained, self.looks
        self.inspect()
        if (self.trained, self.looks) != (trained, looks):
            raise NotRecordableError("what it trains changes between its steps")
        self.load()

    @property
    def weights(self) -> list[Tensor]:
        """What the module's trainable parameters would hold, in their order."""
        assert self.flat is not None, "begin has been called"
        return self.flat.places

    def another(self) -> list[Tensor]:
        """Room for what another client has in place of `state`."""
        assert self.flat is not None, "begin has been called"
        others = self.state[2 : 2 + len(self.others)]
        return state_of(FlatState(self.own, bool(len(self.flat.momenta))), [torch.empty_like(other) for other in others])

    def held(self, state: list[Tensor], buffers: list[str]) -> Held:
        """What a client has, as views of its `state`: weights, and the module's buffers of these names."""
        others, first = 2, 2 + len(self.others) + 1
        at = {name: others + i for i, name in enumerate(self.others)}
        names = [self.names[f"{self.step_of.PREFIX}.{name}"] for name in buffers]
        return Held(state[first : first + len(self.trained)], [state[at[name]] for name in names])

    def copy(self, state: list[Tensor], into: list[Tensor]) -> None:
        """What one client has, for another: weights, momenta, buffers."""
        held = 2 + len(self.others)
        copy_each(into[:held], state[:held])

    def step(self, batch: Any, optimizer: Optimizer, logs: LogCollector) -> None:
        """Train on one batch, at once or together with those that follow.

        Args:
            batch: tensors in tuples, lists or dicts.
            optimizer: the one that `begin` was given, whose settings a scheduler may have changed.
            logs: of this client, is told what the module logs.
        """
        leaves, key = described(batch, optimizer, self.settings)
        recording = self.recordings.recall(key)
        if recording is None:
            self.replay(logs)
            self.take_unrecorded(key, [self.state], optimizer, [leaves], [logs])
            return
        if self.waiting and self.waiting_for is not recording:
            self.replay(logs)
        self.waiting_for = recording
        self.waiting.append(leaves)
        waits = recording.patient and (self.plain or not recording.draws)
        if not waits or len(self.waiting) * sum(leaf.nbytes for leaf in leaves) >= WAITING_BYTES:
            self.replay(logs)

    def replay(self, logs: LogCollector) -> None:
        """Take the steps that wait."""
        if self.waiting:
            self.waiting_for.replay([self.state], [self.waiting], [logs])
            self.waiting = []

    def catch_up(self, logs: LogCollector) -> None:
        """Take the steps that wait; unless `lazy`, the module holds then what came of all."""
        self.replay(logs)
        if not self.lazy:
            self.write_back()

    def write_back(self) -> None:
        """Put what came of all steps into the module."""
        copy_each(self.own, self.weights)

    def step_together(
        self,
        kind: tuple[Any, ...],
        states: dict[int, list[Tensor]],
        optimizer: Optimizer,
        leaves: list[list[Tensor]],
        logs: list[LogCollector],
        alone: list[Tensor],
    ) -> None:
        """A step of each of several clients, in tensors of their own, on batches of one kind.

        A CUDA graph knows its tensors. So that there is not one for each size of a last batch and each seat that its client may
        have, a client that is alone takes its step in tensors that there are for this, and back.

        Args:
            kind: as `described` gives it.
            states: by the number of its seat, which stands for the same tensors every time, each client's in place of `state`.
            optimizer: of one of the clients, made as the one that `begin` was given.
            leaves: of each client's batch.
            logs: of each client.
            alone: such tensors, as `state`.
        """
        given = list(states.values())
        if not kind_for(self.state).fixed:
            self.take(kind, given, optimizer, leaves, logs)
        elif len(states) > 1:
            self.take((*kind, tuple(states)), given, optimizer, leaves, logs)
        else:
            self.copy(given[0], alone)
            self.take(kind, [alone], optimizer, leaves, logs)
            self.copy(alone, given[0])

    def take(
        self, key: Any, states: list[list[Tensor]], optimizer: Optimizer, leaves: list[list[Tensor]], logs: list[LogCollector]
    ) -> None:
        """A step of each client on a batch of one kind."""
        recording = self.recordings.recall(key)
        if recording is None:
            self.take_unrecorded(key, states, optimizer, leaves, logs)
        else:
            recording.replay(states, [[of_client] for of_client in leaves], logs)

    def take_unrecorded(
        self, key: Any, states: list[list[Tensor]], optimizer: Optimizer, leaves: list[list[Tensor]], logs: list[LogCollector]
    ) -> None:
        """The same for a kind without a recording, which gets one now if that is worth it."""
        for group, current in zip(self.groups, optimizer.param_groups, strict=True):
            group.update({name: current[name] for name in ARGUMENTS})
        function = self.function(key[0], self.groups)
        own = type(self.module).__module__.startswith("fl_lightning.")  # a user's own may be another class in another run
        recording = self.recordings.find(key, function, states, leaves, self.about if own else None)
        if recording is not None:
            recording.replay(states, [[of_client] for of_client in leaves], logs)
            return
        for state, of_client, log in zip(states, leaves, logs, strict=True):
            with torch.no_grad(), self.recordings.without(key):
                outputs, names = function(*state, *of_client)
            tell(log, names, [outputs])

    def about(self) -> tuple[Any, ...]:
        """What the steps depend on beside a batch and the optimizer's settings, in words."""
        python = sorted(self.python.state.items())
        return kind_of(self.module, self.local), self.trained, self.others, sorted(self.names.items()), python, self.optimized

    def function(self, structure: Any, groups: list[dict[str, Any]]) -> Callable[..., Any]:
        """A step as a function of nothing but tensors, which it writes into, to what the module logs."""
        assert self.flat is not None, "begin has been called"
        flat, trained, rest, groups = self.flat, len(self.trained), len(self.others), [dict(group) for group in groups]

        def step(*tensors: Tensor) -> tuple[list[Tensor], list[Any]]:
            given = iter(tensors)
            parameters, momenta = islice(given, 2)
            others = list(islice(given, rest))
            gradients, places = next(given), list(islice(given, trained))
            gradient_places, leaves = list(islice(given, trained)), list(given)
            logged: list[tuple[str, Any]] = []
            with torch.enable_grad():
                watched = [place.detach().requires_grad_() for place in places]
                by_name = dict(zip((*self.trained, *self.others), (*watched, *others), strict=True))
                # Torch's own way to tie weights leaves modules that have two names with these tensors in them.
                state = {name: by_name[first] for name, first in self.names.items()}
                with (
                    logs_to(self.module, lambda name, value, *_, **__: logged.append((name, value))),
                    without_trainer(self.module),
                    self.local.autocast(parameters.device),
                ):
                    batch = tuple(leaves) if structure is None else tree_unflatten(leaves, structure)
                    loss = read_loss(functional_call(self.step_of, state, (batch, Unknown("batch_idx")), tie_weights=False))
                if loss is None:
                    raise NotRecordableError("its training_step skipped a batch")
                found = torch.autograd.grad(loss, watched, allow_unused=True)
            for name, tensor in zip(self.others, others, strict=True):
                if state[name] is not tensor:  # the module put another in its place
                    tensor.copy_(state[name].detach())
            used = [i for i, gradient in enumerate(found) if gradient is not None]
            if parameters.is_cuda:
                copy_each([gradient_places[i] for i in used], [found[i] for i in used])
            else:  # one by one, as `results_to_places` wants to see them
                for i in used:
                    gradient_places[i].copy_(found[i])
            if self.local.gradient_clip_norm:
                clip([gradient_places[i] for i in used], self.local.gradient_clip_norm)
            for group in groups:  # SGD passes over what has no gradient
                for run in flat.runs([i for i in group["places"] if i in used]):
                    momentum = cut(momenta, run) if group["momentum"] else None
                    sgd_step([cut(parameters, run)], [cut(gradients, run)], [momentum], group)
            if any(not isinstance(value, Tensor) for _, value in logged):
                raise NotRecordableError("it logs numbers that are no tensors, which may differ from step to step")
            # Copies, as it may log what it goes on to change; not of the loss, which would be an operation in every step.
            values = [value.detach() if value is loss else value.detach().clone() for _, value in logged]
            return values, [name for name, _ in logged]

        return step


def state_of(flat: FlatState, others: list[Tensor]) -> list[Tensor]:
    """What a step reads and writes: parameters, momenta, the module's other tensors, gradients; then views of the parts."""
    return [flat.parameters, flat.momenta, *others, flat.gradients, *flat.places, *flat.gradient_places]


def cut(vector: Tensor, run: slice | None) -> Tensor:
    """A part of a vector; all of it is itself, as each view is an operation in every step."""
    return vector if run is None else vector[run]


Settings = tuple[tuple[Any, ...], ...]
"""Of an optimizer's groups."""


def settings_in(optimizer: Optimizer) -> Settings:
    return tuple(map(settings_of, optimizer.param_groups))


def described(batch: Any, optimizer: Optimizer, settings: Settings | None = None) -> tuple[list[Tensor], tuple[Any, ...]]:
    """A batch's tensors, and what kind of step it takes: first what the batch makes of them, then shapes and settings."""
    optimizer._opt_called = True  # pyrefly: ignore[missing-attribute]  a scheduler warns if nobody steps its optimizer
    leaves, structure = leaves_of(batch)
    return leaves, (structure, tuple(map(look, leaves)), settings or settings_in(optimizer))


def leaves_of(batch: Any) -> tuple[list[Tensor], Any]:
    """The tensors in a batch, and what it makes of them; None for a plain tuple, which most batches are."""
    if type(batch) is tuple and all(type(part) is Tensor for part in batch):
        return list(batch), None
    leaves, structure = tree_flatten(batch)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise NotRecordableError(f"its batches hold {sorted({type(leaf).__name__ for leaf in leaves})}, not tensors alone")
    return leaves, structure
