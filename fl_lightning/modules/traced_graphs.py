"""Operations traced and made ready to be replayed: what can be spared is left out, and TorchScript runs the rest."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fl_lightning.errors import first_line


class NotRecordableError(Exception):
    """Why a module's step cannot be recorded."""


def traced(
    function: Callable[..., Any], state: list[Tensor], leaves: list[Tensor]
) -> tuple[torch.fx.GraphModule, list[str], bool]:
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


def remove_detours(graph: torch.fx.GraphModule) -> None:
    """Leave out what gives a tensor that is there already: detached, as there is no autograd, or transposed twice."""
    detach, transpose = torch.ops.aten.detach.default, torch.ops.aten.t.default
    for node in list(graph.graph.nodes):
        if node.target is detach:
            node.replace_all_uses_with(node.args[0])
        elif node.target is transpose and node.args[0].target is transpose:
            node.replace_all_uses_with(node.args[0].args[0])
    for node in reversed(graph.graph.nodes):
        if node.target in (detach, transpose) and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()


def results_to_places(graph: torch.fx.GraphModule) -> None:
    """Have matrix products, and sums over samples, that are copied into an input of the graph write there themselves.

    Products of another type, as of autocast, are copied there without a copy of the right type in between.
    """
    aten = torch.ops.aten
    for copy in [node for node in graph.graph.nodes if node.target is aten.copy_.default]:
        place, cast = copy.args[:2]
        made = cast.args[0] if cast.target is aten._to_copy.default else cast
        types = {getattr(node.meta.get("tensor_meta"), "dtype", node) for node in (place, cast)}
        fresh = made is not cast and made.target is aten.mm.default and len(made.users) == len(cast.users) == 1
        if fresh and len(types) == 1:
            copy.args = (place, made, *copy.args[2:])
            graph.graph.erase_node(cast)
    number = {node: i for i, node in enumerate(graph.graph.nodes)}
    for copy in [node for node in graph.graph.nodes if node.target is aten.copy_.default]:
        place, made = copy.args[:2]
        result = made.args[0] if made.target is aten.view.default else made
        if made.target is aten.mm.default:
            target, arguments = aten.mm.out, made.args
        elif result is not made and result.target is aten.sum.dim_IntList and result.args[1:] == ([0], True):
            target, arguments = aten.sum.IntList_out, (result.args[0], [0], False)  # of one axis less, as the view of it
        else:
            continue
        needed_elsewhere = len(made.users) > 1 or len(result.users) > 1
        read_before = any(number[user] < number[copy] for user in place.users)
        if place.op != "placeholder" or read_before or needed_elsewhere:
            continue
        wanted, given, summed = (node.meta["tensor_meta"] for node in (place, made, result))
        shape = given.shape if result is made else summed.shape[1:]
        if not wanted.shape == given.shape == shape or not wanted.dtype == given.dtype == summed.dtype:
            continue
        with graph.graph.inserting_before(result):
            written = graph.graph.call_function(target, arguments, {"out": place})
        number[written] = number[result]
        copy.replace_all_uses_with(written)
        for node in dict.fromkeys((copy, made, result)):
            graph.graph.erase_node(node)
    graph.recompile()


def factors_to_inputs(graph: torch.fx.GraphModule, after: int) -> list[Tensor]:
    """Numbers that float32 tensors are multiplied by, momentum say, as tensors, which PyTorch would make of them in every step.

    Returns:
        What the graph takes as further inputs from now on, behind its first `after` ones.
    """
    factors: list[Tensor] = []
    behind = [node for node in graph.graph.nodes if node.op == "placeholder"][after - 1]
    for node in graph.graph.nodes:
        if node.target in (torch.ops.aten.mul.Tensor, torch.ops.aten.mul_.Tensor):
            tensor, factor = node.args
            about = tensor.meta.get("tensor_meta")  # not known of constants
            if isinstance(factor, float) and about is not None and about.dtype == torch.float32:
                with graph.graph.inserting_after(behind):
                    behind = graph.graph.placeholder(f"factor_{len(factors)}")
                factors.append(torch.tensor(factor, dtype=torch.float32))
                node.args = (tensor, behind)
    graph.recompile()
    return factors


Steps = Callable[[list[Tensor], list[list[Tensor]]], list[list[Tensor]]]
"""The state, which is written into, and the leaves of several batches -> what the step of each batch gives."""


def without_python(graph: torch.fx.GraphModule, state: list[Tensor], leaves: list[Tensor]) -> Steps:
    """The steps of a traced graph, by TorchScript's interpreter if that does the same to the example, else in Python."""

    def steps(state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        return [graph(*state, *batch) for batch in batches]

    code = re.sub(r"torch\.ops\.(\w+)\.(\w+)\.\w+\(", r"torch.ops.\1.\2(", graph.code)  # overloads are found by their types
    code = re.sub(r";.*$", "", code, flags=re.MULTILINE)  # variables that are not needed any more
    code = re.sub(r"device\(type='(\w+)'(, index=\d+)?\)", r"torch.device('\1')", code)
    arguments = [f"state[{i}]" for i in range(len(state))] + [f"batch[{i}]" for i in range(len(leaves))]
    code = f"""{code.replace("def forward(self, ", "def step(").strip()}

def steps(state: List[Tensor], batches: List[List[Tensor]]):
    outputs: List[List[Tensor]] = []
    for batch in batches:
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
