"""What is changed in a step's graph: constants, transposes, places of results, detours."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fl_lightning.modules.graph_passes import (
    constants_to_inputs,
    remove_detours,
    results_in_place,
    results_to_places,
    transposes_to_inputs,
)


def test_results_are_written_to_their_places() -> None:
    def function(*tensors: Tensor) -> list[Tensor]:
        product, total, read_before, used_twice, wide, spread, x = tensors
        read = read_before * 2
        shared = x @ x
        product.copy_(x.t() @ x)
        total.copy_(x.sum([0], keepdim=True).view(3))
        read_before.copy_(x @ x.t())
        used_twice.copy_(shared)
        wide.copy_(x @ x)
        spread.copy_(x @ x)
        return [read, shared, product * total]

    x = torch.randn(3, 3)
    places = [torch.randn(shape) for shape in ((3, 3), (3,), (3, 3), (3, 3))] + [
        torch.randn(3, 3).double(),
        torch.randn(2, 3, 3),
    ]
    graph = make_fx(function)(*(place.clone() for place in places), x)
    results_to_places(graph)
    assert graph.code.count("aten.copy_.") == 4  # what is read before, needed elsewhere, of another type or shape
    assert graph.code.count("aten.mm.out") == graph.code.count("aten.sum.IntList_out") == 1
    first, second = ([place.clone() for place in places] for _ in range(2))
    expected, found = function(*first, x), graph(*second, x)
    assert all(torch.equal(a, b) for a, b in zip((*first, *expected), (*second, *found), strict=True))


def test_a_place_that_is_written_twice_holds_what_came_last() -> None:
    def function(place: Tensor, x: Tensor) -> list[Tensor]:
        place.copy_(x @ x)
        place.copy_(x.t() @ x, non_blocking=True)
        return [x]

    x = torch.randn(3, 3)
    graph, place = make_fx(function)(torch.zeros(3, 3), x), torch.zeros(3, 3)
    results_to_places(graph)
    graph(place, x)
    assert torch.equal(place, x.t() @ x)


def test_detours_and_numbers_leave_a_recording() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        x.mul_(0.9).add_(y.t().t().t() * 0.1).mul_(0.9)
        return [x.detach().double() * 0.9, x * 2]

    x, y = torch.randn(3, 3), torch.randn(3, 3)
    graph = make_fx(function)(x.clone(), y)
    remove_detours(graph)
    factors = constants_to_inputs(graph, 1)
    assert [factor.item() for factor in factors] == pytest.approx([0.9, 0.1, 0.9])
    assert graph.code.count("aten.t.") == 1
    assert "detach" not in graph.code
    assert "0.9" in graph.code  # a double's, which would be another number as float32
    first, second = x.clone(), x.clone()
    expected, found = function(first, y), graph(second, *factors, y)
    assert all(torch.equal(a, b) for a, b in zip((first, *expected), (second, *found), strict=True))


def test_relu_writes_over_what_nothing_else_reads() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        alone = (x @ y).relu()
        shared = x @ y
        kept = shared.relu()
        of_input = x.relu()
        of_view = (x @ y)[0].relu()
        wide = torch.ops.aten.threshold_backward((x @ y), kept, 0)
        seen = torch.ops.aten.threshold_backward(shared, kept, 0)
        return [alone, kept, shared + 1, of_input, of_view, wide, seen]

    x, y = torch.randn(3, 3), torch.randn(3, 3)
    graph = make_fx(function)(x, y)
    results_in_place(graph)
    assert graph.code.count("aten.relu_.") == 1
    assert graph.code.count("aten.relu.default") == 3  # of what is read elsewhere, of an input, of a part of a product
    assert graph.code.count("grad_input = ") == 1
    before = x.clone()
    assert all(torch.equal(a, b) for a, b in zip(function(x, y), graph(x, y), strict=True))
    assert torch.equal(x, before)


def test_the_first_gradient_is_no_operation_unless_it_is_written_into() -> None:
    def function(x: Tensor, y: Tensor) -> list[Tensor]:
        total = (x @ y).sum()
        return [torch.ones_like(total) * total, torch.ones_like(total).add_(total), torch.ones_like(x) * y]

    x, y = torch.randn(3, 3), torch.randn(3, 3)
    graph = make_fx(function)(x, y)
    (one,) = constants_to_inputs(graph, 1)
    assert graph.code.count("aten.ones_like.") == 2  # what is written into, and more than a number
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(function(x, y), graph(x, one, y), strict=True))
    assert one == 1


def test_transposes_of_the_state_follow_what_is_written_into_it() -> None:
    def function(weight: Tensor, x: Tensor) -> list[Tensor]:
        product = x @ weight.t()
        weight.add_(x.t() @ product)
        return [product, x @ weight.t()]

    weight, x = torch.randn(3, 3), torch.randn(3, 3)
    graph = make_fx(function)(weight.clone(), x)
    assert transposes_to_inputs(graph, 1, 1) == [0]
    assert graph.code.count("aten.t.") == 2  # of the batch, and of what an operation gives
    first, second = weight.clone(), weight.clone()
    transposed = second.t()
    for _ in range(2):
        expected, found = function(first, x), graph(second, transposed, x)
        assert all(torch.equal(a, b) for a, b in zip((first, *expected), (second, *found), strict=True))
