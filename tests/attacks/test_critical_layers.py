"""Backdoor-critical layers: which tensors are found, what is sent, and who is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from rows import INF, NAN, attacked, drawn, last
from tiny import CLASSES, FEATURES, Relabel, fit, tiny_federation, tiny_tensors
from torch import Tensor, nn

from fl_lightning.aggregators import (
    FLARE,
    Aggregator,
    BackdoorIndicator,
    DeepSight,
    FedAvg,
    FLTrust,
    FoolsGold,
    Invariant,
    MultiKrum,
)
from fl_lightning.attacks import (
    Attack,
    Attacker,
    BackdoorCriticalLayers,
    Collude,
    EdgeCase,
    Knowledge,
    PixelTrigger,
    ValueTrigger,
)
from fl_lightning.attacks.company import divided
from fl_lightning.attacks.critical_layers import critical_tensors
from fl_lightning.data import RotatedDigits
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layers import layers_of

# ---- the analysis ----------------------------------------------------------------------------------------------------


def models(tensors: int) -> tuple[nn.Module, nn.Module]:
    """w_b, all zeros, and w_m, all ones, of so many tensors a, b, c, ..."""
    made = []
    for value in (0.0, 1.0):
        made.append(nn.Module())
        for name in "abcdefg"[:tensors]:
            made[-1].register_parameter(name, nn.Parameter(torch.full((2,), value)))
    return made[0], made[1]


def rate(weights: dict[str, float], needs: str = "") -> Any:
    """ASR as a sum of what tensors of w_m add to it, nothing without the tensor that the others need."""

    def of(model: nn.Module) -> float:
        there = {name: float(parameter[0]) for name, parameter in model.named_parameters()}
        return 0.0 if needs and not there[needs] else sum(weights[name] * there[name] for name in there)

    return of


@pytest.mark.parametrize(
    ("weights", "needs", "threshold", "expected"),
    [
        ({"a": 0.1, "b": 0.6, "c": 0.3}, "", 0.5, ["b"]),
        ({"a": 0.1, "b": 0.6, "c": 0.3}, "", 0.8, ["b", "c"]),
        ({"a": 0.1, "b": 0.6, "c": 0.3}, "", 1.0, ["b", "c", "a"]),
        ({"a": 0.3, "b": 0.0, "c": 0.3}, "", 0.9, ["a", "c"]),  # of equal ones the first
        ({"a": 0.1, "b": 0.6, "c": 0.3}, "a", 0.8, ["a", "b", "c"]),  # without a there is nothing
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "", 0.8, ["a"]),  # no back door: the first will do
    ],
)
def test_the_fewest_tensors_that_bring_the_back_door_over(weights, needs, threshold, expected):
    benign, malicious = models(3)
    assert critical_tensors(benign, malicious, rate(weights, needs), threshold) == expected
    assert all((parameter == 0).all() for parameter in benign.parameters()), "models are as before"
    assert all((parameter == 1).all() for parameter in malicious.parameters())


def test_against_the_definition_with_tables():
    """Both substitutions, spelled out over sets of tensors, on random tables of ASR."""
    names = "abcd"
    for seed in range(30):
        table = np.random.default_rng(seed).random(16)

        def of(model: nn.Module, table: Any = table) -> float:
            return float(table[sum(int(p[0]) << i for i, (_, p) in enumerate(model.named_parameters()))])

        full = table[15]
        values = [table[15 - (1 << i)] - full for i in range(4)]
        order = sorted(range(4), key=lambda i: (values[i], i))
        count = next(n for n in range(1, 5) if n == 4 or table[sum(1 << i for i in order[:n])] >= 0.8 * full)
        assert critical_tensors(*models(4), of, 0.8) == [names[i] for i in order[:count]]


def test_frozen_tensors_take_no_part():
    benign, malicious = models(3)
    for model in (benign, malicious):
        model.get_parameter("b").requires_grad_(False)
    assert critical_tensors(benign, malicious, rate({"a": 0.1, "b": 5.0, "c": 0.0}), 1.0) == ["a", "c"]


def test_what_is_held_back():
    data, draws = tiny_tensors(10), torch.Generator().manual_seed(0)
    kept, held = divided(data, 0.3, draws)
    assert (len(kept), len(held)) == (7, 3)
    rows = [tuple(row.tolist()) for part in (kept, held) for row in part.batch(torch.arange(len(part)))[0]]
    assert sorted(rows) == sorted(tuple(row.tolist()) for row in data.inputs)
    assert [tuple(map(len, divided(tiny_tensors(n), 0.9, draws))) for n in (1, 2, 3)] == [(1, 0), (2, 0), (2, 1)]


class OneLayer(nn.Module):
    """A trigger in the last feature can only be learned in `late`, which alone sees it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.early = nn.Linear(FEATURES - 1, CLASSES)
        self.late = nn.Linear(1, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.early(inputs[:, :-1]) + self.late(inputs[:, -1:])


def trigger() -> ValueTrigger:
    return ValueTrigger(column=FEATURES - 1, value=6.0, source_label=1, target_label=0, poison_fraction=0.5)


def test_the_tensor_that_carries_the_trigger_is_found():
    attack, data = BackdoorCriticalLayers(passes=20, threshold=0.9), tiny_tensors(200)
    attack.meet([trigger(), attack])
    module = OneLayer()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    attack.plan(module, [data, tiny_tensors(40, seed=2)], [Attacker(3, 0, data), Attacker(5, 0, data)])
    assert attack.critical is not None
    assert attack.critical[0] == "late.weight"
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert attack.state_dict() == {"critical": attack.critical, "turns": 1}


def test_between_analyses_and_without_anything_to_stamp_it_stays():
    data = tiny_tensors(40)
    of_target = data.subset(torch.nonzero(data.targets == 0).flatten())
    attack = BackdoorCriticalLayers(passes=1, every=3)
    attack.meet([trigger(), attack])
    seen = []
    for samples in (of_target, of_target, of_target, data, data):
        attack.plan(OneLayer(), [samples], [Attacker(0, 0, data)])
        seen.append(attack.critical)
    assert seen[:3] == [None, None, None]
    assert seen[3] is not None
    assert seen[4] is seen[3]


# ---- what is sent ----------------------------------------------------------------------------------------------------

TENSORS = layers_of(["a", "b", "c"], [(2, 2), (3,), (2,)])


@pytest.mark.parametrize(("strength", "expected"), [(0.5, 1.6), (1.0, 2.0), (2.0, 3.0)])
def test_a_critical_tensor_by_hand(strength, expected):
    """w_G 1, w_b 1.2, w_m 2: the weights that are sent."""
    attack = BackdoorCriticalLayers(strength=strength)
    updates, honest = torch.tensor([[1.0 - 2.0]]), torch.tensor([[1.0 - 1.2]])
    sent = 1.0 - attacked(attack, updates, torch.tensor([True]), rehearsed=honest)
    torch.testing.assert_close(sent, torch.tensor([[expected]]), rtol=0, atol=4 * 2.0**-23)


@pytest.mark.parametrize("like", ["own", "mean"])
@pytest.mark.parametrize("strength", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("critical", [None, [], ["b"], ["c", "a"]])
def test_against_the_formula(like, strength, critical):
    attack = BackdoorCriticalLayers(strength=strength, like=like)
    attack.critical = critical
    updates, honest = drawn(5, 9), drawn(2, 9, seed=1)
    sent = attacked(attack, updates, last(5, 2), rehearsed=honest, layers=TENSORS)[3:]
    g, b = updates[3:].double().numpy(), honest.double().numpy()
    b = np.broadcast_to(b.mean(0), b.shape) if like == "mean" else b
    expected = b.copy()
    for name, columns in (("a", slice(0, 4)), ("b", slice(4, 7)), ("c", slice(7, 9))):
        if critical is None or name in critical:
            expected[:, columns] = strength * g[:, columns] + max(0.0, 1 - strength) * b[:, columns]
    size = strength * np.abs(g) + np.abs(b) + np.abs(honest.numpy()).sum(0)
    assert (np.abs(sent.double().numpy() - expected) <= 8 * 2.0**-24 * size).all()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_stays_so_and_only_there(bad):
    attack = BackdoorCriticalLayers()
    attack.critical = ["b"]
    updates, honest = drawn(4, 9), drawn(2, 9, seed=1)
    updates[2, 0] = updates[3, 5] = bad  # in a tensor that is not sent, and in one that is
    sent = attacked(attack, updates, last(4, 2), rehearsed=honest, layers=TENSORS)
    assert sent[2].isfinite().all()
    assert not sent[3].isfinite().all()


def test_own_updates_stand_beside_own_rows_after_a_union_too():
    """With `Collude` before it all names send one back door, each in its own benign clothes."""
    attack, updates, honest = BackdoorCriticalLayers(), drawn(4, 9), drawn(2, 9, seed=1)
    attack.critical = ["b"]
    shard = UpdateShard([updates.clone()], torch.ones(4), last(4, 2), num_coordinates=9, layers=TENSORS)
    for each in (Collude(mode="first"), attack):
        each.corrupt(shard, Knowledge(lambda s: torch.ones(9, dtype=torch.bool), UpdateShard.from_updates(honest)))
    assert torch.equal(shard.values[2:, 4:7], updates[2, 4:7].expand(2, 3))
    assert torch.equal(shard.values[2:, :4], honest[:, :4])


# ---- with a known rule -------------------------------------------------------------------------------------------------


class Short(Aggregator):
    """Counts updates that are not longer than this."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    @property
    def judges(self) -> bool:
        return True

    def check(self, num_clients: int) -> None:
        assert num_clients == 6

    def forward(self, shard: UpdateShard) -> Tensor:
        assert shard.num_clients == 6
        assert self.assumed_malicious() == 2
        shard.judge((shard.norms() <= self.most).float())
        return shard.mean()


@pytest.mark.parametrize(
    ("most", "kept"),
    [(100.0, ["b", "c", "a"]), (15.0, ["b", "c", "a"]), (12.0, ["b", "c"]), (9.0, ["b"]), (1.0, ["b"]), (0.0, ["b"])],
)
def test_tensors_that_a_known_rule_does_not_take_are_left_out_but_for_one(most, kept):
    """Fives in a (4 entries), b (3) and c (2) among zeros: norms are 15 of all, 11.2 of b and c, 8.7 of b."""
    attack = BackdoorCriticalLayers(rule=Short(most))
    attack.critical = ["b", "c", "a"]
    rows, rehearsed = torch.full((6, 9), 5.0), torch.zeros(6, 9)
    sent = attacked(attack, rows, last(6, 2), rehearsed=rehearsed, layers=TENSORS)[4:]
    expected = torch.zeros(2, 9)
    for name, columns in (("a", slice(0, 4)), ("b", slice(4, 7)), ("c", slice(7, 9))):
        expected[:, columns] = 5.0 if name in kept else 0.0
    assert torch.equal(sent, expected)
    assert attack.critical == ["b", "c", "a"], "the next round begins with all of them"


def test_the_rule_is_asked_anew_every_time_and_of_finite_updates_alone():
    attack = BackdoorCriticalLayers(rule=MultiKrum())
    attack.critical = ["b", "c"]
    rehearsed = 0.1 * drawn(6, 9, seed=1)
    rehearsed[3] = NAN  # a simulated client
    sent = attacked(attack, drawn(6, 9), last(6, 2), rehearsed=rehearsed, layers=TENSORS)[4:]
    assert sent.isfinite().all()
    assert attack.rule is not None
    assert attack.rule.state_dict() == MultiKrum().state_dict()


@pytest.mark.parametrize(
    "rule",
    [FedAvg(), Invariant(tau=0.2), FLTrust(), FoolsGold(), FLARE(), DeepSight(), BackdoorIndicator()],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_cannot_be_simulated_are_refused(rule):
    with pytest.raises(ConfigurationError, match=rf"BackdoorCriticalLayers\.rule must .* {type(rule).__name__}"):
        BackdoorCriticalLayers(rule=rule)


# ---- who is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.0}, "strength must be more than 0 and finite, got 0.0"),
        ({"lr": NAN}, "lr must be more than 0 and finite, got nan"),
        ({"threshold": 1.5}, "threshold must be more than 0 and at most 1, got 1.5"),
        ({"held_back": 1.0}, r"held_back must lie in \(0, 1\), got 1.0"),
        ({"like": "others"}, "like must be own or mean, got 'others'"),
        ({"every": 0}, "every must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=rf"BackdoorCriticalLayers\.{message}"):
        BackdoorCriticalLayers(**settings)


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ([], "no attack before it in model.attacks has a trigger; put one there, such as PixelTrigger"),
        ([Relabel()], "no attack before it"),
        (
            [EdgeCase(pool=RotatedDigits())],
            "BackdoorCriticalLayers and EdgeCase do not go together so: its stamped samples are test",
        ),
    ],
)
def test_company_that_does_not_fit_is_refused(attacks: list[Attack], message):
    attack = BackdoorCriticalLayers()
    with pytest.raises(ConfigurationError, match=message):
        attack.meet([*attacks, attack, PixelTrigger()])


def test_it_is_refused_before_training():
    with pytest.raises(ConfigurationError, match="no attack before it"):
        fit(tiny_federation(attacks=[BackdoorCriticalLayers(), trigger()]))
