import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_lightning.aggregators.trigger_inversion import (
    EDGE,
    Inverted,
    TriggerInversion,
    TriggerSpace,
    input_shape,
    mask_size,
    to_parameters,
)
from fl_lightning.errors import ConfigurationError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def space(*shape: int, low: float = -1.0, high: float = 1.0) -> TriggerSpace:
    values = (shape[0], 1, 1) if len(shape) == 3 else shape
    return TriggerSpace(shape, torch.full(values, low), torch.full(values, high))


class Net(L.LightningModule):
    """Any layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer of these weights (C, F) and biases (C,)."""
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def invert(
    net: Net, where: TriggerSpace, groups: Any, targets: Any, steps: int = 60, seed: int = 0, **settings: Any
) -> Inverted:
    inversion = TriggerInversion(**settings)
    start = torch.stack([inversion.fresh(where.shape, rng(seed + i)) for i in range(len(groups))])
    return inversion.invert(net, where, groups, targets, start, steps=steps, cost=inversion.cost)


# ---- what a trigger is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5)])
def test_a_stamp_is_its_formula(shape: tuple[int, ...]) -> None:
    draws = rng()
    per_channel = (shape[0], 1, 1) if len(shape) == 3 else shape
    low = torch.randn(per_channel, generator=draws)
    high = low + torch.rand(per_channel, generator=draws)
    inputs = low + (high - low) * torch.rand(7, *shape, generator=draws)
    trigger = torch.rand(mask_size(shape) + math.prod(shape), generator=draws)
    found = TriggerSpace(shape, low, high).stamp(inputs, trigger)
    m = np.prod(shape[-2:])
    mask, pattern = trigger[:m].numpy(), trigger[m:].numpy().reshape(shape)
    mask = mask.reshape(shape[1:] if len(shape) == 3 else shape)  # the same for all channels
    pattern = low.numpy() + (high - low).numpy() * pattern
    np.testing.assert_allclose(found.numpy(), (1 - mask) * inputs.numpy() + mask * pattern, atol=1e-6)
    assert (found >= low - 1e-6).all()
    assert (found <= high + 1e-6).all()


def test_without_a_mask_nothing_changes_and_a_whole_one_leaves_the_pattern() -> None:
    inputs = torch.rand(3, 4)
    trigger = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.1, 0.75, 0.2, 0.3])
    stamped = space(4).stamp(inputs, trigger)
    assert stamped[:, 1].tolist() == [0.5] * 3
    assert torch.equal(stamped[:, [0, 2, 3]], inputs[:, [0, 2, 3]])


def to_triggers(parameters: Tensor) -> Tensor:
    return (parameters.tanh() + 1) / 2


def test_parameters_and_triggers_are_inverse_to_each_other() -> None:
    triggers = torch.rand(2, 50, generator=rng())
    torch.testing.assert_close(to_triggers(to_parameters(triggers)), triggers.clamp(EDGE, 1 - EDGE))
    theta = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(to_parameters(to_triggers(theta)), theta, rtol=0, atol=1e-3)
    at_the_edges = to_triggers(to_parameters(torch.tensor([0.0, 0.5, 1.0])))
    assert at_the_edges.tolist() == pytest.approx([EDGE, 0.5, 1 - EDGE], abs=1e-6)


def test_starts() -> None:
    uniform = TriggerInversion().fresh((3, 8, 20), rng())
    mask, pattern = uniform[:160], uniform[160:]
    assert 0 <= mask.min() < 0.01
    assert 0.09 < mask.max() <= 0.1
    assert len(pattern) == 480
    assert pattern.mean() == pytest.approx(0.5, abs=0.05)
    published = TriggerInversion(initial_mask="published").fresh((3, 8, 20), rng())
    corner = torch.zeros(8, 20, dtype=torch.bool)
    corner[:5, :14] = True
    assert (published[:160].view(8, 20)[corner] == 1).all()
    assert torch.equal(published[:160].view(8, 20)[~corner], mask.view(8, 20)[~corner])
    assert torch.equal(published[160:], pattern)


@pytest.mark.parametrize(("n", "needed"), [(1, 1), (6, 6), (7, 6), (20, 17), (40, 34), (100, 85)])
def test_successes_needed(n: int, needed: int) -> None:
    assert TriggerInversion().successes_needed(n) == needed
    assert TriggerInversion(success_rate=0.55).successes_needed(100) == 55  # .55 * 100 is a little more in float64


