"""3DFed: what each attacker sends, by hand from what it has to start from; and who is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from rows import INF, NAN, bits, drawn
from tiny import tiny_tensors
from torch import Tensor, nn

from fl_lightning.attacks import (
    Adaptive,
    Attack,
    Attacker,
    Broadcast,
    Collude,
    Knowledge,
    ModelReplacement,
    PixelTrigger,
    ThreeDFed,
)
from fl_lightning.attacks.feedback import Indicator
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layers import layers_of

LAYERS = layers_of(["net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"], [(6, 8), (6,), (4, 6), (4,)])
D, HIDDEN, OUTPUT = 82, slice(0, 48), slice(54, 82)
N, F = 7, 4
MALICIOUS = torch.arange(N) >= N - F


def made(**settings: Any) -> ThreeDFed:
    """After the checks and the plan of a round; curvature rises from the last entry to the first."""
    attack = ThreeDFed(indicator_scale=50.0, tensor="net.0.weight", **settings)
    attack.meet([PixelTrigger(target_label=1), attack])
    attack.check_model(LAYERS)
    attack.curvature = torch.arange(48.0, 0.0, -1)
    return attack


def sent(attack: ThreeDFed, updates: Tensor, honest: Tensor, last_step: Tensor | None = None, t: int = 3) -> Tensor:
    """The attackers' rows after the attack."""
    shard = UpdateShard([updates.clone()], torch.ones(N), MALICIOUS, num_coordinates=D, layers=LAYERS, seed=1, round_number=t)
    known = torch.zeros(D) if last_step is None else last_step
    attack.corrupt(shard, Knowledge(lambda s: torch.ones(D, dtype=torch.bool), UpdateShard.from_updates(honest), known))
    assert bits(shard.values[~MALICIOUS]) == bits(updates[~MALICIOUS])
    return shard.values[MALICIOUS]


def rows() -> tuple[Tensor, Tensor]:
    return drawn(N, D), 2 * drawn(F, D, seed=1)


# ---- what is sent ----------------------------------------------------------------------------------------------------


def test_one_back_door_scaled_with_noise_that_cancels_out_and_indicators():
    updates, honest = rows()
    attack = made()
    found = sent(attack, updates, honest).double().numpy()
    first = updates[N - F].double().numpy()
    scale = np.linalg.norm(honest.double().numpy(), axis=1).mean() / np.linalg.norm(first)
    assert 1 < scale < 5
    places = [indicator.coordinate for indicator in attack.feedback.planted]
    elsewhere = [k for k in range(54) if k not in places]
    np.testing.assert_allclose(found[:, elsewhere], np.tile(scale * first[elsewhere], (F, 1)), rtol=1e-5)
    noise = found[:, OUTPUT] - scale * first[OUTPUT]
    assert np.abs(noise).max() > 0.1
    np.testing.assert_allclose(noise.sum(0), 0, atol=1e-5)
    weights, biases = noise[:, :24].reshape(F, 4, 6), noise[:, 24:]
    np.testing.assert_allclose(weights[:, 1], 0, atol=1e-6)  # the target's neuron
    np.testing.assert_allclose(biases[:, 1], 0, atol=1e-6)
    assert len({row.tobytes() for row in found}) == F


def test_indicators_stand_where_nothing_moves_and_the_loss_is_flat():
    updates, honest = rows()
    attack = made()
    found = sent(attack, updates, honest).double().numpy()
    mean = honest.double().numpy().mean(0)
    first = updates[N - F].double().numpy() * np.linalg.norm(honest.double().numpy(), axis=1).mean()
    first /= np.linalg.norm(updates[N - F].double().numpy())
    quiet = np.argsort(np.abs(first[HIDDEN]) + np.abs(mean[HIDDEN]), kind="stable")[: 10 * F]
    expected = sorted(quiet.tolist(), reverse=True)[:F]  # the curvature falls
    assert [indicator.coordinate for indicator in attack.feedback.planted] == expected
    assert [indicator.group for indicator in attack.feedback.planted] == F * [0]
    for row, place, indicator in zip(found, expected, attack.feedback.planted, strict=True):
        assert row[place] == indicator.value
        np.testing.assert_allclose(indicator.value, 50 * first[place], rtol=1e-5)


def test_a_dead_entry_gets_a_value_of_its_own():
    updates, honest = rows()
    updates[:, 5] = honest[:, 5] = 0
    attack = made()
    attack.curvature = torch.ones(48)
    sent(attack, updates, honest)
    assert attack.feedback.planted[0] == Indicator(5, float(torch.tensor(1e-3)), 0)


@pytest.mark.parametrize(("decoys", "k"), [(0, 0), (2, 2), (9, 3)])
def test_decoys_are_benign_but_for_one_output_weight(decoys, k):
    updates, honest = rows()
    attack = made(decoys=decoys)
    found = sent(attack, updates, honest)
    places = [indicator.coordinate for indicator in attack.feedback.planted]
    assert [indicator.group for indicator in attack.feedback.planted] == (F - k) * [0] + k * [-1]
    scale = honest.double().norm(dim=1).mean() / updates[N - F].double().norm()
    for number, j in enumerate(range(F - k, F), start=1):
        apart = (found[j] - honest[j]).double()
        apart[places[j]] = 0
        changed = torch.nonzero(apart).flatten().tolist()
        nearest = 54 + int((scale * updates[N - F].double() - honest[j].double())[54:78].abs().argmin())
        assert changed == [nearest]
        assert apart[nearest] == pytest.approx(10 * number / k, rel=1e-5)


