import math
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.cluster import HDBSCAN  # pyrefly: ignore[missing-module-attribute]
from tiny import CLASSES, FEATURES, Scale, fit, tiny_federation
from torch import Tensor

from fl_lightning.aggregators import Bucketing, DeepSight
from fl_lightning.aggregators.deep_sight import output_updates
from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator
from fl_lightning.updates import Layout, UpdateShard, parameter_layout
from fl_lightning.updates.examined import Examined
from fl_lightning.updates.layers import layers_of

HAND = torch.tensor(
    [
        [1.0, 1, -1, 1, 1, 0, 0, 1, 1],
        [1.0, 1, 1, -1, 0, 1, 1, 0, 1],
        [4.0, 2, 0, 0, 0, 0, 2, 1, 0],
        [1.0, 0, 1, 1, 1, 1, 1, 1, 0],
    ]
)
"""Four updates of an output layer of three classes and two features: the weight class by class, then the bias."""


def shard_of(updates: Tensor, classes: int = 3, before: int = 0, examined: Tensor | None = None) -> UpdateShard:
    """With an output layer at the end, after so many other coordinates."""
    shard = UpdateShard.from_updates(updates)
    h = (updates.shape[1] - before) // classes - 1
    shapes = [(before,), (classes, h), (classes,)]
    shard.layers = layers_of(["base", "head.weight", "head.bias"], shapes)
    if examined is not None:
        shard.examination = lambda of: Examined(examined, torch.ones_like(examined[0]))
    return shard


def attacked(n: int, f: int, classes: int = 4, h: int = 5, before: int = 30, seed: int = 0) -> Tensor:
    """n updates, the first f of which train one class only, all alike."""
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, before + classes * (h + 1), generator=draws)
    updates[:, before:] = 0.2 * updates[:, before:] + 1
    updates[:f, before:] = 0.01 * torch.randn(f, classes * (h + 1), generator=draws)
    updates[:f, before : before + h] += 3
    updates[:f, -classes] += 2
    return updates


# ---- by hand ---------------------------------------------------------------------------------------------------------------


def test_energies_by_hand() -> None:
    shard = shard_of(HAND)
    energies, biases = output_updates(shard, *shard.layers[1:])
    assert energies.tolist() == [[2, 3, 2], [3, 2, 2], [8, 1, 0], [2, 3, 2]]
    assert torch.equal(biases, HAND[:, 6:].double())
    assert DeepSight().suspicious(energies).tolist() == [False, False, True, False]  # TE 3, 3, 1, 3: 1 <= 3 / 2


def test_merged_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, asked = DeepSight(), []
    labels = [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]]

    def cluster(distances: Tensor) -> Tensor:
        asked.append(distances)
        return torch.tensor(labels[len(asked) - 1])

    monkeypatch.setattr(rule, "cluster", cluster)
    shard = shard_of(HAND)
    merged = rule.distances(*output_updates(shard, *shard.layers[1:]), torch.rand(4, 3, 3, dtype=torch.float64))
    third = pytest.approx(1 / 9)
    expected = [[0, 0, 8 / 9, third], [0, 0, 8 / 9, third], [8 / 9, 8 / 9, 0, 7 / 9], [third, third, 7 / 9, 0]]
    assert [[pytest.approx(d) if isinstance(d, float) else d for d in row] for row in expected] == merged.tolist()
    between = [asked[0][i, j].item() for i, j in ((0, 1), (0, 3), (0, 2))]  # of NEUPs (4, 9, 4)/17, (9, 4, 4)/17, (64, 1, 0)/65
    neups = np.array([[4, 9, 4], [9, 4, 4], [4, 9, 4], [64, 1, 0]]) / np.array([[17], [17], [17], [65]])
    assert between == pytest.approx([np.linalg.norm(neups[0] - neups[j]) for j in (1, 2, 3)])
    cosines = [asked[1][i, j].item() for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))]
    assert cosines == pytest.approx([0.5, 0.683772, 0.5, 0.367544, 0.5, 0.051317], abs=1e-6)
    assert rule.cluster is cluster
    asked.clear()
    without = rule.distances(*output_updates(shard, *shard.layers[1:]), None)
    assert without.tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]]


