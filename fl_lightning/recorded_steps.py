"""A client's local step - forward, backward, optimizer - recorded once and replayed, bit for bit the same.

Small models spend most of a step in Python: modules, autograd's bookkeeping, the optimizer. All of it ends in the same
sequence of tensor operations for every batch of one shape. That sequence is recorded (`make_fx`) and replayed without Python:
on a CPU by TorchScript's interpreter, on a GPU as a CUDA graph, which also spares the launch of every kernel.

The operations, and so the bits, are those of plain PyTorch. What cannot be recorded is refused (`NotRecordableError`): values
read back to Python inside a step, other optimizers than SGD, torchmetrics objects.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Optimizer
from torch.optim.sgd import sgd
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchmetrics import Metric

from fl_lightning.local_training import LocalTraining, LogCollector, logs_to, read_loss

RECORD_AFTER = 3
"""Batches of a shape that run unrecorded first: a last batch of a rare size is not worth a recording."""

MOST_RECORDINGS = 32

ARGUMENTS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "fused")
"""Of `torch.optim.sgd.sgd`."""


class NotRecordableError(Exception):
    """Why a module's step cannot be recorded."""


class RecordedSteps:
    """The steps of one module, client after client.

    Args:
        module: its own parameters and buffers are read and written.
        local: how a client trains.

    Raises:
        NotRecordableError: also from `step`, with the module's values as they were before that step.
    """

    def __init__(self, module: L.LightningModule, local: LocalTraining) -> None:
        if any(isinstance(part, Metric) for part in module.modules()):
            raise NotRecordableError("it holds torchmetrics objects, which count in Python")
        self.module, self.local = module, local
        self.step_of = _TrainingStep(module)
        names = [name for name, parameter in self.step_of.named_parameters() if parameter.requires_grad]
        self.trained = names
        self.others = [name for name, _ in self.step_of.named_parameters() if name not in set(names)]
        self.buffers = [name for name, _ in self.step_of.named_buffers()]
        self.momenta = [torch.zeros_like(parameter) for parameter in module.parameters() if parameter.requires_grad]
        self.seen: Counter[Any] = Counter()
        self.recordings: dict[Any, _Recording] = {}
        self.state: list[Tensor] = []

    def begin(self) -> None:
        """Another client: its optimizer remembers nothing. Zero is what SGD's momentum is before the first step."""
        torch._foreach_zero_(self.momenta)
        tensors = dict(self.step_of.named_parameters()) | dict(self.step_of.named_buffers())
        state = [tensors[name].detach() for name in (*self.trained, *self.others, *self.buffers)] + self.momenta
        moved = [new.data_ptr() for new in state] != [old.data_ptr() for old in self.state]
        if moved and state[0].is_cuda:  # a CUDA graph knows addresses, and the module may have replaced a buffer
            self.recordings.clear()
        self.state = state

    def step(self, batch: Any, index: int, optimizer: Optimizer, logs: LogCollector) -> None:
        """Train on one batch.

        Args:
            batch: tensors in tuples, lists or dicts.
            index: number of the batch in this client's training.
            optimizer: fresh from `configure_optimizers`, of which the hyperparameters are read.
            logs: is told what the module logs.
        """
        optimizer._opt_called = True  # pyrefly: ignore[missing-attribute]  a scheduler warns if nobody steps its optimizer
        leaves, structure = tree_flatten(batch)
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise NotRecordableError(f"its batches hold {sorted({type(leaf).__name__ for leaf in leaves})}, not tensors alone")
        settings = tuple(group[name] for group in optimizer.param_groups for name in ARGUMENTS if name in group)
        key = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves), settings)
        recording = self.recordings.get(key)
        if recording is not None:
            recording.replay(self.state, leaves, logs)
            return
        function = self.function(structure, index, hyperparameters(optimizer, self.module))
        self.seen[key] += 1
        if self.seen[key] > RECORD_AFTER and len(self.recordings) < MOST_RECORDINGS:
            with isolate_rng():  # recording runs the step, and draws what only the replay may draw
                self.recordings[key] = (_CudaRecording if self.state[0].is_cuda else _Recording)(function, self.state, leaves)
            self.recordings[key].replay(self.state, leaves, logs)
        else:
            with torch.no_grad():
                outputs, names = function(*self.state, *leaves)
            tell(logs, names, outputs)

    def function(self, structure: Any, index: int, groups: list[dict[str, Any]]) -> Callable[..., Any]:
        """A step as a function of nothing but tensors, which it writes into, to what the module logs."""
        trained, rest = len(self.trained), len(self.others) + len(self.buffers)

        def step(*tensors: Tensor) -> tuple[list[Tensor], list[Any]]:
            parameters, others = tensors[:trained], tensors[trained : trained + rest]
            momenta, leaves = tensors[trained + rest : 2 * trained + rest], tensors[2 * trained + rest :]
            logged: list[tuple[str, Any]] = []
            autocast = self.local.autocast(parameters[0].device)
            with torch.enable_grad():
                watched = [parameter.detach().requires_grad_() for parameter in parameters]
                state = dict(zip((*self.trained, *self.others, *self.buffers), (*watched, *others), strict=True))
                batch = tree_unflatten(list(leaves), structure)
                with logs_to(self.module, lambda name, value, *_, **__: logged.append((name, value))), autocast:
                    loss = read_loss(torch.func.functional_call(self.step_of, state, (batch, index)))
                if loss is None:
                    raise NotRecordableError("its training_step skipped a batch")
                gradients = torch.autograd.grad(loss, watched, allow_unused=True)
            if self.local.gradient_clip_norm:
                clip([gradient for gradient in gradients if gradient is not None], self.local.gradient_clip_norm)
            for group in groups:
                # On a CPU one by one, with the same bits: TorchScript would leave out what writes into lists.
                group = group if gradients[0] is None or gradients[0].is_cuda else group | {"foreach": False}
                used = [i for i in group["places"] if gradients[i] is not None]
                sgd(
                    [parameters[i] for i in used],
                    [gradients[i] for i in used],
                    [momenta[i] if group["momentum"] else None for i in used],
                    **{name: value for name, value in group.items() if name != "places"},
                )
            names = [(name, None if isinstance(value, Tensor) else float(value)) for name, value in logged]
            return [value.detach() for _, value in logged if isinstance(value, Tensor)], names

        return step


