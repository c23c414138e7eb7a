"""Rewritings of a step's graph that leave its numbers as they are, bit for bit, and spare operations, memory or both."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

FRESH = {
    aten.addmm.default,
    aten.mm.default,
    aten.convolution.default,
    aten.add.Tensor,
    aten.relu.default,
    aten.threshold_backward.default,
    aten.max_pool2d_with_indices_backward.default,
}
"""What gives a tensor of its own, which nothing else looks at."""

FIRST_FRESH = {aten.native_batch_norm.default, aten.convolution_backward.default, aten.max_pool2d_with_indices.default}
"""What gives several, of which the first is one of its own."""


def remove_detours(graph: GraphModule) -> None:
    """Leave out what gives a tensor that is there already: detached, as there is no autograd, or transposed twice."""
    detach, transpose = aten.detach.default, aten.t.default
    for node in list(graph.graph.nodes):
        if node.target is detach:
            node.replace_all_uses_with(node.args[0])
        elif node.target is transpose and node.args[0].target is transpose:
            node.replace_all_uses_with(node.args[0].args[0])
    for node in reversed(graph.graph.nodes):
        if node.target in (detach, transpose) and not node.users:
            graph.graph.erase_node(node)
    graph.recompile()


def results_to_places(graph: GraphModule) -> None:
    """Have matrix products, and sums over samples, that are copied into an input of the graph write there themselves.

    Products of another type, as of autocast, are copied there without a copy of the right type in between.
    """
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


def results_in_place(graph: GraphModule) -> None:
    """Have ReLU and its derivative write over a result that nothing else reads: what was just written is still in the cache."""
    for node in list(graph.graph.nodes):
        if node.target not in (aten.relu.default, aten.threshold_backward.default):
            continue
        given = node.args[0]
        about, made = given.meta.get("tensor_meta"), node.meta.get("tensor_meta")
        if not is_fresh(given) or len(given.users) > 1 or about is None or made is None:
            continue
        if (about.shape, about.dtype, about.stride) != (made.shape, made.dtype, made.stride):
            continue
        if node.target is aten.relu.default:
            node.target = aten.relu_.default
        else:
            node.target = aten.threshold_backward.grad_input
            node.kwargs = {"grad_input": given}
    graph.recompile()


def is_fresh(node: Node) -> bool:
    """Whether it is a tensor of its own, neither an input nor a part of another."""
    if node.target is operator.getitem:
        of: Any = node.args[0]
        return node.args[1:] == (0,) and of.target in FIRST_FRESH
    return node.target in (*FRESH, aten.relu_.default, aten.threshold_backward.grad_input)


def constants_to_inputs(graph: GraphModule, after: int) -> list[Tensor]:
    """What is made of nothing but numbers, anew in every step, as tensors that are there.

    These are numbers that float32 tensors are multiplied by, momentum say, of which PyTorch makes tensors, and the ones that
    a gradient begins with.

    Returns:
        What the graph takes as further inputs from now on, behind its first `after` ones.
    """
    constants: list[Tensor] = []
    behind = [node for node in graph.graph.nodes if node.op == "placeholder"][after - 1]

    def another(tensor: Tensor) -> Node:
        nonlocal behind
        with graph.graph.inserting_after(behind):
            behind = graph.graph.placeholder(f"constant_{len(constants)}")
        constants.append(tensor)
        return behind

    for node in list(graph.graph.nodes):
        made = node.meta.get("tensor_meta")
        if node.target in (aten.mul.Tensor, aten.mul_.Tensor):
            tensor, factor = node.args
            about = tensor.meta.get("tensor_meta")  # not known of constants
            if isinstance(factor, float) and about is not None and about.dtype == torch.float32:
                node.args = (tensor, another(torch.tensor(factor, dtype=torch.float32)))
        elif node.target is aten.ones_like.default and made is not None and not made.shape and not any(map(writes, node.users)):
            node.replace_all_uses_with(another(torch.ones((), dtype=made.dtype)))
            graph.graph.erase_node(node)
    graph.recompile()
    return constants


def writes(node: Node) -> bool:
    """Whether it may write into what it is given."""
    return node.op == "output" or not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable


def transposes_to_inputs(graph: GraphModule, of: int, after: int) -> list[int]:
    """Transposes of the graph's first `of` inputs, which are written into and stay where they are, as further inputs.

    Returns:
        Of which inputs the graph takes the transposes from now on, behind its first `after` ones.
    """
    given = [node for node in graph.graph.nodes if node.op == "placeholder"]
    transposed, behind = [], given[after - 1]
    for i, source in enumerate(given[:of]):
        views = [user for user in source.users if user.target is aten.t.default]
        if views:
            with graph.graph.inserting_after(behind):
                behind = graph.graph.placeholder(f"transposed_{i}")
            transposed.append(i)
            for view in views:
                view.replace_all_uses_with(behind)
                graph.graph.erase_node(view)
    graph.recompile()
    return transposed