class Table(L.LightningModule):
    """Gives the rows of a table, whatever it is asked, and counts."""

    def __init__(self, *tables: list[list[float]]) -> None:
        super().__init__()
        self.tables, self.calls = [torch.tensor(table).log() for table in tables], 0
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.tables[(self.calls - 1) % len(self.tables)][: len(inputs)]


def test_ddif_by_hand() -> None:
    sent = [[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]]
    submitted = [[0.5, 0.3, 0.2], [0.6, 0.2, 0.2]]
    rule = cast("Any", DeepSight(probe_samples=2, probe_seeds=1))
    batch = [(torch.zeros(2, 1), torch.zeros(2))]
    rule.examine_broadcast(Table(sent), batch, None)
    assert rule.examine(Table(submitted), batch, None).tolist() == pytest.approx([2, 0.85, 0.65])
    # Two sets of two inputs in batches of three and one: the first set is as above, the second has ratios of 1 and 3/4, ...
    rule = cast("Any", DeepSight(probe_samples=2, probe_seeds=2))
    batches: Any = [(torch.zeros(3, 1), torch.zeros(3)), (torch.zeros(1, 1), torch.zeros(1))]
    rule.examine_broadcast(Table([*sent, [0.2, 0.2, 0.6]], [[0.4, 0.4, 0.2]]), batches, None)
    found = rule.examine(Table([*submitted, [0.2, 0.2, 0.6]], [[0.3, 0.6, 0.1]]), batches, None)
    assert found.tolist() == pytest.approx([2, 0.85, 0.65, 0.875, 1.25, 0.75])


def test_bounds_are_as_printed() -> None:
    rule = DeepSight(max_suspicious=1 / 3)
    # A class at the bound does not exceed it: with four classes e must be more than max(e) / 4.
    energies = torch.tensor([[2.0, 1, 1, 1], [2, 2, 1.01, 1], [2, 2, 2, 2], [2, 2, 2, 2]], dtype=torch.float64)
    assert rule.suspicious(energies).tolist() == [True, False, False, False]  # TE 1, 3, 4, 4: median 3.5
    energies = torch.tensor([[4.0, 4, 1, 1], [4, 4, 4, 4], [4, 4, 4, 4]], dtype=torch.float64)
    assert rule.suspicious(energies).tolist() == [True, False, False]  # half of the median, exactly
    many = torch.ones(3, 200, dtype=torch.float64)
    many[0, 1:] = 0.09  # squared, between 1/200 and 1/100
    assert rule.suspicious(many).tolist() == [True, False, False]
    assert not DeepSight(exceeding=0.0).suspicious(many).any()
    # A third of a cluster is too many.
    labels, suspicious = torch.tensor([0, 0, 0, 1, 1, 1, 1, -1, -1]), torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0]).bool()
    assert rule.accepted(labels, suspicious).int().tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 1]
    assert DeepSight(outliers="dropped").accepted(labels, suspicious).int().tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0]


# ---- against its definition ------------------------------------------------------------------------------------------------


def apart(rows: np.ndarray, metric: str = "euclidean") -> np.ndarray:
    """0 for two clients in one cluster, pair by pair."""
    n = len(rows)
    distances = [[math.dist(a, b) for b in rows] for a in rows] if metric == "euclidean" else rows
    labels = HDBSCAN(2, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True).fit_predict(distances)
    return np.array([[float(i != j and (labels[i] < 0 or labels[i] != labels[j])) for j in range(n)] for i in range(n)])


