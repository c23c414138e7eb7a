import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from test_hessian_products import bfgs
from test_line_clusters import best_of_all_cuts
from tiny import fit, tiny_federation
from torch import Tensor

from fl_lightning import CohortSampler
from fl_lightning.aggregators import Bucketing, FLDetector, NearestNeighborMixing
from fl_lightning.attacks import SignFlip
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.layers import layers_of

LAYERS = layers_of(["a", "a's bias", "b", "b's bias"], [(5, 4), (5,), (3, 5), (3,)])
D, M = LAYERS[-1].stop, 9


def shard_of(updates: Tensor, clients: list[int], weights: Tensor | None = None, round_number: int = 0) -> UpdateShard:
    shard = UpdateShard.from_updates(updates)
    shard.clients, shard.broadcast, shard.layers, shard.round_number = torch.tensor(clients), weights, LAYERS, round_number
    return shard


class Slow:
    """The definition, client by client, with the matrix H itself."""

    def __init__(self, window: int, warmup: int, first: int) -> None:
        self.window, self.warmup, self.first = window, warmup, first
        self.steps: list[np.ndarray] = []
        self.changes: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.aggregates: list[np.ndarray] = []
        self.last: dict[int, tuple[int, np.ndarray]] = {}
        self.scores: dict[int, list[float]] = {}
        self.flagged: set[int] = set()

    def hessian(self) -> np.ndarray:
        steps, changes = self.steps[-self.window :], self.changes[-self.window :]
        if not steps or steps[-1] @ changes[-1] <= 0:
            return np.zeros((D - self.first,) * 2)
        return bfgs(np.array(steps), np.array(changes))

    def suspects(self, clients: list[int], draws: torch.Generator) -> set[int]:
        known = [client for client in clients if len(self.scores.get(client, [])) >= self.window]
        if not known:
            return set()
        means = np.array([sum(self.scores[client][-self.window :]) / self.window for client in known])
        scaled = ((means - means.min()) / (means.max() - means.min())).round(9)
        references = torch.rand(10, len(known), generator=draws, dtype=torch.float64).tolist()
        gaps, errors = [], []
        for k in (1, 2):
            found = [max(best_of_all_cuts(row, k)[0], 1e-12 * best_of_all_cuts(row, 1)[0]) for row in (scaled, *references)]
            gaps.append(math.log(sum(found[1:]) / 10) - math.log(found[0]))
            errors.append(math.sqrt(1.1) * float(np.std(np.log(found[1:]))))
        if gaps[0] >= gaps[1] - errors[1]:
            return set()
        least = best_of_all_cuts(scaled.tolist(), 2)[1][1].min()
        return {client for client, score in zip(known, scaled, strict=True) if score >= least}

    def round(self, updates: np.ndarray, clients: list[int], weights: np.ndarray, draws: torch.Generator) -> np.ndarray:
        t, now = len(self.weights), weights[self.first :]
        if t >= self.warmup and (seen := [client for client in clients if client in self.last]):
            matrix, errors = self.hessian(), {}
            for row, client in zip(updates, clients, strict=True):
                if client in self.last:
                    since, old = self.last[client]
                    predicted = old + matrix @ (now - self.weights[since])
                    errors[client] = float(np.linalg.norm(predicted - row[self.first :]))
            for client in seen:
                self.scores.setdefault(client, []).append(errors[client] / sum(errors.values()))
            suspects = self.suspects(seen, draws)
            if suspects:
                self.flagged |= suspects
                self.scores, self.last = {}, {c: kept for c, kept in self.last.items() if c not in suspects}
        kept = [i for i, client in enumerate(clients) if client not in self.flagged]
        if not kept:
            return np.zeros(D)
        aggregate = updates[kept].mean(0)
        if t:
            self.steps.append(now - self.weights[-1])
            self.changes.append(aggregate[self.first :] - self.aggregates[-1])
        self.weights.append(now)
        self.aggregates.append(aggregate[self.first :])
        self.last |= {clients[i]: (t, updates[i, self.first :]) for i in kept}
        return aggregate


def gradients(weights: Tensor, clients: list[int], t: int, malicious: set[int]) -> Tensor:
    """Of quadratic losses, a little noisy; malicious ones turn round from time to time."""
    draws = torch.Generator().manual_seed(t)
    minima = torch.randn(M, D, generator=torch.Generator().manual_seed(99))
    curvature = torch.linspace(0.05, 0.4, D)
    updates = (weights - minima[clients]) * curvature + 0.01 * torch.randn(len(clients), D, generator=draws)
    for i, client in enumerate(clients):
        if client in malicious:
            updates[i] = 3 * torch.randn(D, generator=draws)
    return updates


