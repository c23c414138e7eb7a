"""Operations traced, rewritten and replayed by TorchScript's interpreter."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from fl_lightning.errors import first_line
from fl_lightning.modules.graph_passes import (
    constants_to_inputs,
    remove_detours,
    results_in_place,
    results_to_places,
    transposes_to_inputs,
)

MOST_COMPILED = 256
"""Texts whose compiled steps a process keeps: learning rates are in them, of which a long session may see many."""


class NotRecordableError(Exception):
    """Why a module's step cannot be recorded."""


def traced(function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]) -> tuple[GraphModule, list[str], bool]:
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
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, SyntaxError) as error:
        # SyntaxError: of an operation whose name is a word of Python's, as `random_.from`.
        raise NotRecordableError(f"its step cannot be traced: {first_line(error)}") from error
    draws = any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for n in graph.graph.nodes)
    return graph, names, draws


Steps = Callable[[list[Tensor], list[list[Tensor]]], list[list[Tensor]]]
"""The state, which is written into, and the leaves of several batches -> what the step of each batch gives."""


class Script(NamedTuple):
    """What TorchScript repeats, in plain types, for processes that have not traced it.

    Attributes:
        code: of the steps.
        constants: type and value of the numbers that they take as tensors.
        transposed: which of the state they take transposed.
    """

    code: str
    constants: list[tuple[str, float]]
    transposed: list[int]


class Replay:
    """The steps of a traced graph, which is rewritten, in the fastest way that gives the same.

    Args:
        graph: of a step, as `traced` gives it.
        state: what its steps read, and write into.
        leaves: of a batch.

    Attributes:
        steps: what is run, on the state and what is made of it or of nothing once for all steps.
    """

    def __init__(self, graph: GraphModule, state: list[Tensor], leaves: list[Tensor]) -> None:
        remove_detours(graph)
        results_to_places(graph)
        results_in_place(graph)
        self.constants = constants_to_inputs(graph, len(state))
        self.transposed = transposes_to_inputs(graph, len(state), len(state) + len(self.constants))
        self.given: list[Tensor] = []
        self.made: list[Tensor] = []
        self.code = code_of(graph, len(self.inputs(state)), len(leaves))
        self.steps = without_python(graph, self.code, self.inputs(state), leaves)

    @classmethod
    def of(cls, script: Script) -> Replay:
        """The same steps again, without a graph.

        Raises:
            RuntimeError: where TorchScript does not take them.
        """
        replay = cls.__new__(cls)
        replay.constants = [torch.tensor(value, dtype=getattr(torch, dtype)) for dtype, value in script.constants]
        replay.transposed, replay.code, replay.steps = script.transposed, script.code, compiled(script.code)
        replay.given, replay.made = [], []
        return replay

    @property
    def script(self) -> Script | None:
        """For other processes; None where the steps are taken in Python."""
        if not isinstance(self.steps, torch.jit.ScriptFunction):
            return None
        constants = [(str(constant.dtype).removeprefix("torch."), constant.item()) for constant in self.constants]
        return Script(self.code, constants, self.transposed)

    def inputs(self, state: list[Tensor]) -> list[Tensor]:
        """What the rewritten graph takes beside a batch; most clients have the tensors of the one before."""
        if len(state) != len(self.given) or not all(map(is_, state, self.given)):
            self.given = list(state)
            self.made = [*state, *self.constants, *(state[i].t() for i in self.transposed)]
        return self.made

    def __call__(self, state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        return self.steps(self.inputs(state), batches)


def without_python(graph: GraphModule, code: str, state: list[Tensor], leaves: list[Tensor]) -> Steps:
    """The steps of a traced graph, by TorchScript's interpreter if that does the same to the example, else in Python.

    Args:
        graph: of a step.
        code: as `code_of` gives it.
        state: what its steps take beside a batch.
        leaves: of a batch.
    """

    def steps(state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        return [graph(*state, *batch) for batch in batches]

    expected, found = for_two_steps(state, leaves), for_two_steps(state, leaves)
    with warnings.catch_warnings(), torch.no_grad(), torch.jit.optimized_execution(False):
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but nothing else replays without Python
        with isolate_rng():
            outputs = steps(expected[0], expected[1:])
        try:
            script = compiled(code)
            with isolate_rng():
                outputs_of_script = script(found[0], found[1:])
        except RuntimeError:
            return steps
    pairs = zip(chain(*expected, *outputs), chain(*found, *outputs_of_script), strict=True)
    return script if all(torch.equal(a, b) for a, b in pairs) else steps


def code_of(graph: GraphModule, num_state: int, num_leaves: int) -> str:
    """The steps of a traced graph as TorchScript reads them."""
    code = re.sub(r"torch\.ops\.(\w+)\.(\w+)\.\w+\(", r"torch.ops.\1.\2(", graph.code)  # overloads are found by their types
    code = re.sub(r";.*$", "", code, flags=re.MULTILINE)  # variables that are not needed any more
    code = re.sub(r"device\(type='(\w+)'(, index=\d+)?\)", r"torch.device('\1')", code)
    names = [f"state_{i}" for i in range(num_state)]
    arguments = [*names, *(f"batch[{i}]" for i in range(num_leaves))]
    taken = "".join(f"    {name} = state[{i}]\n" for i, name in enumerate(names))
    return f"""{code.replace("def forward(self, ", "def step(").strip()}

def steps(state: List[Tensor], batches: List[List[Tensor]]):
    outputs: List[List[Tensor]] = []
{taken}    for batch in batches:
        outputs.append(step({", ".join(arguments)}))
    return outputs
"""


def for_two_steps(state: list[Tensor], leaves: list[Tensor]) -> list[list[Tensor]]:
    """Copies to try steps on: of the state, and of a batch twice, as what a second step finds has to be the same as well.

    Tensors of the state may be views of each other, and are so in the copy.
    """
    return [deepcopy(state), *([leaf.clone() for leaf in leaves] for _ in range(2))]


@lru_cache(MOST_COMPILED)
def compiled(code: str) -> Any:
    """`steps` of what `code_of` gives, once in a process and in those that are forked from it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but nothing else replays without Python
        return torch.jit.CompilationUnit(code).steps


def takes_the_same(run: Replay, function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]) -> list[str] | None:
    """What a step logs if two steps, replayed, are `function`'s to the bit; else None. Tried on copies."""
    expected, found = for_two_steps(state, leaves), for_two_steps(state, leaves)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        with isolate_rng():
            logged = [function(*expected[0], *batch) for batch in expected[1:]]
        try:
            with isolate_rng():
                outputs = run(found[0], found[1:])
        except RuntimeError:  # it is about other tensors
            return None
    (values, names), (more_values, _) = logged
    pairs = [*zip(chain(*expected), chain(*found), strict=True)]
    for of_function, of_script in zip((values, more_values), outputs, strict=True):
        if of_function and len(of_function) != len(of_script):
            return None
        pairs += zip(of_function, of_script, strict=False)  # a graph has an output in any case
    return names if all(torch.equal(a, b) for a, b in pairs) else None
