"""What is changed in a step's graph: constants, places of results, detours."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fl_lightning.modules.traced_graphs import factors_to_inputs, remove_detours, results_to_places


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
    factors = factors_to_inputs(graph, 1)
    assert [factor.item() for factor in factors] == pytest.approx([0.9, 0.1, 0.9])
    assert graph.code.count("aten.t.") == 1
    assert "detach" not in graph.code
    assert "0.9" in graph.code  # a double's, which would be another number as float32
    first, second = x.clone(), x.clone()
    expected, found = function(first, y), graph(second, *factors, y)
    assert all(torch.equal(a, b) for a, b in zip((first, *expected), (second, *found), strict=True))
