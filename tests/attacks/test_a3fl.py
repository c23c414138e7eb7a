"""A3FL: its formulas by hand, what it leaves alone, that everybody paints the pattern of the moment, and what it achieves."""

import copy
import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tuned_patterns import attacker, everything, network, pattern, planned, small
from worlds import images

from fl_lightning.attacks import A3FL
from fl_lightning.data import IID, Digits, MapSamples, TensorSamples
from fl_lightning.data.cifar10 import normalize
from fl_lightning.data.crop_and_flip import crop_and_flip
from fl_lightning.errors import ConfigurationError

# ---- the pattern by its definition -------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A model with little between pixels and logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Linear(3 * 8 * 8, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs.flatten(1))


def unit(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.float() / 255


def by_hand(
    module: nn.Module, data: TensorSamples, start: torch.Tensor, *, passes: int, unlearn: int, every: int, weight: float
) -> torch.Tensor:
    """The pattern after `passes` steps on all samples at once, from the formulas; rows 1 and 2, columns 3 and 4, target 2."""

    def with_pattern(delta: torch.Tensor) -> torch.Tensor:
        pixels = data.inputs.float().clone()
        pixels[:, :, 1:3, 3:5] = delta
        return pixels / 255

    target = torch.full((len(data),), 2)
    delta, adversary = start, module
    for k in range(passes):
        if k % every == 0:
            adversary = copy.deepcopy(module)
            velocity = [torch.zeros_like(p) for p in adversary.parameters()]
            for _ in range(unlearn):
                loss = F.cross_entropy(adversary(with_pattern(delta)), data.targets)
                gradients = torch.autograd.grad(loss, list(adversary.parameters()))
                with torch.no_grad():
                    for p, g, v in zip(adversary.parameters(), gradients, velocity, strict=True):
                        v.mul_(0.9).add_(g + 5e-4 * p)
                        p -= 0.01 * v
        old, new = (torch.cat([p.detach().flatten().double() for p in m.parameters()]) for m in (module, adversary))
        cosine = old @ new / (old.norm() * new.norm())
        delta = delta.clone().requires_grad_()
        pixels = with_pattern(delta)
        loss = F.cross_entropy(module(pixels), target) + weight * cosine * F.cross_entropy(adversary(pixels), target)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() - 0.01 * 255 / 4 * gradient.sign()).clamp(0, 255)
    return delta


@pytest.mark.parametrize(("passes", "every"), [(1, 1), (4, 1), (5, 3)])
@pytest.mark.parametrize("weight", [0.01, 5.0])
def test_the_pattern_is_tuned_by_its_definition(passes: int, every: int, weight: float):
    data, module = images(prepare=unit), Linear()
    attack = small(trigger_epochs=passes, adversarial_every=every, batch_size=40, adversarial_weight=weight)
    start = torch.full((3, 2, 2), 2.5 / 4 * 255)
    found = pattern(planned(attack, module, data))
    expected = by_hand(module, data, start, passes=passes, unlearn=2, every=every, weight=weight)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, start)


def test_the_adversary_makes_a_difference_and_may_be_left_out():
    def tuned(weight: float, epochs: int = 2) -> torch.Tensor:
        return pattern(planned(small(adversarial_weight=weight, adversarial_epochs=epochs, trigger_epochs=30)))

    assert not torch.equal(tuned(20.0), tuned(0.0))
    # Without training theta' is theta, so its term only scales the loss.
    torch.testing.assert_close(tuned(20.0, epochs=0), tuned(0.0), atol=2.0, rtol=0)


def test_tuning_brings_pictures_nearer_to_the_target():
    data, module = images(prepare=normalize), network()
    attack = small(trigger_lr=0.1, trigger_epochs=20)

    def loss() -> float:
        inputs, targets = everything(attack.stamp(data))
        with torch.no_grad():
            return float(F.cross_entropy(module(inputs), targets))

    before = loss()
    planned(attack, module, data)
    assert loss() < before - 0.01


