"""Projected gradient descent: which points are moved, where to, and after which steps."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rows import INF, NAN, Watch, bits, drawn
from tiny import fit, tiny_federation
from torch import Tensor, nn

from fl_lightning import CohortSampler, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import PGD, Broadcast
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import parameter_layout

CENTER = drawn(1, 4 * 6 + 6 + 6 * 2 + 2)[0]


def module_at(weights: Tensor) -> nn.Module:
    """Two layers with the given trainable parameters, a frozen one between them, and a buffer."""
    module = nn.Sequential(
        nn.Linear(4, 6), nn.Linear(6, 6).requires_grad_(False), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2)
    )
    parameter_layout(module).load(module, weights)
    return module


def projected(weights: Tensor, attack: PGD, step: int = 1, steps: int = 1, round_number: int = 0) -> Tensor:
    """The trainable parameters afterwards; nothing else may change."""
    module = module_at(weights)
    before = copy.deepcopy(module.state_dict())
    attack.constrain(module, Broadcast(CENTER, round_number=round_number), step, steps)
    for name, tensor in module.state_dict().items():
        assert name.startswith(("0.", "3.")) or torch.equal(tensor, before[name]), name
    return parameter_layout(module).flatten(module)


def away(length: float, seed: int = 1) -> Tensor:
    """A point at a distance from the center."""
    direction = drawn(1, len(CENTER), seed)[0].double()
    return (CENTER.double() + length * direction / direction.norm()).float()


@settings(deadline=None, max_examples=80)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 99))
def test_inside_nothing_moves_and_outside_all_goes_onto_the_sphere(log_eps, log_length, seed):
    eps, point = 10**log_eps, away(10**log_length, seed)
    exact = point.double().numpy() - CENTER.double().numpy()
    norm = math.sqrt(math.fsum(exact**2))
    assume(abs(norm / eps - 1) > 1e-6)  # on the sphere itself rounding decides
    found = projected(point, PGD(eps=eps))
    if norm <= eps:
        assert bits(found) == bits(point)
    else:
        expected = CENTER.double().numpy() + eps * exact / norm
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=2.0**-22, atol=1e-6 * eps)
        reached = (found.double() - CENTER.double()).norm().item()
        assert reached == pytest.approx(eps, rel=1e-5, abs=1e-6)  # float32 at the center's size
    torch.testing.assert_close(projected(found, PGD(eps=eps)), found, rtol=1e-6, atol=1e-6)


def test_by_hand():
    module = nn.Linear(2, 1, bias=False)
    module.weight.data = torch.tensor([[4.0, 6.0]])  # (3, 4) away from (1, 2), 5 long
    PGD(eps=5.0).constrain(module, Broadcast(torch.tensor([1.0, 2.0])), 1, 1)
    assert module.weight.tolist() == [[4.0, 6.0]]
    PGD(eps=2.5).constrain(module, Broadcast(torch.tensor([1.0, 2.0])), 1, 1)
    assert module.weight.tolist() == [[2.5, 4.0]]


def test_the_center_itself_stays():
    assert bits(projected(CENTER, PGD(eps=1e-6))) == bits(CENTER)


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_projects_every_so_many_steps_and_after_the_last(every):
    point, steps = away(9.0), 7
    moved = [step for step in range(1, steps + 1) if bits(projected(point, PGD(every=every), step, steps)) != bits(point)]
    assert moved == {1: [1, 2, 3, 4, 5, 6, 7], 2: [2, 4, 6, 7], 3: [3, 6, 7], 10: [7]}[every]


def test_the_ball_shrinks_from_round_to_round():
    for t in (0, 1, 2, 50):
        found = projected(away(9.0), PGD(eps=2.0, decay=0.9), round_number=t)
        assert (found - CENTER).norm().item() == pytest.approx(2 * 0.9**t, rel=1e-4)
        assert (projected(away(9.0), PGD(), round_number=t) - CENTER).norm().item() == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize("value", [NAN, INF, 1e30])
def test_hostile_parameters(value):
    point = away(1.0)
    point[3] = value
    found = projected(point, PGD(eps=2.0))
    if value == 1e30:
        assert (found - CENTER).norm().item() == pytest.approx(2, rel=1e-4)
        assert found[3] - CENTER[3] == pytest.approx(2, rel=1e-4)
    else:
        assert not found.isfinite().all()  # for the server to exclude


def norms_in_a_federation(attack: PGD, epochs: float = 1.5, rounds: int = 2) -> list[tuple[list[float], list[float]]]:
    """Of malicious and of benign updates, round by round."""
    watch = Watch()
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.3)
    federation = tiny_federation(
        aggregator=FedAvg(), attacks=[attack], cohort=cohort, local=LocalTraining(epochs=epochs, batch_size=8)
    )
    fit(federation, rounds=rounds, callbacks=[watch])
    norms = [updates.double().norm(dim=1) for updates in watch.updates]
    return [(of[bad].tolist(), of[~bad].tolist()) for of, bad in zip(norms, watch.malicious, strict=True)]


@pytest.mark.parametrize("every", [1, 10, 1000])
def test_in_a_federation_malicious_updates_end_within_the_ball(every):
    for t, (malicious, benign) in enumerate(norms_in_a_federation(PGD(eps=0.05, every=every, decay=0.5))):
        eps = 0.05 * 0.5**t
        assert malicious == pytest.approx([eps] * len(malicious), rel=1e-4)
        assert min(benign) > 2 * eps


def test_projections_between_steps_keep_the_client_near():
    """With just one at the end, the direction is that of a training that went far."""
    watches = [norms_in_a_federation(PGD(eps=eps), rounds=1)[0][0] for eps in (1e-3, 1e9)]
    assert max(watches[0]) <= 1e-3 * (1 + 1e-4)
    assert min(watches[1]) > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, r"PGD\.eps must be more than 0 and finite, got 0\.0"),
        ({"eps": -2.0}, r"PGD\.eps .* got -2\.0"),
        ({"eps": NAN}, r"PGD\.eps .* got nan"),
        ({"eps": INF}, r"PGD\.eps .* got inf"),
        ({"every": 0}, r"PGD\.every must be at least 1, got 0"),
        ({"decay": 0.0}, r"PGD\.decay must be more than 0 and at most 1, got 0\.0"),
        ({"decay": 1.01}, r"PGD\.decay .* got 1\.01"),
        ({"decay": NAN}, r"PGD\.decay .* got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        PGD(**settings)


def rhythm_by_hand(epochs: int, batches: int, every: int) -> list[bool]:
    """The authors' loop: after the batches 0, every, 2 every ... of an epoch, and after its last."""
    return [batch % every == 0 or batch == batches - 1 for _ in range(epochs) for batch in range(batches)]


@pytest.mark.parametrize(("epochs", "batches", "every"), [(2, 25, 10), (1, 11, 10), (3, 1, 10), (2, 4, 1), (2, 5, 7)])
def test_the_authors_rhythm(epochs, batches, every):
    attack, steps = PGD(eps=1.0, every=every, epochs=epochs), epochs * batches
    moved = [bits(projected(away(5.0), attack, step, steps)) != bits(away(5.0)) for step in range(1, steps + 1)]
    assert moved == rhythm_by_hand(epochs, batches, every)


def test_a_round_that_ends_early_ends_inside_the_ball():
    assert PGD(every=10, epochs=2).projects(7, 7)


def test_epochs_that_are_not_the_attackers_are_refused():
    with pytest.raises(ConfigurationError, match=r"PGD\.epochs is 3, but an attacker takes 8 local steps"):
        projected(away(5.0), PGD(every=2, epochs=3), 2, 8)
    with pytest.raises(ConfigurationError, match=r"PGD\.epochs must be at least 1, got 0"):
        PGD(epochs=0)
