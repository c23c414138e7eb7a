"""Constrain-and-scale: the anomaly terms, the two-term loss against a plain loop, scaling, the stop, and its company."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from attackers_by_hand import by_hand, equal_data, federation_of
from rows import Watch
from tiny import Relabel, fit, vector
from torch import Tensor, nn

from fl_lightning import AttackersTraining
from fl_lightning.attacks import PGD, Attack, Broadcast, Collude, ConstrainAndScale, Knowledge, ModelReplacement, Neurotoxin
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

TOLERANCE = 1e-6
"""Of weights of size 1 after five rounds of 5 clients with at most 9 steps in float32, whose rounding is 6e-8."""


def at(weights: list[float]) -> nn.Linear:
    module = nn.Linear(len(weights), 1, bias=False)
    module.weight.data = torch.tensor([weights])
    return module


# ---- the example worked out by hand: w_G = (1, 2), X = (1.5, 1), ten clients ---------------------------------------------


def test_the_model_that_is_sent_replaces_the_global_one():
    updates = torch.zeros(10, 2)
    updates[3] = torch.tensor([1.0, 2.0]) - torch.tensor([1.5, 1.0])
    malicious = torch.arange(10) == 3
    shard = UpdateShard.from_updates(updates, malicious=malicious)
    ConstrainAndScale().corrupt(shard, Knowledge(mask=lambda s: torch.ones(2, dtype=torch.bool)))
    assert shard.values[3].tolist() == [-5.0, 10.0]
    assert (torch.tensor([1.0, 2.0]) - shard.values[3]).tolist() == [6.0, -8.0]
    assert (torch.tensor([1.0, 2.0]) - shard.values.mean(0)).tolist() == [1.5, 1.0]


def test_the_gradient_of_the_distance():
    module, sent = at([1.5, 1.0]), Broadcast(torch.tensor([1.0, 2.0]))
    ConstrainAndScale().anomaly(module, sent.weights).backward()
    assert module.weight.grad is not None
    assert module.weight.grad[0].tolist() == pytest.approx([0.447214, -0.894427], abs=1e-6)
    cosine = ConstrainAndScale(distance="cosine").anomaly(module, sent.weights)
    assert cosine.item() == pytest.approx(0.131757, abs=1e-6)


# ---- the terms -----------------------------------------------------------------------------------------------------------


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(1 - a @ b / math.sqrt((a @ a) * (b @ b)))


ORACLES: dict[Any, Any] = {
    "l2": lambda w, c: math.sqrt(((w - c) ** 2).sum()),
    "l2_squared": lambda w, c: ((w - c) ** 2).sum(),
    "cosine": cosine_distance,
    "scaled_cosine": lambda w, c: 1000 * cosine_distance(c + 3 * (w - c), c),
}


@pytest.mark.parametrize("distance", ORACLES)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_terms_add_up_to_the_definition(distance, alpha):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))
    center = torch.randn(4 * 3 + 3 + 3 * 2 + 2)
    own = 2.5 + 0 * next(module.parameters()).sum()
    found = ConstrainAndScale(alpha=alpha, distance=distance, gamma=3.0).loss(module, None, own, Broadcast(center))
    trained = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad]).double().numpy()
    expected = alpha * 2.5 + (1 - alpha) * ORACLES[distance](trained, center.double().numpy())
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    found.backward()
    frozen = [p.grad for p in module.parameters() if not p.requires_grad]
    assert frozen == [None, None]


@pytest.mark.parametrize("distance", ["l2", "l2_squared", "cosine"])
def test_where_training_starts_gradients_are_finite(distance):
    module = at([1.0, 2.0])
    ConstrainAndScale(distance=distance).anomaly(module, torch.tensor([1.0, 2.0])).backward()
    assert module.weight.grad is not None
    assert module.weight.grad.abs().max() < 1e-6


def norm_of(parameters: list[Tensor], start: list[Tensor]) -> Tensor:
    return torch.cat([(p - w).flatten() for p, w in zip(parameters, start, strict=True)]).norm()


@pytest.mark.parametrize("gamma", [1.0, None])
def test_five_rounds_are_those_of_a_plain_loop(gamma):
    attack = ConstrainAndScale(alpha=0.6, gamma=gamma)
    federation = federation_of([Relabel(), attack])
    fit(federation, equal_data(), rounds=5)
    expected = by_hand(5, loss=lambda own, now, start: 0.6 * own + 0.4 * norm_of(now, start), gamma=gamma)
    torch.testing.assert_close(vector(federation.client), expected, rtol=TOLERANCE, atol=TOLERANCE)
    without = by_hand(5, gamma=gamma)
    assert (without - expected).abs().max() > 100 * TOLERANCE


def test_attackers_end_their_round_when_their_loss_is_low_enough():
    bound = 0.7
    attack, settings = ConstrainAndScale(alpha=0.6, gamma=1.0, stop_loss=bound), {"epochs": 6}
    federation = federation_of([Relabel(), attack], attackers=AttackersTraining(epochs=6))
    fit(federation, equal_data(), rounds=3)
    ends: list[bool] = []

    def low(losses: list[float]) -> bool:
        ends.append(sum(losses) / len(losses) <= bound)
        return ends[-1]

    two_terms: Any = lambda own, now, start: 0.6 * own + 0.4 * norm_of(now, start)  # noqa: E731
    expected = by_hand(3, loss=two_terms, ends=low, **settings)
    torch.testing.assert_close(vector(federation.client), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert {True, False} == set(ends), "some passes are followed by others, some are the last"


# ---- with others ---------------------------------------------------------------------------------------------------------


def malicious_norms(*attacks: Attack) -> list[float]:
    watch = Watch()
    federation = federation_of([Relabel(), *attacks])
    fit(federation, equal_data(), rounds=1, callbacks=[watch])
    return watch.updates[0][watch.malicious[0]].norm(dim=1).tolist()


def test_a_stronger_constraint_stays_nearer():
    norms = [max(malicious_norms(ConstrainAndScale(alpha=alpha, gamma=1.0))) for alpha in (1.0, 0.5, 0.1)]
    assert norms[0] > norms[1] > norms[2] > 0


def test_projected_then_scaled():
    norms = malicious_norms(PGD(eps=0.01), ConstrainAndScale(gamma=3.0))
    assert norms == pytest.approx([0.03] * len(norms), rel=1e-4)


def test_it_scales_as_model_replacement_does():
    assert malicious_norms(ConstrainAndScale(alpha=1.0)) == malicious_norms(ModelReplacement())


@pytest.mark.parametrize(
    "other", [Neurotoxin(fraction=0.2), Collude(), Collude(mode="mean")], ids=["neurotoxin", "pool", "mean"]
)
def test_in_company(other):
    norms = malicious_norms(other, ConstrainAndScale(gamma=2.0))
    assert all(0 < norm < math.inf for norm in norms)


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"ConstrainAndScale\.alpha must be more than 0 and at most 1, got 0\.0"),
        ({"alpha": 1.5}, r"ConstrainAndScale\.alpha .* got 1\.5"),
        ({"alpha": math.nan}, r"ConstrainAndScale\.alpha .* got nan"),
        ({"distance": "l1"}, r"ConstrainAndScale\.distance must be one of l2, l2_squared, cosine, scaled_cosine, got 'l1'"),
        ({"distance": "scaled_cosine"}, r"distance scaled_cosine is that of the scaled model, so that gamma must be given"),
        ({"gamma": -1.0}, r"ConstrainAndScale\.gamma must be more than 0 and finite, got -1\.0"),
        ({"stop_loss": -0.1}, r"ConstrainAndScale\.stop_loss must be 0 \(never\) or more, and finite, got -0\.1"),
        ({"stop_loss": math.inf}, r"ConstrainAndScale\.stop_loss .* got inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ConstrainAndScale(**settings)
