"""Steps that are recorded and replayed: the same bits as without, and who is left to plain PyTorch."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_lightning.models import CNN, MLP
from fl_lightning.modules import replayed_steps
from fl_lightning.modules.replayed_steps import RECORDINGS, take_steps


@pytest.fixture
def at_once(monkeypatch) -> None:
    """Every kind of step is recorded when it is first seen."""
    monkeypatch.setattr(replayed_steps, "LEAST_SECONDS", 0.0)


def forward(module: nn.Module, inputs: Tensor) -> Tensor:
    return module(inputs)


def climb(model: Any, x: Tensor, count: Tensor, rate: Tensor) -> None:
    """Inputs go up the slope of the first output."""
    with torch.enable_grad():
        watched = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(model(watched)[:, 0].sum(), watched)
    x.addcmul_(slope, rate)
    count.add_(1)


def climbed(module: Any, x: Tensor, steps: int = 20, step: Any = climb) -> Tensor:
    state = [x.clone(), torch.zeros(())]
    take_steps(module, forward, step, "climb", state, [[torch.tensor(0.1 + 0.01 * i)] for i in range(steps)])
    assert state[1] == steps
    return state[0]


def slowly(module: nn.Module, x: Tensor, steps: int = 20) -> Tensor:
    for i in range(steps):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(module(x)[:, 0].sum(), x)
        x = x.detach().addcmul(slope, torch.tensor(0.1 + 0.01 * i))
    return x


def recorded(module: nn.Module) -> int:
    return len(RECORDINGS[module].by_kind)


@pytest.mark.parametrize(("module", "shape"), [(MLP(sizes=(6, 8, 3)), (6,)), (CNN(), (3, 32, 32))])
def test_replayed_steps_have_the_bits_of_plain_ones(at_once: None, module: Any, shape: tuple[int, ...]) -> None:
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for count in (1, 4):  # a kind for each
        x = torch.randn(count, *shape)
        steps = 3 if len(shape) == 3 else 20
        for _ in range(2):  # made, and found again
            assert torch.equal(climbed(module, x, steps), slowly(module, x, steps))
    assert recorded(module) == 2
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_recordings_follow_the_weights_and_what_the_module_keeps_in_python(at_once: None) -> None:
    class Scaled(MLP):
        recordable = True
        scale = 1.0

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * self.scale

    module, x = Scaled(sizes=(6, 8, 3)), torch.randn(4, 6)
    module.scale = 1.0
    for scale in (1.0, 2.0, 2.0):
        module.scale = scale
        with torch.no_grad():
            next(module.parameters()).add_(0.1)
        assert torch.equal(climbed(module, x), slowly(module, x))
    assert recorded(module) == 1


def test_tied_weights(at_once: None) -> None:
    module = MLP(sizes=(6, 6, 6))
    module.layers[2].weight = module.layers[0].weight
    x = torch.randn(4, 6)
    assert torch.equal(climbed(module, x), slowly(module, x))
    assert recorded(module) == 1


def test_a_kind_is_recorded_once_that_is_worth_it(monkeypatch) -> None:
    module, x = MLP(sizes=(6, 8, 3)), torch.randn(4, 6)
    assert torch.equal(climbed(module, x), slowly(module, x))
    assert recorded(module) == 0
    monkeypatch.setattr(replayed_steps, "LEAST_SECONDS", 1e-6)
    assert torch.equal(climbed(module, x), slowly(module, x))
    assert recorded(module) == 1
    assert torch.equal(climbed(module, x[:2]), slowly(module, x[:2]))
    assert recorded(module) == 1


class Unknown(MLP):
    """Does not say that it is recordable."""


class Dropped(MLP):
    recordable = True

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(inputs), 0.5)


class Reading(MLP):
    recordable = True

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) if float(inputs.detach().sum()) < 1e9 else inputs


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Unknown, "Unknown does not say that it is recordable"),
        (Dropped, "draws random numbers"),
        (Reading, "cannot be traced"),
    ],
)
def test_others_are_left_to_plain_pytorch(at_once: None, caplog, kind: type[MLP], reason: str) -> None:
    module, x = kind(sizes=(6, 8, 3)), torch.randn(4, 6)
    with caplog.at_level(logging.DEBUG, "fl_lightning"):
        torch.manual_seed(0)
        found = climbed(module, x)
        torch.manual_seed(0)
        assert torch.equal(found, slowly(module, x))
        climbed(module, x)
    assert caplog.text.count("are taken one by one in Python") == 1
    assert reason in caplog.text
    assert RECORDINGS[module].refused


def test_a_mistake_of_the_users_own_is_raised(at_once: None) -> None:
    class Wrong(MLP):
        recordable = True

        def forward(self, inputs: Tensor) -> Tensor:
            raise KeyError("my own mistake")

    with pytest.raises(KeyError, match="my own mistake"):
        climbed(Wrong(sizes=(6, 8, 3)), torch.randn(4, 6))


def test_numbers_that_are_none_are_replayed_too(at_once: None) -> None:
    module, x = MLP(sizes=(6, 8, 3)), torch.randn(4, 6)
    with torch.no_grad():
        next(module.parameters())[0, 0] = torch.nan
    found, expected = climbed(module, x), slowly(module, x)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isnan().any()
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