class _TrainingStep(nn.Module):
    """A module whose `forward` is another's `training_step`."""

    def __init__(self, module: L.LightningModule) -> None:
        super().__init__()
        self.module = module
        self.arguments = module.training_step.__func__.__code__.co_argcount - 1  # pyrefly: ignore[missing-attribute]

    def forward(self, batch: Any, index: int) -> Any:
        return self.module.training_step(*(batch, index)[: self.arguments])


def hyperparameters(optimizer: Optimizer, module: nn.Module) -> list[dict[str, Any]]:
    """The arguments of `torch.optim.sgd.sgd` for each of an optimizer's groups, and the places of its parameters.

    Raises:
        NotRecordableError: for another optimizer, and where a step depends on whether it is the first.
    """
    if type(optimizer) is not SGD:
        raise NotRecordableError(
            f"its optimizer is {type(optimizer).__name__}, and only SGD's steps are alike from the first on"
        )
    place = {parameter: i for i, parameter in enumerate(p for p in module.parameters() if p.requires_grad)}
    groups = []
    for group in optimizer.param_groups:
        if group["momentum"] and group["dampening"]:
            raise NotRecordableError("dampening makes SGD's first step unlike the others")
        if isinstance(group["lr"], Tensor) or group.get("differentiable"):
            raise NotRecordableError("its learning rate is a tensor, or its optimizer differentiable")
        groups.append({name: group[name] for name in ARGUMENTS} | {"places": [place[p] for p in group["params"] if p in place]})
    return groups


