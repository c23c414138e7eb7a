"""CRFL: what becomes of the global model, and who votes."""

import math
from typing import Any

import pytest
import torch
from tiny import FEATURES, TinyClient, fit, tiny_federation, vector
from torch import Tensor, nn

from fl_lightning import ConfigurationError
from fl_lightning.aggregators import CRFL, FedAvg
from fl_lightning.aggregators.crfl import count_votes
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.seeding import derive_seed, generator


def client(**kwargs: Any) -> TinyClient:
    torch.manual_seed(1)
    return TinyClient(**kwargs).eval()


def length(module: nn.Module) -> float:
    return math.sqrt(math.fsum(value**2 for value in vector(module).tolist()))


@pytest.mark.parametrize(
    ("t", "bound"), [(0, 2.1), (9, 3.0), (29, 5.0), (500, 5.0)], ids=["first", "tenth", "largest", "no longer"]
)
def test_a_long_model_is_shortened_to_the_rounds_norm_and_a_short_one_stays(t: int, bound: float) -> None:
    rule, module = CRFL(largest_norm=5.0), client()
    weights, statistics = vector(module), module.net[1].running_var.clone()  # type: ignore[union-attr,operator]
    assert rule.norm_bound(t) == pytest.approx(bound)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 40
    rule.after_step(module, t)
    assert length(module) == pytest.approx(bound, rel=2.0**-22)
    assert torch.nn.functional.cosine_similarity(vector(module), weights, dim=0) > 1 - 1e-6
    assert torch.equal(module.net[1].running_var, statistics)  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= 0.5
    before = vector(module).clone()
    rule.after_step(module, t)
    assert torch.equal(vector(module), before)


def test_frozen_parameters_are_neither_clipped_nor_noised() -> None:
    rule, module = CRFL(initial_norm=0.5), client()
    module.net[0].requires_grad_(False)
    frozen = module.net[0].weight.clone()  # type: ignore[union-attr,operator]
    rule.after_step(module, 0)
    rule.before_broadcast(module, 1)
    assert torch.equal(module.net[0].weight, frozen)  # type: ignore[union-attr]
    trained = [p for p in module.parameters() if p.requires_grad]
    assert 0.5 < float(torch.cat([p.detach().flatten() for p in trained]).norm()) < 0.7


def test_the_first_broadcast_is_not_noised_and_later_ones_are_by_sigma() -> None:
    rule, module = CRFL(sigma=0.5), nn.Linear(400, 100)
    before = vector(module).clone()
    rule.before_broadcast(module, 0)  # type: ignore[arg-type]
    assert torch.equal(vector(module), before)
    torch.manual_seed(0)
    rule.before_broadcast(module, 1)  # type: ignore[arg-type]
    noise = (vector(module) - before) / 0.5
    assert float(noise.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * len(noise)))
    assert float(noise.mean()) == pytest.approx(0, abs=5 / math.sqrt(len(noise)))


# ---- votes -----------------------------------------------------------------------------------------------------------


def slow_votes(module: TinyClient, inputs: Tensor, copies: int, sigma: float, draws: torch.Generator) -> Tensor:
    """One copy after the other, one sample after the other."""
    start, votes = vector(module).clone(), torch.zeros(len(inputs), 3, dtype=torch.int64)
    for _ in range(copies):
        nn.utils.vector_to_parameters(start + sigma * torch.randn(len(start), generator=draws), module.parameters())
        for i, row in enumerate(module(inputs).detach()):
            votes[i, max(range(3), key=lambda c: float(row[c]))] += 1
    nn.utils.vector_to_parameters(start, module.parameters())
    return votes


def test_votes_are_those_of_noised_copies_and_the_model_is_as_before() -> None:
    module, inputs = client(), torch.randn(12, FEATURES, generator=torch.Generator().manual_seed(0))
    before = weights_sha256(module)
    found = count_votes(module, (inputs, None), 30, 0.2, generator(0, "votes"))
    assert weights_sha256(module) == before
    assert torch.equal(found, slow_votes(module, inputs, 30, 0.2, generator(0, "votes")))
    assert (found.sum(1) == 30).all()
    assert ((found > 0).sum(1) > 1).any()  # the noise decides somewhere
    shares = CRFL(copies=30, sigma_test=0.2).predict(module, (inputs, None), generator(0, "votes"))
    torch.testing.assert_close(shares, found / 30)


class Told(nn.Module):
    """Returns what it is given, whatever its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@pytest.mark.parametrize(
    ("logits", "votes"),
    [
        ([[0.0, 1.0], [2.0, 2.0], [math.nan, 1.0]], [[0, 4], [4, 0], [0, 0]]),  # of equals the first; no number, no vote
        ([-1.0, 3.0, math.nan], [[4, 0], [0, 4], [0, 0]]),  # one logit for two classes
    ],
)
def test_what_counts_as_a_vote(logits: list[Any], votes: list[list[int]]) -> None:
    class Client(TinyClient):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(Told())

    module, batch = Client(), (torch.tensor(logits), None)
    assert count_votes(module, batch, 4, 0.1, generator(0, "votes")).tolist() == votes
    shares = CRFL(copies=4).predict(module, batch, generator(0, "votes"))
    assert shares[2].isnan().all()  # no prediction
    assert (shares[:2].sum(1) == 1).all()


# ---- whole runs ------------------------------------------------------------------------------------------------------


SETTINGS: dict[str, Any] = {"initial_norm": 1.5, "sigma": 0.02, "sigma_test": 0.05, "copies": 9}


def test_rounds_are_a_mean_clipped_and_noised() -> None:
    """Two rounds by hand, but for the clients' updates, which a rule that keeps them shows."""
    means: list[Tensor] = []

    class Showing(CRFL):
        def forward(self, shard):
            mean = super().forward(shard)
            assert torch.equal(mean, FedAvg().forward(shard))
            if shard.width == len(weights):  # not of buffers
                means.append(mean.clone())
            return mean

    federation = tiny_federation(aggregator=Showing(**SETTINGS))
    weights = vector(federation.client).double()
    fit(federation, rounds=2)
    for t in range(2):
        if t:
            torch.manual_seed(derive_seed(0, "before_broadcast", t))
            weights += 0.02 * torch.randn(len(weights)).double()
        weights -= means[t].double()
        bound = 1.5 + 0.1 * (t + 1)
        assert weights.norm() > bound
        weights *= bound / weights.norm()
    torch.testing.assert_close(vector(federation.client).double(), weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("initial_norm", 0.0),
        ("largest_norm", math.inf),
        ("norm_growth", -0.1),
        ("sigma", math.nan),
        ("sigma_test", -1.0),
        ("copies", 0),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"CRFL\.{setting} must be .*, got {value}"):
        CRFL(**{setting: value})


def test_a_vote_that_breaks_off_leaves_the_model_as_it_was() -> None:
    module = client()
    weights, calls = weights_sha256(module), []

    def breaks(*_: Any) -> None:
        calls.append(weights_sha256(module))
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    with module.register_forward_pre_hook(breaks), pytest.raises(RuntimeError, match="out of memory"):
        count_votes(module, (torch.zeros(2, FEATURES), None), 3, 0.2, generator(0, "votes"))
    assert weights not in calls
    assert weights_sha256(module) == weights