def slow_rule(rows: np.ndarray, classes: int, before: int, division: Sequence[np.ndarray]) -> tuple[np.ndarray, list[float]]:
    """What is aggregated, and the verdict."""
    n, h = len(rows), (rows.shape[1] - before) // classes - 1
    neups, exceedings, biases = [], [], []
    for row in rows:
        weight, bias = row[before:-classes].reshape(classes, h), row[-classes:]
        energies = [abs(bias[c]) + math.fsum(abs(value) for value in weight[c]) for c in range(classes)]
        squares = [energy**2 for energy in energies]
        neups.append([square / math.fsum(squares) for square in squares])
        bound = max(0.01, 1 / classes) * max(neups[-1])
        exceedings.append(sum(share > bound for share in neups[-1]))
        biases.append(bias / np.linalg.norm(bias))
    suspicious = [count <= np.median(exceedings) / 2 for count in exceedings]
    cosines = np.array([[0.0 if i == j else 1 - float(biases[i] @ biases[j]) for j in range(n)] for i in range(n)])
    kinds = [apart(np.array(neups)), apart((cosines + cosines.T) / 2, "precomputed")]
    if len(division):
        kinds.append(np.mean([apart(part) for part in division], axis=0))
    merged = sum(kinds) / len(kinds)
    labels = HDBSCAN(2, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True).fit_predict(merged)
    accepted = []
    for i, label in enumerate(labels):
        members = [j for j in range(n) if labels[j] == label] if label >= 0 else [i]
        accepted.append(sum(suspicious[j] for j in members) / len(members) < 1 / 3)
    norms = [math.sqrt(math.fsum(row**2)) for row in rows]
    verdict = [min(1.0, np.median(norms) / norm) * keep for norm, keep in zip(norms, accepted, strict=True)]
    return np.array(verdict) @ rows / max(1, sum(accepted)), verdict


@pytest.mark.parametrize("examines", [True, False])
@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 2), (12, 4), (20, 4)])
def test_equals_its_definition(n: int, f: int, examines: bool) -> None:
    updates = attacked(n, f, seed=n)
    draws = torch.Generator().manual_seed(n)
    division = torch.rand(n, 3, 4, generator=draws) + torch.tensor([4.0, 0, 0, 0]) * (torch.arange(n) < f)[:, None, None]
    shard = shard_of(updates, 4, 30, division.flatten(1) if examines else None)
    found = DeepSight(probe_samples=5 if examines else 0)(shard)
    sets = division.double().unbind(1) if examines else []
    expected, verdict = slow_rule(updates.double().numpy(), 4, 30, [part.numpy() for part in sets])
    assert shard.verdict is not None
    assert shard.verdict.tolist() == pytest.approx(verdict, abs=1e-6)
    np.testing.assert_allclose(found.numpy(), expected, atol=(n + 3) * 2.0**-23 * updates.abs().amax().item())
    assert not any(verdict[:f])
    assert sum(v > 0 for v in verdict) >= n / 2


class Captured(DeepSight):
    """Keeps the shards of its rounds."""

    def forward(self, shard: UpdateShard) -> Tensor:
        self.shard = shard
        return super().forward(shard)


def test_ddifs_of_a_federation() -> None:
    rule = Captured(probe_samples=11, probe_seeds=2)
    federation = tiny_federation(aggregator=rule, attacks=[Scale(3.0)], buffers="keep")
    layout: Layout = parameter_layout(federation.client)
    fit(federation, rounds=1)
    shard, model = rule.shard, cast("Any", federation.client.eval())
    assert shard.examined is not None
    assert shard.examined_broadcast is not None
    assert shard.broadcast is not None
    assert shard.examined_broadcast.tolist() == pytest.approx([1.0] * 2 * CLASSES)
    noise = torch.cat([torch.rand(size, FEATURES, generator=generator(0, "probe", 0, i)) for i, size in enumerate((8, 8, 6))])
    # Statistics of BatchNorm are the first ones, as buffers are kept.
    model.net[1].reset_running_stats()
    with torch.no_grad():
        layout.load(model, shard.broadcast)
        sent = model(noise).double().softmax(1)
        for row, update in zip(shard.examined, shard.values, strict=True):
            layout.load(model, shard.broadcast - update)
            ratios = model(noise).double().softmax(1) / sent
            expected = [ratios[:11].mean(0), ratios[11:].mean(0)]
            torch.testing.assert_close(row.double(), torch.cat(expected), rtol=1e-5, atol=0)
    assert rule._sent == []


def test_inside_buckets_and_without_a_look() -> None:
    for rule in (Bucketing(rule=Captured(probe_samples=4)), Captured(probe_samples=0)):
        federation = tiny_federation(aggregator=rule, attacks=[])
        fit(federation, rounds=1)
        captured = cast("Any", rule.rule if isinstance(rule, Bucketing) else rule)
        assert ("examination" in federation.seconds) is isinstance(rule, Bucketing)
        assert captured.shard.verdict.any()