@pytest.mark.parametrize("history", ["all", "last_layer"])
@pytest.mark.parametrize(("share", "malicious"), [(1.0, {1, 4}), (0.7, {1, 4}), (1.0, set())])
def test_equals_its_definition(history: Any, share: float, malicious: set[int]) -> None:
    rule = FLDetector(window=3, warmup_rounds=4, history=history)
    slow = Slow(3, 4, LAYERS[2].start if history == "last_layer" else 0)
    weights, flags = torch.ones(D), []
    for t in range(12):
        order = torch.randperm(M, generator=torch.Generator().manual_seed(100 + t))[: round(share * M)].tolist()
        updates = gradients(weights, order, t, malicious)
        shard = shard_of(updates, order, weights, t)
        draws = shard.generator("FLDetector")
        found = rule(shard)
        expected = slow.round(updates.double().numpy(), order, weights.double().numpy(), draws)
        np.testing.assert_allclose(found.numpy(), expected, atol=(M + 3) * 2.0**-23 * float(updates.abs().max()))
        assert rule.flagged == slow.flagged, t
        assert rule.scores.keys() == slow.scores.keys()
        for client, scores in rule.scores.items():
            assert scores == pytest.approx(slow.scores[client][-3:], rel=1e-3)
        assert shard.verdict is not None
        assert shard.verdict.tolist() == [float(client not in slow.flagged) for client in order]
        flags.append(len(rule.flagged))
        weights = weights - found
    assert flags[5] == 0
    if share == 1.0:
        assert malicious <= rule.flagged
    kept = {name.split()[0] for name in rule.memory}
    assert kept == {"aggregate", "step", "change", "weights", "update"}
    assert sum(name.startswith(("step", "change")) for name in rule.memory) == 6
    assert sum(name.startswith("weights") for name in rule.memory) == len({*rule.seen.values(), rule.rounds - 1})
    assert {len(kept) for kept in rule.memory.values()} == {D if history == "all" else 18}


def test_scores_by_hand() -> None:
    """H is 2 along the first axis, and the model has moved by (1/4, 0) and 1/2 of it: Hv = (.5, .5, 0)."""
    rule = FLDetector(window=2, warmup_rounds=3)
    layers = layers_of([""], [(3,)])
    hessian = torch.diag(torch.tensor([2.0, 5.0, 1.0]))
    places = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [1.25, 1.1, 0]])
    noise = torch.zeros(4, 4, 3)
    noise[2] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    noise[2] -= noise[2].mean(0)  # so that the aggregate is the gradient
    noise[3] = noise[2] + torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 1], [-3, 0, 4]])
    for t, weights in enumerate(places):
        shard = shard_of(weights @ hessian + noise[t], [0, 1, 2, 3], weights)
        shard.layers = layers
        rule(shard)
    assert [rule.scores[i][0] for i in range(4)] == pytest.approx([0, 0, 1 / 6, 5 / 6], abs=1e-6)


def test_a_plain_tensor_is_a_server_that_steps_by_the_aggregate() -> None:
    rules = FLDetector(window=2, warmup_rounds=2), FLDetector(window=2, warmup_rounds=2)
    weights = torch.zeros(D)
    for t in range(6):
        updates = gradients(weights, list(range(M)), t, {3})
        plain, found = rules[0](updates), rules[1](shard_of(updates, list(range(M)), weights))
        assert torch.equal(plain, found)
        weights = weights - found
    assert rules[0].scores == rules[1].scores != {}


def test_who_is_flagged_stays_out_and_is_forgotten() -> None:
    rule = FLDetector(window=2, warmup_rounds=1)
    rule(torch.ones(4, 3))
    rule.flag([2])
    assert rule(torch.tensor([[1.0], [1.0], [99.0], [1.0]]).expand(4, 3)).tolist() == [1] * 3
    assert "update 2" not in rule.memory
    assert "update 3" in rule.memory
    rule.flag([])
    before = rule.rounds
    rule.flag([0, 1, 3])
    shard = UpdateShard.from_updates(torch.ones(4, 3))
    assert not rule(shard).any()  # nobody is left
    assert shard.verdict is not None
    assert shard.verdict.tolist() == [0] * 4
    assert rule.rounds == before
    rule.forget()
    assert rule(torch.ones(4, 3)).tolist() == [1] * 3


