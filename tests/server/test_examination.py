"""A rule is handed the models that clients submitted, and nothing of it stays behind."""

import math
from typing import Any

import pytest
import torch
from tiny import Scale, fit, tiny_data, tiny_federation, vector
from torch import Tensor

from fl_lightning import ConfigurationError
from fl_lightning.aggregators import Aggregator, Bucketing, NearestNeighborMixing
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import Samples
from fl_lightning.data.root import RootSet
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.examined import Examined


def state(module: torch.nn.Module) -> Tensor:
    """(q,) all parameters, then BatchNorm's statistics."""
    return torch.cat([vector(module), *(b.flatten() for b in module.buffers() if b.is_floating_point())])


class Copying(Aggregator):
    """Measures all that there is, and keeps it with what it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[dict[str, Any]] = []

    def examine(self, module, probe, generator):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        assert len(list(probe)) == len(probe) == 0
        return state(module)

    def forward(self, shard):
        assert shard.examined is not None
        assert shard.examined is shard.examined
        self.rounds.append({"shard": shard, "of_broadcast": shard.examined_broadcast})
        return shard.mean(shard.shares)


def test_the_module_is_the_submitted_model() -> None:
    rule = Copying()
    federation = tiny_federation(aggregator=rule, attacks=[Scale(-7.0)])
    start = state(federation.client).clone()
    fit(federation, rounds=2)
    for number, of_round in enumerate(rule.rounds):
        shard, of_broadcast = of_round["shard"], of_round["of_broadcast"]
        d = shard.num_coordinates
        if number == 0:
            assert torch.equal(of_broadcast, start)
        assert torch.equal(of_broadcast[:d], shard.broadcast)
        assert torch.equal(shard.examined[:, :d], shard.broadcast - shard.values)  # as attackers have rewritten them
        assert shard.malicious.any()
        statistics = shard.examined[:, d:] - of_broadcast[d:]
        assert statistics.abs().amax(1).gt(0).all()
        assert len(statistics.unique(dim=0)) == len(statistics)
    assert torch.equal(rule.rounds[1]["shard"].examined[:, -37:] >= 0, torch.ones(7, 37, dtype=torch.bool))


def test_kept_buffers_are_the_global_ones() -> None:
    rule = Copying()
    fit(tiny_federation(aggregator=rule, buffers="keep"), rounds=1)
    shard = rule.rounds[0]["shard"]
    statistics = shard.examined[:, shard.num_coordinates :]
    assert torch.equal(statistics, rule.rounds[0]["of_broadcast"][shard.num_coordinates :].expand_as(statistics))


AROUND = {
    "nearest": lambda rule: NearestNeighborMixing(rule=rule, num_malicious=2),
    "buckets": lambda rule: Bucketing(rule=rule),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_inside_a_mixing_rule_the_models_are_mixed(around: Any) -> None:
    rule, plain = Copying(), Copying()
    fit(tiny_federation(aggregator=around(rule), attacks=[Scale(-2.0)]), rounds=1)
    fit(tiny_federation(aggregator=plain, attacks=[Scale(-2.0)]), rounds=1)
    mixed, unmixed = rule.rounds[0]["shard"], plain.rounds[0]["shard"]
    assert torch.equal(mixed.examined[:, : mixed.num_coordinates], mixed.broadcast - mixed.values)
    assert mixed.mixture.shape == (len(mixed.examined), 7)
    expected = mixed.mixture.float() @ unmixed.examined  # a mean of updates is the mean of the models
    torch.testing.assert_close(mixed.examined, expected, rtol=0, atol=1e-5)


def test_rows_of_a_mixture_are_told_apart_when_mixed_again() -> None:
    rule = Copying()
    around = Bucketing(rule=NearestNeighborMixing(rule=rule, num_malicious=1))
    fit(tiny_federation(aggregator=around, attacks=[]), rounds=1)
    shard = rule.rounds[0]["shard"]
    assert shard.mixture.shape == (4, 7)
    torch.testing.assert_close(shard.mixture.sum(1), torch.ones(4, dtype=torch.float64))


def test_updates_that_are_not_finite_are_not_examined() -> None:
    rule = Copying()
    federation = tiny_federation(aggregator=rule, attacks=[Scale(math.nan)])
    fit(federation, rounds=1)
    assert federation.excluded_updates == 2
    assert rule.rounds[0]["shard"].examined.shape[0] == 5
    assert rule.rounds[0]["shard"].examined.isfinite().all()


def test_what_is_measured_need_not_be_finite() -> None:
    class Undefined(Copying):
        def examine(self, module, probe, generator):
            return torch.tensor([math.nan, math.inf])

    rule = Undefined()
    fit(tiny_federation(aggregator=rule), rounds=1)
    assert rule.rounds[0]["shard"].examined.isnan().sum() == 7


class Reckless(Aggregator):
    """Trains and rewires the module, leaves gradients and draws; then the mean."""

    look = True

    def examine(self, module, probe, generator):
        module.train()
        with torch.enable_grad():
            module(torch.rand(4, 6)).sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        module.noticed = 1
        module.net[0].weight = torch.nn.Parameter(torch.rand(3, 3))
        return torch.cat([torch.rand(2), torch.rand(2, generator=generator)])

    def forward(self, shard):
        self.found = shard.examined if self.look else None
        return shard.mean(shard.shares)


def test_examining_changes_nothing_in_the_run() -> None:
    digests = []
    for look in (True, False):
        rule = Reckless()
        rule.look = look
        federation = tiny_federation(aggregator=rule)
        fit(federation, rounds=2)
        assert not hasattr(federation.client, "noticed")
        assert federation.client.training
        assert ("examination" in federation.seconds) is look
        digests.append(weights_sha256(federation.client))
        if look:
            assert rule.found is not None
            assert len(rule.found.unique()) == rule.found.numel()  # each client draws its own
            seconds = federation.seconds
            assert 0 < seconds["examination"] < sum(seconds.values())
    assert digests[0] == digests[1]


def test_draws_are_those_of_client_and_round() -> None:
    found: list[Any] = []
    for factor in (1.0, -3.0):
        rule = Reckless()
        fit(tiny_federation(aggregator=rule, attacks=[Scale(factor)]), rounds=1)
        found.append(rule.found)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (
            lambda m: torch.ones(2, 2),
            r"Odd.examine must return a tensor \(q,\) of real numbers, got .* shape \(2, 2\); flatten",
        ),
        (lambda m: 3.0, r"Odd.examine must return a tensor \(q,\) of real numbers, got 3.0"),
        (lambda m: torch.ones(2, dtype=torch.complex64), r"got torch.complex64 of shape \(2,\)"),
        (
            lambda m: torch.ones(2 + int(vector(m).norm() > 9)),
            r"as many numbers for every model, got 2 for one and 3",
        ),
    ],
    ids=["matrix", "number", "complex", "lengths"],
)
def test_other_measurements_are_refused(measured: Any, message: str) -> None:
    class Odd(Copying):
        def examine(self, module, probe, generator):
            return measured(module)

    with pytest.raises(ConfigurationError, match=message):
        fit(tiny_federation(aggregator=Odd(), attacks=[Scale(-50.0)]), rounds=1)


def test_an_error_says_whose_model_it_was() -> None:
    class Failing(Copying):
        def examine(self, module, probe, generator):
            return module.nothing

    with pytest.raises(AttributeError) as failed:
        fit(tiny_federation(aggregator=Failing()), rounds=1)
    assert any(note.startswith("while Failing examined client") for note in failed.value.__notes__)


def test_attackers_and_plain_tensors_have_nothing_to_examine() -> None:
    seen: list[Any] = []

    class Curious(Scale):
        def corrupt(self, shard, knowledge):
            seen.append((shard.examined, shard.broadcast))

    fit(tiny_federation(aggregator=Copying(), attacks=[Curious(1.0)]), rounds=1)
    assert seen[0][0] is None
    assert seen[0][1] is not None
    shard = UpdateShard.from_updates(torch.ones(2, 3))
    assert (shard.examined, shard.examined_broadcast, shard.broadcast) == (None, None, None)
    shard.examination = lambda of: Examined(of.values[:, :1], torch.zeros(1))
    assert shard.examined is not None
    shard.keep(torch.tensor([False, True]))
    assert shard.examined.shape == (1, 1)
    assert shard.mixture is not None
    assert shard.mixture.tolist() == [[0.0, 1.0]]


class Comparing(Copying):
    """Keeps what it was sent, spoils the module, and measures how far each model is from it."""

    def examine_broadcast(self, module, probe, generator):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
        self.sent, self.draw = state(module), torch.rand(1, generator=generator)
        module.net[0].weight.zero_()

    def examine(self, module, probe, generator):
        return torch.cat([state(module) - self.sent, torch.rand(1, generator=generator)])


@pytest.mark.parametrize("around", [lambda rule: rule, AROUND["buckets"]], ids=["plain", "buckets"])
def test_the_broadcast_is_looked_at_first(around: Any) -> None:
    rule = Comparing()
    fit(tiny_federation(aggregator=around(rule), attacks=[]), rounds=1)
    shard, of_broadcast = rule.rounds[0]["shard"], rule.rounds[0]["of_broadcast"]
    assert not of_broadcast[:-1].any()
    assert of_broadcast[-1] == rule.draw
    d = shard.num_coordinates
    assert torch.equal(shard.examined[:, :d], (shard.broadcast - shard.values) - shard.broadcast)
    assert shard.examined[:, :d].any()


def test_an_error_at_the_broadcast_says_so() -> None:
    class Failing(Copying):
        def examine_broadcast(self, module, probe, generator):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as failed:
        fit(tiny_federation(aggregator=Failing()), rounds=1)
    assert failed.value.__notes__ == ["while Failing examined the global model in round 0"]


# ---- probes ------------------------------------------------------------------------------------------------------------


class Looking(Copying):
    """Keeps the batches of its probe."""

    def __init__(self, probe: Any) -> None:
        super().__init__()
        self.probe = probe
        self.batches: list[Any] = []

    def examine(self, module, probe, generator):
        self.batches.append([(inputs.clone(), targets.clone()) for inputs, targets in probe])
        return torch.cat([module(inputs).flatten() for inputs, _ in probe])


def test_root_samples_are_a_probe() -> None:
    rule, data = Looking("root"), tiny_data(root=RootSet(samples=20))
    federation = tiny_federation(aggregator=rule)
    fit(federation, data, rounds=1)
    samples = data.root_samples
    assert isinstance(samples, Samples)
    assert [len(targets) for _, targets in rule.batches[0]] == [8, 8, 4]
    for batches in rule.batches:
        assert torch.equal(torch.cat([targets for _, targets in batches]), samples.targets)
    with pytest.raises(ConfigurationError, match=r"Looking examines models on clean samples .*; set data\.root"):
        fit(tiny_federation(aggregator=Looking("root")), rounds=1)


def test_rules_around_a_rule_pass_its_probe_on() -> None:
    rule = Looking(torch.ones(3, 6))
    fit(tiny_federation(aggregator=Bucketing(rule=rule), attacks=[]), rounds=1)
    assert len(rule.batches) == 4 + 1
    assert torch.equal(rule.batches[0][0][0], torch.ones(3, 6))


def test_a_probe_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Looking.probe must be Noise\(samples=...\), \"root\", .* got 'nosie'"):
        fit(tiny_federation(aggregator=Looking("nosie")), rounds=1)