def test_groups_are_of_some_size_each():
    updates, honest = rows()
    attack = made(group_size=3)
    found = sent(attack, updates, honest).double()
    assert [indicator.group for indicator in attack.feedback.planted] == [0, 0, 0, 1]
    alone, group = found[3, OUTPUT], found[:3, OUTPUT]
    torch.testing.assert_close(group.mean(0), alone, rtol=1e-5, atol=1e-5)  # alone there is no noise
    assert len(attack.feedback.alphas) == 2


@pytest.mark.parametrize(("honest_size", "expected"), [(0.01, 1.0), (100.0, 5.0)])
def test_it_is_not_scaled_down_nor_beyond_the_bound(honest_size, expected):
    updates, honest = rows()
    attack = made(group_size=1)
    found = sent(attack, updates, honest_size * honest)
    torch.testing.assert_close(found[0, 48:], expected * updates[N - F, 48:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_is_not_made_up(bad):
    updates, honest = rows()
    honest[1, 3] = bad
    assert sent(made(decoys=3), updates, honest).isfinite().all()
    updates[N - F, 7] = bad
    attack = made()
    assert bits(sent(attack, updates, honest)) == bits(updates[N - F].expand(F, D))
    assert attack.feedback.planted == []


def test_what_was_planted_is_read_in_the_next_round_alone():
    updates, honest = rows()
    attack = made()
    sent(attack, updates, honest, t=3)
    step = torch.zeros(D)
    for indicator, share in zip(attack.feedback.planted, (0.25, 0.1, 0.0, 0.24), strict=True):
        step[indicator.coordinate] = share * indicator.value
    state = attack.state_dict()
    sent(attack, updates, honest, step, t=4)
    assert attack.feedback.fates == ["accepted", "clipped", "rejected", "accepted"]
    late = made()
    late.load_state_dict(state)
    sent(late, updates, honest, step, t=5)
    assert late.feedback.fates == []


# ---- training --------------------------------------------------------------------------------------------------------


def test_the_loss_is_of_task_and_distance():
    module = nn.Linear(2, 1, bias=False)
    module.weight.data.copy_(torch.tensor([[1.5, 1.0]]))
    task = module(torch.ones(1, 2)).sum()  # 2.5
    broadcast = Broadcast(torch.tensor([1.0, 2.0]))
    found = made(distance_weight=0.25).loss(module, None, task, broadcast)
    assert found.item() == pytest.approx(0.75 * 2.5 + 0.25 * 1.25**0.5)


def test_curvature_is_the_gradient_of_the_sum_of_gradients():
    torch.manual_seed(0)
    module, data = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), tiny_tensors(30)
    attack = ThreeDFed(batch_size=7)
    attack.meet([attack])
    attack.check_model(layers_of(["0.weight", "0.bias", "2.weight", "2.bias"], [(4, 6), (4,), (3, 4), (3,)]))
    attack.plan(module, [data], [Attacker(0, 0, data)])
    weights = {name: parameter.detach().double() for name, parameter in module.named_parameters()}

    def gradient_sum(at: Tensor) -> Tensor:
        hidden = torch.tanh(data.inputs.double() @ at.T + weights["0.bias"])
        loss = nn.functional.cross_entropy(hidden @ weights["2.weight"].T + weights["2.bias"], data.targets)
        return torch.autograd.grad(loss, at)[0].sum()

    for k in range(24):  # by differences
        aside = torch.zeros(24, dtype=torch.float64)
        aside[k] = 1e-5
        ahead, behind = (weights["0.weight"] + sign * aside.view(4, 6) for sign in (1, -1))
        expected = (gradient_sum(ahead.requires_grad_()) - gradient_sum(behind.requires_grad_())) / 2e-5
        assert attack.curvature is not None
        assert float(attack.curvature[k]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    assert all(parameter.grad is None for parameter in module.parameters())


# ---- who is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [Adaptive(), ModelReplacement(), Collude(), ThreeDFed()])
def test_nothing_may_rewrite_updates_after_it(after: Attack):
    attack = ThreeDFed()
    with pytest.raises(ConfigurationError, match=r"ThreeDFed and \w+ do not go together so: what attackers plant must be what"):
        attack.meet([PixelTrigger(), attack, after])
    attack.meet([PixelTrigger(), after, attack])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance_weight": 1.0}, r"distance_weight must lie in \[0, 1\), got 1.0"),
        ({"indicator_scale": 1.0}, "indicator_scale must be more than 1 and finite, got 1.0"),
        ({"push": NAN}, "push must be finite, got nan"),
        ({"decoys": -1}, "decoys must be at least 0, got -1"),
        ({"group_size": 0}, "group_size must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=rf"ThreeDFed\.{message}"):
        ThreeDFed(**settings)


def test_a_model_without_such_tensors_is_refused():
    with pytest.raises(ConfigurationError, match=r"ThreeDFed plants values in w .* set ThreeDFed\.tensor to one of these"):
        ThreeDFed(tensor="w").check_model(LAYERS)
    with pytest.raises(ConfigurationError, match="ThreeDFed plants values in a weight before the output layer"):
        ThreeDFed().check_model(LAYERS[2:])
    with pytest.raises(ConfigurationError, match="ThreeDFed looks at the output layer"):
        ThreeDFed().check_model(LAYERS[:1])
    attack = ThreeDFed()
    attack.check_model(layers_of(["a", "b", "c", "w", "v"], [(3, 3), (9, 1), (9,), (2, 9), (2,)]))
    assert attack.marked is not None
    assert attack.marked.name == "b", "the last of the largest"