def test_equal_scores_and_too_few_scores_flag_nobody() -> None:
    rule = FLDetector(window=2, warmup_rounds=0)
    for _ in range(5):
        rule(torch.ones(5, 4))
    assert not rule.flagged
    assert rule.scores[0] == [0, 0]
    rule.scores = {0: [1.0, 1.0], 1: [0.0]}
    assert rule.suspects([0], torch.Generator()) == []
    rule.scores = {client: [score, score] for client, score in enumerate([0.1, 0.1, 0.12, 0.11, 0.9, 0.95])}
    assert rule.suspects([*range(6)], torch.Generator().manual_seed(0)) == [4, 5]


@pytest.mark.parametrize("size", [3.4e38, 1e30, 2.0**-149])
def test_hostile_updates_leave_no_infinity(size: float) -> None:
    rule = FLDetector(window=2, warmup_rounds=1)
    for t in range(8):
        updates = torch.ones(6, 40) + torch.randn(6, 40, generator=torch.Generator().manual_seed(t))
        updates[:2] = size * (-1) ** t
        shard = UpdateShard.from_updates(updates)
        shard.broadcast = torch.full((40,), 1e30 * (-1) ** t)
        assert rule(shard).isfinite().all()
        assert all(kept.isfinite().all() for kept in rule.memory.values())
        assert all(math.isfinite(score) for scores in rule.scores.values() for score in scores)


# ---- a run -------------------------------------------------------------------------------------------------------------


def ran(history: Any, world: int, rounds: int, path: str | None = None) -> tuple[Any, ...]:
    rule = FLDetector(window=2, warmup_rounds=1, history=history)
    cohort = CohortSampler(clients_per_round=7, malicious_fraction=0.3)
    federation = tiny_federation(aggregator=rule, attacks=[SignFlip()], cohort=cohort, bucket_bytes=1)
    trainer = fit(federation, rounds=rounds, ckpt_path=path, devices=world)
    return trainer, weights_sha256(federation.client), rule.rounds, rule.seen, rule.scores, sorted(rule.flagged)


def ran_on_a_rank(world: int, folder: str, begun: int | None) -> list[Any]:
    """Whole runs, or those that others have begun, and beginnings for others."""
    found = []
    for history in ("all", "last_layer"):
        found.append(ran(history, world, 5, None if begun is None else f"{folder}/{history}-{begun}.ckpt")[1:])
        if world > 1:
            ran(history, world, 3)[0].save_checkpoint(f"{folder}/{history}-{world}.ckpt")
    return found


def test_same_bits_on_any_number_of_ranks_and_after_a_resume_on_another(tmp_path: Path) -> None:
    expected = ran_on_a_rank(1, str(tmp_path), None)
    assert expected[0] != expected[1]
    assert expected[0][-1] != []
    assert on_ranks(3, ran_on_a_rank, 3, str(tmp_path), None) == [expected] * 3
    assert on_ranks(2, ran_on_a_rank, 2, str(tmp_path), 3) == [expected] * 2
    assert ran_on_a_rank(1, str(tmp_path), 2) == expected


# ---- what is refused ---------------------------------------------------------------------------------------------------


def test_rows_of_nobody_are_refused() -> None:
    shard = UpdateShard.from_updates(torch.eye(4))
    shard.clients = None
    with pytest.raises(
        ConfigurationError, match=r"FLDetector needs to know whose updates it sees, .* use the rule without Bucketing"
    ):
        FLDetector()(shard)
    with pytest.raises(ConfigurationError, match="use it without Bucketing"):
        Bucketing(rule=FLDetector()).check(20)
    around = NearestNeighborMixing(rule=FLDetector(), num_malicious=1)
    around(torch.eye(4))
    around.forget()
    assert isinstance(around.rule, FLDetector)
    assert around.rule.rounds == 0


def test_what_does_not_fit_is_refused() -> None:
    FLDetector().check(3)
    with pytest.raises(ConfigurationError, match=r"FLDetector: of 2 clients the gap statistic .* takes 3; raise model\.cohort"):
        FLDetector().check(2)
    with pytest.raises(ConfigurationError, match=r"FLDetector\.history 'last_layer' looks at the output layer"):
        FLDetector(history="last_layer").check_model(layers_of(["w"], [(3, 4)]))
    wrong: dict[str, Any] = {"window": 0, "warmup_rounds": -1, "max_clusters": 1, "references": 0, "history": "last"}
    for name, value in wrong.items():
        with pytest.raises(ConfigurationError, match=rf"FLDetector\.{name} must be .*, got '?{value}"):
            FLDetector(**{name: value})
