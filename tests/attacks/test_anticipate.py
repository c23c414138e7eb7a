"""Anticipate: its loss worked out by hand and against NumPy, its gradient, its company, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from attackers_by_hand import equal_data, federation_of
from tiny import Relabel, TinyClient, fit, vector
from torch import nn

from fl_lightning.attacks import PGD, Anticipate, Attacker, Broadcast, Chameleon, Collude, ConstrainAndScale, ModelReplacement
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError

ROUND, N = 3, 4
"""The round that the attack is in, and the clients in it."""


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


class Oracle:
    """A linear model of 3 features and 2 classes in float64, whose clean clients all hold the same samples."""

    def __init__(self) -> None:
        draws = np.random.default_rng(0)
        self.clean = draws.standard_normal((5, 3)), draws.integers(0, 2, 5)
        self.batch = draws.standard_normal((5, 3)), draws.integers(0, 2, 5)
        self.sent, self.theta = draws.standard_normal((2, 2, 3))

    @staticmethod
    def loss(w: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> float:
        return float(-np.log(softmax(inputs @ w.T)[np.arange(len(targets)), targets]).mean())

    def trained(self, w: np.ndarray, steps: int, rate: float) -> np.ndarray:
        inputs, targets = self.clean
        for _ in range(steps):
            w = w - rate * (softmax(inputs @ w.T) - np.eye(2)[targets]).T @ inputs / len(targets)
        return w

    def total(self, theta: np.ndarray, attack: Anticipate, share: float) -> float:
        w = share * theta + (1 - share) * self.trained(self.sent, attack.steps, attack.lr * attack.decay**ROUND)
        total = self.loss(w, *self.batch)
        for j in range(1, attack.rounds):
            w = self.trained(w, attack.steps, attack.lr * attack.decay ** (ROUND + j))
            total += self.loss(w, *self.batch)
        return total

    def gradient(self, attack: Anticipate, share: float) -> np.ndarray:
        """By differences on both sides."""
        found, step = np.zeros_like(self.theta), 1e-5
        for place in np.ndindex(found.shape):
            away = np.zeros_like(found)
            away[place] = step
            found[place] = self.total(self.theta + away, attack, share) - self.total(self.theta - away, attack, share)
        return found / (2 * step)


def tensors(part: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(part[0]), torch.from_numpy(part[1])


SETTINGS: dict[str, dict[str, Any]] = {
    "this round alone": {"rounds": 1},
    "as published": {},
    "large steps": {"rounds": 3, "steps": 2, "lr": 1.0, "decay": 0.9},
    "two attackers together": {"rounds": 2, "lr": 0.5, "together": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_and_its_gradient_are_those_of_the_definition(name):
    oracle, attack = Oracle(), Anticipate(**SETTINGS[name])
    module = nn.Linear(3, 2, bias=False).double()
    module.weight.data = torch.from_numpy(oracle.theta)
    clean = TensorSamples(*tensors(oracle.clean))
    attackers = [Attacker(0, 0, clean, round_number=ROUND), Attacker(1, 0, clean, index=1, round_number=ROUND)]
    assert attack.rehearse([clean, clean], attackers, num_benign=N - 2) == []
    sent = Broadcast(torch.from_numpy(oracle.sent).flatten(), round_number=ROUND)
    losses = [
        attack.loss(module, tensors(oracle.batch), torch.zeros(()), sent) for _ in attack.stages(module, clean, attackers[0])
    ]
    share = (2 if attack.together else 1) / N
    # Logits are float32, of size 10: what their rounding makes of 5 losses.
    assert losses[0].item() == pytest.approx(oracle.total(oracle.theta, attack, share), rel=1e-5)
    losses[0].backward()
    assert module.weight.grad is not None
    np.testing.assert_allclose(module.weight.grad.numpy(), oracle.gradient(attack, share), rtol=1e-3, atol=1e-5)


def test_a_gradient_that_stops_at_the_simulated_steps_would_be_seen():
    """What a back door loses by later training is a part of the gradient that the oracle has."""
    oracle, attack = Oracle(), Anticipate(rounds=3, steps=2, lr=1.0, decay=0.9)
    through = oracle.gradient(attack, 0.25)
    w = 0.25 * oracle.theta + 0.75 * oracle.trained(oracle.sent, 2, 0.9**ROUND)
    stopped = np.zeros_like(w)
    for j in range(3):
        w = w if j == 0 else oracle.trained(w, 2, 0.9 ** (ROUND + j))
        inputs, targets = oracle.batch
        stopped += 0.25 * (softmax(inputs @ w.T) - np.eye(2)[targets]).T @ inputs / len(targets)
    assert np.abs(through - stopped).max() > 0.01


def test_what_is_simulated_leaves_the_module_and_its_buffers():
    module, clean = TinyClient(), TensorSamples(torch.randn(8, 6), torch.arange(8) % 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    attack = Anticipate(rounds=2)
    attack.rehearse([clean], [Attacker(0, 0, clean)], num_benign=3)
    for _ in attack.stages(module, clean, Attacker(0, 0, clean)):
        attack.loss(module, clean.batch(torch.arange(8)), torch.zeros(()), Broadcast(vector(module))).backward()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(
    "others",
    [[PGD(eps=0.01)], [ConstrainAndScale(gamma=2.0)], [ModelReplacement()], [Collude()], [Collude(mode="mean")]],
    ids=["PGD", "ConstrainAndScale", "ModelReplacement", "pool", "mean"],
)
def test_in_company(others):
    federation = federation_of([Relabel(), Anticipate(rounds=2, steps=1), *others])
    fit(federation, equal_data(), rounds=1)
    assert vector(federation.client).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, r"Anticipate\.rounds must be at least 1, got 0"),
        ({"steps": 0}, r"Anticipate\.steps must be at least 1, got 0"),
        ({"lr": 0.0}, r"Anticipate\.lr must be more than 0 and finite, got 0\.0; benign clients' learning rate"),
        ({"decay": 1.1}, r"Anticipate\.decay must be more than 0 and at most 1, got 1\.1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        Anticipate(**settings)


def test_what_cannot_be_together_is_refused():
    for attacks in ([Relabel(), Chameleon(), Anticipate()], [Relabel(), ConstrainAndScale(), Anticipate()]):
        with pytest.raises(ConfigurationError, match=r"Anticipate goes down a loss of its own, .* put it first"):
            fit(federation_of(attacks), equal_data(), rounds=1)
    class_ = {"inputs": torch.zeros(2, 6)}
    attack, clean = Anticipate(), TensorSamples(torch.zeros(2, 6), torch.tensor([0, 1]))
    with pytest.raises(ConfigurationError, match=r"Anticipate needs batches \(inputs, targets\) of two tensors, got dict"):
        attack.loss(TinyClient(), class_, torch.zeros(()), Broadcast(torch.empty(0)))
    assert len(clean) == 2
