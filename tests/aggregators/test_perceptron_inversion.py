"""Trigger inversion written down for perceptrons of two classes, against the general way."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_lightning.aggregators.inversion_step import (
    COST_DOWN,
    COST_UP,
    Problem,
    Progress,
    adam_numbers,
    adam_table,
    cost_factors,
    inversion_step,
)
from fl_lightning.aggregators.perceptron_inversion import can_invert, invert_from_perceptron
from fl_lightning.aggregators.trigger_inversion import Inverted, TriggerInversion, TriggerSpace, to_parameters
from fl_lightning.models import MLP
from fl_lightning.modules.perceptron import Dense, perceptron_layers

CPU = torch.device("cpu")


def problem_of(sizes: tuple[int, ...], groups: dict[int, int], needed: float = 0.5) -> tuple[MLP, Problem, Tensor]:
    """A perceptron, so many samples for each goal, and starts of triggers."""
    torch.manual_seed(0)
    model, counts, f = MLP(sizes=sizes), list(groups.values()), sizes[0]
    inputs, k = torch.randn(sum(counts), f), len(counts)
    problem = Problem(
        inputs=inputs,
        goals=torch.tensor([goal for goal, count in groups.items() for _ in range(count)]),
        group_of=torch.tensor([i for i, count in enumerate(counts) for _ in range(count)]),
        members=torch.block_diag(*[torch.ones(count) for count in counts]),
        weights=torch.cat([torch.full((count,), 1 / count) for count in counts]),
        needed=torch.tensor([math.ceil(needed * count) for count in counts]).float(),
        low=inputs.amin(0),
        width=inputs.amax(0) - inputs.amin(0),
        factors=cost_factors(CPU),
    )
    return model, problem, torch.rand(k, 2 * f)


def layers_of(model: MLP) -> list[Dense]:
    layers = perceptron_layers(model)
    assert layers is not None
    return layers


def written(model: MLP, problem: Problem, start: Tensor, steps: int, patience: int = 10) -> Progress:
    progress = Progress.begin(to_parameters(start), start, COST)
    invert_from_perceptron(layers_of(model), progress, problem, steps, 0.1, patience)
    return progress


def general(model: MLP, problem: Problem, start: Tensor, steps: int, patience: int = 10) -> Progress:
    progress = Progress.begin(to_parameters(start), start, COST)
    with torch.no_grad():
        for row in adam_table(steps, 0.1, CPU):
            inversion_step(model, *progress, *problem, *row, patience=patience)
    return progress


COST = 0.05
SIZES = [(6, 9, 2), (6, 9, 7, 2), (6, 9, 7, 5, 2)]
GROUPS = [{0: 4}, {1: 5}, {1: 3, 0: 5}]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_gradient_is_autograds(sizes: tuple[int, ...], groups: dict[int, int]) -> None:
    """The first average is half of the gradient. Sums have b + F + a layer's terms at most, each rounded a few times."""
    model, problem, start = problem_of(sizes, groups)
    found = written(model, problem, start, 1).average * 2
    wide, f = MLP(sizes=sizes).double(), sizes[0]
    wide.load_state_dict(model.state_dict())
    theta = to_parameters(start).double().requires_grad_()
    triggers = (theta.tanh() + 1) / 2
    masks, patterns = triggers[:, :f], problem.low + problem.width * triggers[:, f:]
    stamped = torch.lerp(problem.inputs.double(), patterns[problem.group_of], masks[problem.group_of])
    errors = torch.nn.functional.cross_entropy(wide(stamped), problem.goals, reduction="none")
    ((errors * problem.weights).sum() + COST * masks.sum()).backward()
    assert theta.grad is not None
    scale = float(theta.grad.abs().max() + problem.inputs.abs().max() * problem.width.max())
    bound = 8 * (len(problem.inputs) + sum(sizes)) * torch.finfo(torch.float32).eps * scale
    torch.testing.assert_close(found.double(), theta.grad, rtol=0, atol=bound)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("sizes", SIZES)
def test_steps_are_those_of_the_general_way(sizes: tuple[int, ...], groups: dict[int, int]) -> None:
    """Theta moves by about the learning rate, .1, in each of 35 steps; of that, rounding is far less than a hundredth."""
    model, problem, start = problem_of(sizes, groups)
    found, expected = written(model, problem, start, 35), general(model, problem, start, 35)
    assert (expected.parameters - to_parameters(start)).abs().max() > 0.5
    for name in ("parameters", "best", "best_sizes", "costs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize(("needed", "factor"), [(0.0, COST_UP**3), (2.0, COST_DOWN**-3)])
def test_costs_follow_successes_and_failures(needed: float, factor: float) -> None:
    model, problem, start = problem_of((6, 9, 2), {1: 3, 0: 5}, needed)
    found, expected = written(model, problem, start, 14, patience=4), general(model, problem, start, 14, patience=4)
    torch.testing.assert_close(found.costs, torch.full((2,), COST * factor))
    torch.testing.assert_close(found.costs, expected.costs)
    assert found.best_sizes.isinf().all() == (needed > 1)
    if needed > 1:
        assert torch.equal(found.best, start)


def test_a_tie_is_class_0s_as_in_the_general_way() -> None:
    model, problem, start = problem_of((6, 9, 2), {1: 3, 0: 5}, needed=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for way in (written, general):
        assert way(model, problem, start, 2).best_sizes.isfinite().tolist() == [False, True]


def test_numbers_of_adam_are_its_tables() -> None:
    table = torch.stack([torch.stack(row) for row in adam_table(20, 0.3, CPU)])
    torch.testing.assert_close(torch.tensor(adam_numbers(20, 0.3)).t(), table)


def test_which_are_inverted_in_this_way() -> None:
    rows = torch.zeros(4, 6)
    assert can_invert(layers_of(MLP(sizes=(6, 5, 2))), rows)
    for sizes in ((6, 5, 3), (6, 2), (5, 5, 2)):
        assert not can_invert(layers_of(MLP(sizes=sizes)), rows)
    assert not can_invert(layers_of(MLP(sizes=(6, 5, 2))), rows.double())
    assert not can_invert(layers_of(MLP(sizes=(6, 5, 2))), torch.zeros(4, 1, 2, 3))


class Plain(MLP):
    """Does not say what it consists of."""


def test_inversion_goes_this_way_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> None:
        calls.append(len(arguments[0]))
        invert_from_perceptron(*arguments)

    monkeypatch.setattr("fl_lightning.aggregators.trigger_inversion.invert_from_perceptron", counted)
    model, problem, start = problem_of((6, 9, 2), {1: 3, 0: 5})
    plain = Plain(sizes=(6, 9, 2))
    plain.load_state_dict(model.state_dict())
    space = TriggerSpace((6,), problem.low, problem.low + problem.width)

    def inverted(of: MLP) -> Inverted:
        groups = list(problem.inputs.split([3, 5]))
        return TriggerInversion(success_rate=0.5).invert(of, space, groups, [1, 0], start, steps=25, cost=COST)

    before = [parameter.clone() for parameter in model.parameters()]
    found, again = inverted(model), inverted(model)
    assert calls == [2, 2]
    expected = inverted(plain)
    assert calls == [2, 2]
    assert torch.equal(found.triggers, again.triggers)
    torch.testing.assert_close(found.triggers, expected.triggers, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.sizes, expected.sizes, rtol=1e-3, atol=1e-3)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
