"""Neurotoxin: which parameters are put back, and that this is projected gradient descent."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import INF, NAN, Watch, bits, drawn
from tiny import TinyClient, fit, tiny_federation
from torch import Tensor, nn

from fl_lightning import CohortSampler
from fl_lightning.aggregators import FedAvg, SignSGD
from fl_lightning.attacks import Attacker, Broadcast, Neurotoxin
from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import parameter_layout


def held_by_hand(last_step: Tensor, fraction: float) -> list[int]:
    """Coordinates by falling size of the step, equal ones by number."""
    steps = [abs(step) for step in last_step.tolist()]
    order = sorted(range(len(steps)), key=lambda k: (-steps[k], k))
    return sorted(k for k in order[: max(1, round(fraction * len(steps)))] if steps[k] > 0)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=60), st.sampled_from([0.01, 0.05, 0.3, 0.5, 0.99]))
def test_holds_what_moved_most(steps, fraction):
    last_step = torch.tensor(steps) / 7
    sent = Broadcast(torch.zeros(len(steps)), last_step)
    assert torch.nonzero(Neurotoxin(fraction=fraction).held(sent, [len(steps)])).flatten().tolist() == held_by_hand(
        last_step, fraction
    )


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.9])
def test_puts_these_back_and_leaves_the_others(fraction):
    center, point, last_step = drawn(3, 4 * 6 + 6 + 6 * 2 + 2)
    module = nn.Sequential(
        nn.Linear(4, 6), nn.Linear(6, 6).requires_grad_(False), nn.BatchNorm1d(6, affine=False), nn.Linear(6, 2)
    )
    layout = parameter_layout(module)
    layout.load(module, point)
    before = copy.deepcopy(module.state_dict())
    Neurotoxin(fraction=fraction).constrain(module, Broadcast(center, last_step), step=3, steps=9)
    expected = point.clone()
    for k in held_by_hand(last_step, fraction):
        expected[k] = center[k]
    assert bits(layout.flatten(module)) == bits(expected)
    for name, tensor in module.state_dict().items():
        assert name.startswith(("0.", "3.")) or torch.equal(tensor, before[name]), name


def test_before_any_global_step_nothing_is_held():
    attack = Neurotoxin(fraction=0.9)
    assert not attack.held(Broadcast(torch.zeros(50), torch.zeros(50)), [50]).any()


def test_every_round_is_looked_at_anew():
    attack, steps = Neurotoxin(fraction=0.1), drawn(3, 200)
    for t in (0, 1, 2, 0):
        held = attack.held(Broadcast(torch.zeros(200), steps[t], t), [200])
        assert torch.nonzero(held).flatten().tolist() == held_by_hand(steps[t], 0.1)


@pytest.mark.parametrize(
    ("steps", "held"),
    [
        ([-1.0, -1.0, -1.0, -1.0], [True, True, False, False]),
        ([1e-45, -1e30, 0.0, 3e38], [False, True, False, True]),
        ([INF, 1.0, 0.0, -INF], [True, False, False, True]),
    ],
)
def test_hostile_steps(steps, held):
    assert Neurotoxin(fraction=0.5).held(Broadcast(torch.zeros(4), torch.tensor(steps)), [4]).tolist() == held


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_sgd_it_is_the_projection_of_every_gradient(momentum):
    """Against steps with gradients that are set to zero on what is held."""
    inputs, targets, last_step = drawn(8, 4), torch.arange(8) % 2, drawn(1, 14)[0]
    held = held_by_hand(last_step, 0.4)
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 1, bias=False), nn.Linear(1, 1))
    theirs = copy.deepcopy(ours)
    layout, attack = parameter_layout(ours), Neurotoxin(fraction=0.4)
    sent = Broadcast(layout.flatten(ours), last_step)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=momentum)
    weights, velocity = layout.flatten(theirs).double(), torch.zeros(14, dtype=torch.float64)
    for step in range(1, 7):
        optimizer.zero_grad()
        nn.functional.mse_loss(ours(inputs)[:, 0], targets.float()).backward()
        optimizer.step()
        attack.constrain(ours, sent, step, 6)

        layout.load(theirs, weights.float())
        theirs.zero_grad()
        nn.functional.mse_loss(theirs(inputs)[:, 0], targets.float()).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in theirs.parameters() if parameter.grad is not None])
        gradient[held] = 0
        velocity = momentum * velocity + gradient.double()
        weights = weights - 0.1 * velocity
    torch.testing.assert_close(layout.flatten(ours).double(), weights, rtol=1e-5, atol=1e-6)
    assert bits(layout.flatten(ours)[held]) == bits(sent.weights[held])


class Seeing(Neurotoxin):
    """Keeps the global weights that rounds start from."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.starts: dict[int, Tensor] = {}

    def constrain(self, module, broadcast, step, steps) -> None:
        super().constrain(module, broadcast, step, steps)
        self.starts[broadcast.round_number] = broadcast.weights