def test_a_round_goes_on_from_where_the_last_one_stopped():
    attack, again = (planned(small(), rounds=2) for _ in range(2))
    assert torch.equal(pattern(attack), pattern(again))
    assert not torch.equal(pattern(attack), pattern(planned(small(), rounds=1)))
    start = 2.5 / 4 * 255
    step = 0.01 * 255 / 4
    moves = (pattern(planned(small())) - start) / step  # at most 3 passes of 3 batches
    assert moves.abs().max() <= 9 + 1e-3
    torch.testing.assert_close(moves, moves.round(), atol=1e-3, rtol=0)


def test_the_pattern_stays_within_its_range():
    wild: dict[str, Any] = {"trigger_lr": 1.0, "trigger_epochs": 20}
    tuned = pattern(planned(small(**wild)))
    assert tuned.min() >= 0
    assert tuned.max() <= 255
    narrow = pattern(planned(small(**wild, value_range=(100, 110))))
    assert narrow.min() >= 100
    assert narrow.max() <= 110
    floats = TensorSamples(torch.rand(20, 3, 8, 8) - 0.3, torch.arange(20) % 4)
    tuned = pattern(planned(small(**wild, value_range=(-0.3, 0.7)), data=floats))
    assert tuned.min() >= -0.3
    assert tuned.max() <= 0.7


def test_every_attackers_samples_are_used():
    one, other = images(40, prepare=normalize), images(44, prepare=normalize)
    together, alone = small(), small()
    together.plan(network(), [one, other], [attacker(0), attacker(1)])
    alone.plan(network(), [one], [attacker(0)])
    assert not torch.equal(pattern(together), pattern(alone))


def test_planning_leaves_model_data_and_attackers_alone():
    norm, last = nn.BatchNorm1d(192).eval(), nn.Linear(192, 4)
    client = nn.Sequential(nn.Flatten(), norm, nn.Dropout(), last)
    frozen = last.weight.requires_grad_(False)
    before = copy.deepcopy(client.state_dict())
    data = images(prepare=normalize, augment=crop_and_flip)
    pixels, targets = data.inputs.clone(), data.targets.clone()
    planned(small(), client, data)
    assert all(torch.equal(value, before[name]) for name, value in client.state_dict().items())
    assert client.training
    assert not norm.training
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in client.parameters() if p is not frozen)
    assert all(p.grad is None for p in client.parameters())
    assert torch.equal(data.inputs, pixels)
    assert torch.equal(data.targets, targets)


def test_a_model_with_one_logit_and_a_last_batch_of_one_sample():
    class OneLogit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 1))

        def forward(self, inputs):
            return self.net(inputs).squeeze(1)

    data = images(33, prepare=normalize)
    attack = small(target_label=1)
    attack.plan(OneLogit(), [data.relabel(data.targets % 2)], [attacker()])
    assert pattern(attack).isfinite().all()


def test_an_adversary_that_diverges_does_not_spoil_the_pattern():
    attack = planned(small(adversarial_lr=1e30, adversarial_epochs=9), rounds=2)
    assert pattern(attack).isfinite().all()


# ---- painting ----------------------------------------------------------------------------------------------------------


def test_bytes_are_painted_rounded():
    data = images()
    attack = planned(small(poison_fraction=1.0), data=data.with_inputs(data.inputs))
    inputs, targets = everything(attack.stamp(data))
    assert inputs.dtype == torch.uint8
    assert torch.equal(inputs[:, :, 1:3, 3:5], pattern(attack).round().to(torch.uint8).expand(30, 3, 2, 2))
    inputs[:, :, 1:3, 3:5] = 0
    clean = data.inputs[data.targets != 2].clone()
    clean[:, :, 1:3, 3:5] = 0
    assert torch.equal(inputs, clean)
    assert targets.tolist() == [2] * 30


def test_data_made_earlier_carry_the_pattern_of_the_moment():
    data = images(prepare=normalize)
    attack = small()
    stamped, poisoned = attack.stamp(data), attack.poison(data, attacker())
    before = everything(stamped)[0], everything(poisoned)[0]
    planned(attack)
    for samples, old, carriers in ((stamped, before[0], 30), (poisoned, before[1], 10)):
        new = everything(samples)[0]
        changed = (new != old).flatten(1).any(1)
        assert changed.sum() == carriers
        window = normalize(pattern(attack).round()[None])[0]
        assert torch.equal(new[changed][:, :, 1:3, 3:5], window.expand(carriers, 3, 2, 2))


