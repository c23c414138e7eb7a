"""Operations traced, rewritten and replayed by TorchScript's interpreter."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from operator import is_
from typing import Any

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
        self.steps = without_python(graph, self.inputs(state), leaves)

    def inputs(self, state: list[Tensor]) -> list[Tensor]:
        """What the rewritten graph takes beside a batch; most clients have the tensors of the one before."""
        if len(state) != len(self.given) or not all(map(is_, state, self.given)):
            self.given = list(state)
            self.made = [*state, *self.constants, *(state[i].t() for i in self.transposed)]
        return self.made

    def __call__(self, state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        return self.steps(self.inputs(state), batches)


def without_python(graph: GraphModule, state: list[Tensor], leaves: list[Tensor]) -> Steps:
    """The steps of a traced graph, by TorchScript's interpreter if that does the same to the example, else in Python."""

    def steps(state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        return [graph(*state, *batch) for batch in batches]

    code = re.sub(r"torch\.ops\.(\w+)\.(\w+)\.\w+\(", r"torch.ops.\1.\2(", graph.code)  # overloads are found by their types
    code = re.sub(r";.*$", "", code, flags=re.MULTILINE)  # variables that are not needed any more
    code = re.sub(r"device\(type='(\w+)'(, index=\d+)?\)", r"torch.device('\1')", code)
    names = [f"state_{i}" for i in range(len(state))]
    arguments = [*names, *(f"batch[{i}]" for i in range(len(leaves)))]
    taken = "".join(f"    {name} = state[{i}]\n" for i, name in enumerate(names))
    code = f"""{code.replace("def forward(self, ", "def step(").strip()}

def steps(state: List[Tensor], batches: List[List[Tensor]]):
    outputs: List[List[Tensor]] = []
{taken}    for batch in batches:
        outputs.append(step({", ".join(arguments)}))
    return outputs
"""
    # Two steps, as what the second finds has to be the same as well.
    # Tensors of the state may be views of each other, and are so in the copies.
    expected, found = ([deepcopy(state), *([leaf.clone() for leaf in leaves] for _ in range(2))] for _ in range(2))
    with warnings.catch_warnings(), torch.no_grad(), torch.jit.optimized_execution(False):
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but nothing else replays without Python
        with isolate_rng():
            outputs = steps(expected[0], expected[1:])
        try:
            script = torch.jit.CompilationUnit(code).steps
            with isolate_rng():
                outputs_of_script = script(found[0], found[1:])
        except RuntimeError:
            return steps
    pairs = zip(chain(*expected, *outputs), chain(*found, *outputs_of_script), strict=True)
    return script if all(torch.equal(a, b) for a, b in pairs) else steps