@pytest.mark.parametrize("rule", [FedAvg(), SignSGD(step=0.01)], ids=lambda rule: type(rule).__name__)
def test_in_a_federation_attackers_leave_alone_what_the_last_round_moved_most(rule):
    watch, attack = Watch(), Seeing(fraction=0.3)
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.3)
    torch.manual_seed(0)
    federation = tiny_federation(client=TinyClient(norm=False), aggregator=rule, attacks=[attack], cohort=cohort)
    fit(federation, rounds=4, callbacks=[watch])
    for t, (updates, is_malicious) in enumerate(zip(watch.updates, watch.malicious, strict=True)):
        malicious, benign = updates[is_malicious], updates[~is_malicious]
        assert (benign == 0).float().mean() < 0.15
        if t == 0:
            assert (malicious == 0).float().mean() < 0.15
            continue
        moved = torch.tensor(held_by_hand(attack.starts[t - 1] - attack.starts[t], 0.3))
        assert len(moved) == round(0.3 * updates.shape[1])
        assert not malicious[:, moved].any()
        assert (malicious == 0).float().mean() < 0.3 + 0.15


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, NAN])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ConfigurationError, match=rf"Neurotoxin\.fraction must lie in \(0, 1\), got {fraction}"):
        Neurotoxin(fraction=fraction)


# ---- by gradients, and per layer --------------------------------------------------------------------------------------


def clean_sets() -> list[TensorSamples]:
    inputs = drawn(300, 4, seed=2)
    return [TensorSamples(inputs[:290], torch.arange(290) % 3), TensorSamples(inputs[290:], torch.arange(10) % 3)]


def planned(module: nn.Module, **settings: Any) -> Neurotoxin:
    data = clean_sets()
    attack = Neurotoxin(by="gradients", **settings)
    before = copy.deepcopy(module.state_dict())
    attack.plan(module, data, [Attacker(client=i, seed=0, pool=data[0]) for i in range(2)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    return attack


@pytest.mark.parametrize("per_layer", [False, True])
def test_gradients_of_all_clean_data_tell_what_is_held(per_layer):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 3))
    attack, sizes = planned(module, fraction=0.3, per_layer=per_layer), [24, 6, 18, 3]
    assert not attack.watches_steps
    other = copy.deepcopy(module)
    inputs, targets = (torch.cat(parts) for parts in zip(*((of.inputs, of.targets) for of in clean_sets()), strict=True))
    nn.functional.cross_entropy(other(inputs), targets).backward()
    gradients = [parameter.grad.flatten() for parameter in other.parameters() if parameter.grad is not None]
    held = attack.held(Broadcast(torch.zeros(51)), sizes).nonzero().flatten().tolist()
    if per_layer:
        starts = [0, 24, 30, 48]
        expected = [at + k for at, g in zip(starts, gradients, strict=True) for k in held_by_hand(g, 0.3)]
    else:
        expected = held_by_hand(torch.cat(gradients), 0.3)
    assert held == expected


def test_batches_leave_no_single_sample_to_batch_norm():
    data = TensorSamples(drawn(257, 4), torch.arange(257) % 3)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    attack = Neurotoxin(by="gradients")
    attack.plan(module, [data], [Attacker(client=0, seed=0, pool=data)])
    assert attack.held(Broadcast(torch.zeros(63)), [24, 6, 6, 6, 18, 3]).any()


def test_per_layer_every_tensor_has_its_share_of_the_last_step():
    sent = Broadcast(torch.zeros(6), torch.tensor([9.0, 8.0, 7.0, 6.0, 0.1, 0.2]))
    assert Neurotoxin(fraction=0.5).held(sent, [4, 2]).tolist() == [True] * 3 + [False] * 3
    assert Neurotoxin(fraction=0.5, per_layer=True).held(sent, [4, 2]).tolist() == [True, True, False, False, False, True]


def test_an_unknown_guide_is_refused():
    with pytest.raises(ConfigurationError, match=r"Neurotoxin\.by must be last_step or gradients, got 'both'"):
        Neurotoxin(by="both")  # type: ignore[arg-type]


def test_in_a_federation_attackers_leave_alone_what_their_clean_data_would_move():
    watch = Watch()
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.3)
    torch.manual_seed(0)
    attack = Neurotoxin(fraction=0.3, by="gradients", per_layer=True)
    federation = tiny_federation(client=TinyClient(norm=False), aggregator=FedAvg(), attacks=[attack], cohort=cohort)
    fit(federation, rounds=2, callbacks=[watch])
    for updates, is_malicious in zip(watch.updates, watch.malicious, strict=True):
        for row in updates[is_malicious]:
            assert 0.25 < (row == 0).float().mean() < 0.5