# ---- which models and inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.zeros(2, 30, 200), r"float32 of shape \(2, 30, 200\)"),
        (torch.zeros(2, 30, dtype=torch.int64), r"int64 of shape \(2, 30\)"),
        (torch.zeros(2), r"float32 of shape \(2,\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "are tuple"),
        ({"input_ids": torch.zeros(2, 3)}, "are dict"),
    ],
)
def test_inputs_that_carry_no_trigger_are_refused(inputs: Any, found: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{found}; it is not applicable to text or to several inputs"):
        input_shape(inputs)


# ---- inversion -------------------------------------------------------------------------------------------------------------


def slowly_inverted(net: Net, where: TriggerSpace, x: Tensor, target: int, start: Tensor, steps: int) -> tuple[Tensor, float]:
    """One trigger, step by step as one would write it down, in float64."""
    net, m = net.double(), mask_size(where.shape)
    theta = torch.atanh(2 * start.double().clamp(EDGE, 1 - EDGE) - 1).requires_grad_()
    adam = torch.optim.Adam([theta], lr=0.1, betas=(0.5, 0.9))
    cost, wins, losses, best, best_size = 1e-3, 0, 0, start, math.inf
    for _ in range(steps):
        trigger = to_triggers(theta)
        mask, unit = trigger[:m].view(where.shape[-2:]), trigger[m:].view(where.shape)
        logits = net((1 - mask) * x.double() + mask * (where.low + (where.high - where.low) * unit))
        loss = nn.functional.cross_entropy(logits, torch.full((len(x),), target)) + cost * mask.abs().sum()
        adam.zero_grad()
        loss.backward()
        won = sum(int(row.argmax() == target) for row in logits) / len(x) >= 0.85
        if won and float(mask.detach().sum()) < best_size:
            best, best_size = trigger.detach(), float(mask.detach().sum())
        wins, losses = (wins + 1, 0) if won else (0, losses + 1)
        if wins == 10:
            cost, wins = cost * 1.5, 0
        if losses == 10:
            cost, losses = cost / 1.5**1.5, 0
        adam.step()
    return best, best_size


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
def test_equals_a_slow_inversion_of_each_trigger_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = Net(nn.Flatten(), nn.Linear(math.prod(shape), 8), nn.Tanh(), nn.Linear(8, 3))
    inputs = torch.rand(30, *shape, generator=rng()) * 2 - 1
    where = space(*shape)
    where.high[0] += 0.5
    groups, targets = [inputs[:11], inputs[11:]], [2, 0]
    found = invert(net, where, groups, targets, steps=80)
    assert found.sizes.isfinite().all()
    for k in range(2):
        start = TriggerInversion().fresh(shape, rng(k))
        trigger, size = slowly_inverted(net, where, groups[k], targets[k], start, 80)
        assert float(found.sizes[k]) == pytest.approx(size, abs=1e-3)
        torch.testing.assert_close(found.triggers[k], trigger.float(), rtol=0, atol=1e-3)


def test_finds_a_feature_that_was_planted() -> None:
    # Class 1 needs a large sum of the first three features; the back door is the sixth, which is 0 in all samples.
    net = Net(linear(torch.tensor([[1.0, 1, 1, 0, 0, 12, 0, 0]]), torch.tensor([-3.0])))
    inputs = torch.rand(40, 8, generator=rng()) * 2 - 1
    inputs[:, 5] = 0
    found = invert(net, space(8), [inputs], [1], steps=300)
    mask = found.triggers[0, :8]
    assert mask.argmax() == 5
    assert mask[5] > 0.8 * mask.sum()
    assert found.sizes[0] < 0.5
    assert found.triggers[0, 8 + 5] > 0.9  # of the range: at the end that opens the back door
    stamped = space(8).stamp(inputs, found.triggers[0])
    assert (net(stamped) > 0).sum() >= 34


def test_finds_a_pixel_that_was_planted() -> None:
    weight = torch.randn(3, 2, 6, 6, generator=rng()) * 0.1
    weight[2, :, 4, 1] = torch.tensor([5.0, -5.0])  # red on, green off
    net = Net(nn.Flatten(), linear(weight.flatten(1), torch.zeros(3)))
    images = torch.rand(30, 2, 6, 6, generator=rng())
    found = invert(net, space(2, 6, 6, low=0.0), [images], [2], steps=300)
    mask, pattern = found.triggers[0, :36].view(6, 6), found.triggers[0, 36:].view(2, 6, 6)
    assert divmod(int(mask.argmax()), 6) == (4, 1)
    assert found.sizes[0] < 1.2
    assert pattern[0, 4, 1] > 0.8
    assert pattern[1, 4, 1] < 0.2


def test_what_cannot_be_found_has_no_size() -> None:
    net = Net(linear(torch.zeros(3, 4), torch.tensor([1.0, 0.0, 0.0])))
    found = invert(net, space(4), [torch.zeros(9, 4), torch.zeros(6, 4)], [0, 1], steps=20)
    assert found.sizes.isfinite().tolist() == [True, False]
    assert torch.equal(found.triggers[1], TriggerInversion().fresh((4,), rng(1)))


def test_the_model_stays_as_it_is() -> None:
    net = Net(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for count in (1, 7):  # in eval mode BatchNorm takes a single sample as well
        invert(net, space(4), [torch.randn(count, 4, generator=rng())], [1], steps=5)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())
    assert all(part.training for part in net.modules())


def test_the_same_start_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    net = Net(nn.Linear(4, 6), nn.Dropout(), nn.Linear(6, 2))
    one, same, other = (invert(net, space(4), [torch.ones(5, 4)], [1], seed=seed, success_rate=0.1) for seed in (0, 0, 1))
    assert torch.equal(one.triggers, same.triggers)
    assert torch.equal(one.sizes, same.sizes)
    assert not torch.equal(one.triggers, other.triggers)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("warmup_steps", 0),
        ("new_steps", 0),
        ("continued_steps", 0),
        ("retry_steps", -1),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("cost", math.nan),
        ("continued_cost", math.inf),
        ("success_rate", 0.0),
        ("success_rate", 1.1),
        ("initial_mask", "corner"),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"TriggerInversion\.{setting} must .*, got '?{value}"):
        TriggerInversion(**{setting: value})