def clip(gradients: list[Tensor], most: float) -> None:
    """What `torch.nn.utils.clip_grad_norm_` does, for gradients that belong to no parameter."""
    share = (most / (get_total_norm(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(share)


def tell(logs: LogCollector, names: list[tuple[str, float | None]], outputs: list[Tensor]) -> None:
    """Log what one step logged, in its order: tensors from `outputs`, constants from `names`."""
    tensors = iter(outputs)
    for name, constant in names:
        logs.log(name, next(tensors) if constant is None else constant)


class _Recording:
    """The operations of a step for one shape of batch, found by running it on copies of its tensors, and replayed."""

    def __init__(self, function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]) -> None:
        self.names: list[Any] = []

        def outputs(*tensors: Tensor) -> list[Tensor]:
            found, self.names = function(*tensors)
            return found or [tensors[-1]]  # a graph has an output

        try:
            with torch.no_grad():
                self.graph = make_fx(outputs)(*(tensor.clone() for tensor in (*state, *leaves)))
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            raise NotRecordableError(f"its step cannot be traced: {str(error).strip().splitlines()[0]}") from error
        for node in list(self.graph.graph.nodes):  # without autograd a detached tensor is the tensor
            if node.target is torch.ops.aten.detach.default:
                node.replace_all_uses_with(node.args[0])
                self.graph.graph.erase_node(node)
        self.graph.recompile()
        try:
            self.run = self.graph if leaves[0].is_cuda else without_python(self.graph, [*state, *leaves])
        except RuntimeError as error:
            raise NotRecordableError(f"its step cannot be replayed: {str(error).strip().splitlines()[0]}") from error

    def replay(self, state: list[Tensor], leaves: list[Tensor], logs: LogCollector) -> None:
        with torch.no_grad(), torch.jit.optimized_execution(False):  # the operations as they were recorded
            tell(logs, self.names, self.run(*state, *leaves))


class _CudaRecording(_Recording):
    """Replayed as a CUDA graph, which reads the batch from a place of its own."""

    def __init__(self, function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]) -> None:
        super().__init__(function, state, leaves)
        self.places = [leaf.clone() for leaf in leaves]
        before = [tensor.clone() for tensor in state]
        self.captured = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        try:
            with torch.no_grad():
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):  # libraries set themselves up at first use, which must not be captured
                    for _ in range(3):
                        self.graph(*state, *self.places)
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(self.captured):
                    self.outputs = self.graph(*state, *self.places)
        except RuntimeError as error:
            raise NotRecordableError(f"no CUDA graph can be made of its step: {str(error).splitlines()[0]}") from error
        finally:
            torch._foreach_copy_(state, before)

    def replay(self, state: list[Tensor], leaves: list[Tensor], logs: LogCollector) -> None:
        torch._foreach_copy_(self.places, leaves)
        self.captured.replay()
        tell(logs, self.names, [output.clone() for output in self.outputs])  # the next replay writes over them


def without_python(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., list[Tensor]]:
    """A traced graph for TorchScript's interpreter, if that does the same to `example`; else as it is."""
    expected, found = ([tensor.clone() for tensor in example] for _ in range(2))
    code = re.sub(r"torch\.ops\.(\w+)\.(\w+)\.\w+\(", r"torch.ops.\1.\2(", graph.code)  # overloads are found by their types
    code = re.sub(r";.*$", "", code, flags=re.MULTILINE)  # variables that are not needed any more
    code = re.sub(r"device\(type='(\w+)'(, index=\d+)?\)", r"torch.device('\1')", code)
    with warnings.catch_warnings(), torch.no_grad(), torch.jit.optimized_execution(False):
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but nothing else replays without Python
        with isolate_rng():
            outputs = graph(*expected)
        try:
            script = torch.jit.CompilationUnit(code.replace("def forward(self, ", "def forward(").strip() + "\n").forward
            with isolate_rng():
                outputs_of_script = script(*found)
        except RuntimeError:
            return graph
    same = (torch.equal(a, b) for a, b in zip((*outputs, *expected), (*outputs_of_script, *found), strict=True))
    return script if all(same) else graph