def test_a_quarter_of_an_attackers_samples_is_poisoned_the_same_in_every_round():
    data = images(64)
    attack = small()

    def rows(**who: int) -> list[int]:
        poisoned = attack.poison(data, attacker(**who))
        inputs, targets = everything(poisoned)
        carries = (inputs[:, :, 1:3, 3:5] == 159).flatten(1).all(1)
        assert (targets[carries] == 2).all()
        assert torch.equal(targets[~carries], data.targets[~carries])
        return torch.nonzero(carries).flatten().tolist()

    first = rows()
    assert len(first) == 16
    assert rows(t=5) == first
    assert rows(client=1) != first
    assert rows(seed=1) != first


def test_label_is_told_and_checked():
    assert A3FL().target_label == 2
    with pytest.raises(ConfigurationError, match=r"A3FL\.target_label must be from 0 to 1.*got 2"):
        A3FL().validate(2)
    assert small().stamp(images().relabel(torch.full((40,), 2))) is None


def test_a_range_that_is_not_the_datas_is_pointed_out(caplog):
    data = Digits(IID(num_clients=2))
    data.setup("fit")
    with caplog.at_level(logging.WARNING):
        small().stamp(data.evaluation["clean"])
    assert "raw pixels of the test images lie between -0.3 and 0.7" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        small(value_range=(-0.3, 0.7)).stamp(data.evaluation["clean"])
        small().stamp(images())
    assert not caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row": -1}, r"A3FL\.row must be at least 0, got -1"),
        ({"height": 0}, r"A3FL\.height must be at least 1, got 0"),
        ({"poison_fraction": 0.0}, r"A3FL\.poison_fraction must be more than 0"),
        ({"trigger_epochs": 0}, r"A3FL\.trigger_epochs must be at least 1, got 0"),
        ({"adversarial_epochs": -1}, r"A3FL\.adversarial_epochs must be at least 0, got -1"),
        ({"adversarial_every": 0}, r"A3FL\.adversarial_every must be at least 1, got 0"),
        ({"batch_size": 0}, r"A3FL\.batch_size must be at least 1, got 0"),
        ({"trigger_lr": 0.0}, r"A3FL\.trigger_lr must be more than 0 and finite, got 0\.0"),
        ({"adversarial_lr": math.inf}, r"A3FL\.adversarial_lr must be more than 0 and finite, got inf"),
        ({"adversarial_weight": -1.0}, r"A3FL\.adversarial_weight must be at least 0 and finite, got -1\.0"),
        ({"adversarial_weight": math.nan}, r"A3FL\.adversarial_weight .* got nan"),
        ({"value_range": (1.0, 0.0)}, r"A3FL\.value_range must be two finite numbers, smaller first, got \[1\.0, 0\.0\]"),
        ({"value_range": (0.0, math.inf)}, r"A3FL\.value_range must be two finite"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        A3FL(**settings)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, images(shape=(3, 6, 6)), "A3FL paints rows 2 to 6 and columns 2 to 6, but images have 6 rows and 6 columns"),
        (
            {"value_range": (-1.0, 1.0)},
            images(),
            r"A3FL\.value_range is \[-1\.0, 1\.0\], but the pixels of this task are bytes",
        ),
        ({}, TensorSamples(torch.zeros(3, 45), torch.ones(3)), r"A3FL needs .* got torch\.float32 inputs of shape \(3, 45\)"),
        ({}, MapSamples([("a text", 1)]), "got MapSamples without one tensor per sample"),
    ],
)
def test_data_that_cannot_carry_the_pattern_are_refused(settings, data, message):
    attack = A3FL(**settings)
    for act in (attack.stamp, lambda d: attack.poison(d, attacker()), lambda d: attack.plan(network(), [d], [attacker()])):
        with pytest.raises(ConfigurationError, match=message):
            act(data)


def test_a_model_without_logits_is_refused():
    class Pair(nn.Linear):
        def forward(self, input: Any) -> Any:  # noqa: A002  nn.Linear's name
            return [input, input]

    with pytest.raises(ConfigurationError, match="Pair, whose logits A3FL needs, returns a list of 0: shape"):
        small().plan(Pair(1, 1), [images()], [attacker()])