# ---- hostile input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_hostile_updates_and_outputs(n: int) -> None:
    nothing, loud = torch.zeros(n, 20), 1e38 * torch.randn(n, 20, generator=torch.Generator().manual_seed(n))
    one = torch.ones(n, 20)
    one[0] = 3e38
    tiny = torch.full((n, 20), 2.0**-149)
    odd = torch.ones(n, 9)
    odd[0, 4], odd[n // 2, 1] = math.nan, math.inf
    for updates in (nothing, loud, one, tiny):
        for examined in (None, odd, torch.full((n, 9), math.nan), torch.full((n, 9), 8.5e37)):
            result = DeepSight()(shard_of(updates, 3, 5, examined))
            assert result.isfinite().all()
            assert result.shape == (20,)
    assert not DeepSight()(shard_of(nothing, 3, 5)).any()


def test_outputs_that_are_not_finite_are_outliers_and_no_more() -> None:
    updates = attacked(8, 0)
    examined = torch.ones(8, 3)
    examined[5] = math.nan
    distances = DeepSight(probe_seeds=1).apart_by(examined.double())
    assert distances[5].tolist() == [1, 1, 1, 1, 1, 0, 1, 1]
    assert distances[:5, :5].sum() == 0
    shard = shard_of(updates, 4, 30, examined)
    DeepSight(probe_seeds=1)(shard)
    assert shard.verdict is not None
    assert shard.verdict.all()  # not suspicious


def test_an_output_layer_at_rest_is_suspicious() -> None:
    updates = attacked(6, 0)
    updates[2, 30:] = 0
    shard = shard_of(updates, 4, 30)
    energies, _ = output_updates(shard, *shard.layers[1:])
    assert DeepSight().suspicious(energies).tolist() == [i == 2 for i in range(6)]
    assert DeepSight().suspicious(torch.zeros(3, 4, dtype=torch.float64)).all()


def test_of_two_classes_nobody_is_suspicious() -> None:
    """Gradients of cross entropy add up to 0 over the classes."""
    rows = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    both = torch.stack([rows, -rows], dim=1)  # (N, classes, h and the bias)
    shard = shard_of(torch.cat([both[:, :, :5].flatten(1), both[:, :, 5]], dim=1), classes=2)
    energies, _ = output_updates(shard, *shard.layers[1:])
    assert not DeepSight().suspicious(energies).any()


def test_odd_and_homogeneous_without_a_look() -> None:
    updates = attacked(9, 2)
    found = DeepSight()(shard_of(updates, 4, 30))
    assert torch.equal(DeepSight()(shard_of(-updates, 4, 30)), -found)
    assert torch.equal(DeepSight()(shard_of(8 * updates, 4, 30)), 8 * found)


# ---- refusals ----------------------------------------------------------------------------------------------------------------


def test_check() -> None:
    DeepSight().check(3)
    with pytest.raises(ConfigurationError, match=r"of 2 clients none can be told .* takes 3; raise model\.cohort"):
        DeepSight().check(2)


def test_models_without_an_output_layer_are_refused() -> None:
    layers = layers_of(["a.weight", "a.bias", "b.weight"], [(3, 2), (3,), (2, 3)])
    with pytest.raises(ConfigurationError, match=r"DeepSight looks at the output layer, .* but .* are a.bias .*, b.weight"):
        DeepSight().check_model(layers)
    DeepSight(output_layer="a").check_model(layers)
    with pytest.raises(ConfigurationError, match=r"DeepSight compares .*, but one.weight gives one logit"):
        DeepSight().check_model(layers_of(["one.weight", "one.bias"], [(1, 5), (1,)]))
    with pytest.raises(ConfigurationError, match="DeepSight looks at the output layer"):
        DeepSight()(torch.ones(4, 6))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("probe_samples", -1), ("probe_seeds", 0), ("exceeding", -0.1), ("exceeding", math.nan), ("max_suspicious", 0.0)),
        *(("max_suspicious", 1.1), ("min_cluster_size", 1), ("min_samples", 0), ("outliers", "kept")),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"DeepSight\.{setting} must .*, got {value!r}"):
        DeepSight(**{setting: value})


def test_buffers_take_the_median() -> None:
    assert DeepSight().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]
