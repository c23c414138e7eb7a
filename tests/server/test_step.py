"""A step that would leave float32's range leaves nothing behind."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fl_lightning.server.step import take_step
from fl_lightning.updates import parameter_layout

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "plain": (lambda p: torch.optim.SGD(p, lr=2.0), 3e38),
    "momentum": (lambda p: torch.optim.SGD(p, lr=2.0, momentum=0.9), 3e38),
    "nesterov": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 3.4e38),
    "adam": (lambda p: torch.optim.Adam(p), 1e25),
    "amsgrad": (lambda p: torch.optim.Adam(p, amsgrad=True), 1e25),
    "adagrad": (lambda p: torch.optim.Adagrad(p), 1e25),
    "rmsprop": (lambda p: torch.optim.RMSprop(p), 1e25),
}


class Counting:
    """Stands for Lightning's wrapper."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.steps = optimizer, 0

    def step(self) -> None:
        self.steps += 1
        self.optimizer.step()


def bits(state: Any) -> Any:
    """Comparable with ==, and NaN equal to itself."""
    if isinstance(state, torch.Tensor):
        return str(state.dtype), state.numpy().tobytes()
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return [bits(entry) for entry in state] if isinstance(state, list) else state


def world(name: str) -> tuple[nn.Module, Counting, Callable[[float | None], str | None]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    layout = parameter_layout(module)
    stepper = Counting(OPTIMIZERS[name][0](module.parameters()))

    def step(size: float | None) -> str | None:
        gradient = None if size is None else torch.full((layout.num_coordinates,), size)
        return take_step(stepper, module, layout, layout.flatten(module), gradient)

    return module, stepper, step


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_state_are_as_before(name: str, warm: int) -> None:
    module, stepper, step = world(name)
    for _ in range(warm):
        assert step(0.01) is None
    weights, state = copy.deepcopy(module.state_dict()), copy.deepcopy(stepper.optimizer.state_dict())
    reason = step(OPTIMIZERS[name][1])
    assert reason is not None
    assert "not finite" in reason
    assert stepper.steps == warm + 1, "a round that is refused counts as one"
    assert bits(dict(module.state_dict())) == bits(dict(weights))
    assert bits(stepper.optimizer.state_dict()) == bits(state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert step(0.01) is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_the_same_without_the_refused_round(name: str) -> None:
    module, _, step = world(name)
    for size in (0.01, OPTIMIZERS[name][1], torch.nan, -0.02, None):
        step(size)
    other, _, plainly = world(name)
    for size in (0.01, -0.02):
        plainly(size)
    assert bits(dict(module.state_dict())) == bits(dict(other.state_dict()))


def test_without_an_aggregate_nothing_is_refused() -> None:
    _, stepper, step = world("adam")
    assert step(None) is None
    assert step(torch.inf) == "the aggregate is not finite"
    assert stepper.steps == 2
    assert not stepper.optimizer.state


def test_an_optimizer_may_have_infinities_of_its_own() -> None:
    class Best(torch.optim.SGD):
        """Remembers the least gradient, which begins above all."""

        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p].setdefault("best", torch.full_like(p, torch.inf))
            return super().step(closure)

    module, stepper, step = world("plain")
    stepper.optimizer = Best(module.parameters(), lr=0.1)
    assert step(0.01) is not None  # from nothing to infinity
    for p in module.parameters():
        stepper.optimizer.state[p]["best"] = torch.full_like(p, torch.inf)
    assert step(0.01) is None
