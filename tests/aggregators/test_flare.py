import logging
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from tiny import FEATURES, Scale, TinyClient, fit, tiny_data, tiny_federation
from torch import Tensor, nn

from fl_lightning.aggregators import FLARE, Bucketing
from fl_lightning.aggregators.flare import discrepancies, votes
from fl_lightning.data.root import RootSet
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import Layout, UpdateShard, parameter_layout
from fl_lightning.updates.examined import Examined
from fl_lightning.updates.layers import layers_of

INF, NAN = math.inf, math.nan


def seen(n: int, f: int, m: int = 6, h: int = 4, seed: int = 0) -> Tensor:
    """(n, m, h) features, those of the first f clients moved."""
    draws = torch.Generator().manual_seed(seed)
    features = torch.randn(m, h, generator=draws) + 0.3 * torch.randn(n, m, h, generator=draws)
    features[:f] += 1.5
    return features


def shard_of(updates: Tensor, features: Tensor, sent: Tensor | None = None) -> UpdateShard:
    """Updates whose models have seen the root set, with an output layer of two classes for as many features as fit."""
    shard, h = UpdateShard.from_updates(updates), features.shape[2]
    shard.layers = layers_of(["base", "head.weight", "head.bias"], [(updates.shape[1] - 2 * h - 2,), (2, h), (2,)])
    of_sent = features[0] if sent is None else sent
    shard.examination = lambda of: Examined(features.flatten(1), of_sent.flatten())
    return shard


# ---- by hand ---------------------------------------------------------------------------------------------------------------


def test_discrepancy_by_hand() -> None:
    features = torch.tensor([[[0.0], [1.0]], [[0.0], [3.0]]])
    found = discrepancies(features, 1.0)
    assert found[0, 1] == found[1, 0] == pytest.approx(-0.258848, abs=1e-6)
    assert found[0, 1] + 2 == pytest.approx(1.741152, abs=1e-6)  # with k(a, a) counted
    assert found.diagonal().tolist() == [INF, INF]
    assert discrepancies(2.5 * features, 2.5)[0, 1] == pytest.approx(-0.258848, abs=1e-6)
    alone = discrepancies(torch.tensor([[[0.0]], [[1.0]]]), 1.0)  # one sample: the kernel between is left
    assert alone[0, 1] == pytest.approx(-2 * math.exp(-0.5), abs=1e-9)


def test_votes_by_hand() -> None:
    line = torch.tensor([1.0, 2.5, 0.0, 9.0])
    distances = (line[:, None] - line).abs().fill_diagonal_(INF)
    assert votes(distances, 2).tolist() == [3, 3, 2, 0]
    assert votes(distances, 1).tolist() == [2, 1, 1, 0]
    assert votes(distances, 3).tolist() == [3, 3, 3, 3]
    assert votes(distances, 0).tolist() == [0, 0, 0, 0]
    alike = torch.zeros(4, 4).fill_diagonal_(INF)
    assert votes(alike, 2).tolist() == pytest.approx([2, 2, 2, 2])


def test_trust_by_hand() -> None:
    features = torch.tensor([1.0, 2.5, 0.0, 9.0])[:, None, None].expand(4, 3, 1) * 0.2
    assert FLARE().trusts(features, 1.0).tolist() == pytest.approx([0.413622, 0.413622, 0.152163, 0.020593], abs=1e-6)
    assert FLARE(trust="share").trusts(features, 1.0).tolist() == [0.375, 0.375, 0.25, 0]
    updates = torch.arange(48.0).reshape(4, 12)
    shard = shard_of(updates, features)
    shares = torch.tensor([0.375, 0.375, 0.25, 0])
    torch.testing.assert_close(FLARE(trust="share")(shard), shares @ updates)
    assert shard.verdict is not None
    assert shard.verdict.tolist() == pytest.approx((shares / 0.375).tolist())


# ---- against its definition ------------------------------------------------------------------------------------------------


def slow_trust(features: np.ndarray, count: int, sigma: float, temperature: float) -> list[float]:
    """Sample by sample."""
    n, m, _ = features.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return math.exp(-math.fsum((a - b) ** 2) / (2 * sigma**2))

    def within(own: np.ndarray) -> float:
        return math.fsum(kernel(a, b) for i, a in enumerate(own) for j, b in enumerate(own) if i != j) / (m * (m - 1))

    got = [0] * n
    for i in range(n):
        far = {}
        for j in range(n):
            cross = math.fsum(kernel(a, b) for a in features[i] for b in features[j]) / m**2
            far[j] = within(features[i]) + within(features[j]) - 2 * cross
        for j in sorted((j for j in range(n) if j != i), key=far.__getitem__)[:count]:
            got[j] += 1
    powers = [math.exp(v / temperature) for v in got]
    return [power / math.fsum(powers) for power in powers]


@pytest.mark.parametrize(("n", "f"), [(3, 0), (4, 1), (7, 2), (12, 4)])
@pytest.mark.parametrize(("sigma", "temperature"), [(1.0, 1.0), (2.5, 4.0)])
def test_equals_its_definition(n: int, f: int, sigma: float, temperature: float) -> None:
    features = seen(n, f, seed=n)
    updates = torch.randn(n, 30, generator=torch.Generator().manual_seed(n))
    shard = shard_of(updates, features)
    found = FLARE(sigma=sigma, temperature=temperature)(shard)
    expected = slow_trust(features.double().numpy(), n // 2, sigma, temperature)
    slack = (n + 3) * 2.0**-23 * updates.abs().amax().item()
    np.testing.assert_allclose(found.numpy(), np.array(expected) @ updates.double().numpy(), atol=slack)
    assert shard.verdict is not None
    assert shard.verdict.tolist() == pytest.approx([t / max(expected) for t in expected], abs=1e-6)
    if f:
        assert max(expected[:f]) < max(expected[f:]) / 2


def test_diagonals_change_no_vote_but_neighbours_do() -> None:
    features = seen(9, 2)
    distances = discrepancies(features, 1.0)
    assert torch.equal(votes(distances, 4), votes(distances + 2 / 5, 4))
    assert not torch.equal(votes(distances, 4), votes(distances, 3))
    assert FLARE(neighbors=0.34).trusts(features, 1.0).tolist() == pytest.approx(
        slow_trust(features.double().numpy(), 3, 1.0, 1.0)
    )


def test_order_of_clients_does_not_matter_also_in_ties() -> None:
    features = seen(8, 2)
    features[3] = features[4] = features[5]
    features[6:] *= 1e3  # all kernels are 0 there
    order = torch.tensor([5, 2, 7, 0, 4, 1, 6, 3])
    found = FLARE().trusts(features, 1.0)
    torch.testing.assert_close(FLARE().trusts(features[order], 1.0), found[order], rtol=1e-12, atol=0)


def test_median_width() -> None:
    rule, sent = FLARE(sigma="median"), torch.tensor([[0.0], [1.0], [5.0]])
    assert rule.width(sent) == 4  # of 1, 5, 4
    assert FLARE(sigma=3.0).width(sent) == 3
    assert [rule.width(features) for features in (sent[:1], torch.zeros(4, 2), NAN * sent)] == [1, 1, 1]
    # So far apart that kernels of width 1 are all 0, and everybody ties.
    features, updates = 100 * seen(7, 2), torch.eye(7)[:, :1].expand(7, 12)
    tied, told = shard_of(updates, features), shard_of(updates, features, features[3])
    FLARE()(tied)
    rule(told)
    assert tied.verdict is not None
    assert told.verdict is not None
    assert tied.verdict.tolist() == pytest.approx([1] * 7)
    assert told.verdict[:2].max() < 0.5 * told.verdict.max()


# ---- in a federation ---------------------------------------------------------------------------------------------------------


class Captured(FLARE):
    """Keeps the shard of the last round."""

    def forward(self, shard: UpdateShard) -> Tensor:
        self.shard = shard
        return super().forward(shard)


def test_features_of_a_federation() -> None:
    rule, data = Captured(), tiny_data(root=RootSet(samples=11))
    federation = tiny_federation(aggregator=rule, attacks=[Scale(3.0)], buffers="keep")
    layout: Layout = parameter_layout(federation.client)
    fit(federation, data, rounds=1)
    shard, model = rule.shard, cast("Any", federation.client.eval())
    assert shard.examined is not None
    assert shard.broadcast is not None
    assert data.root_samples is not None
    inputs, _ = data.root_samples.batch(torch.arange(11))
    model.net[1].reset_running_stats()  # statistics of BatchNorm are the first ones, as buffers are kept
    with torch.no_grad():
        for row, update in zip(shard.examined, shard.values, strict=True):
            layout.load(model, shard.broadcast - update)
            torch.testing.assert_close(row.reshape(11, 37), model.net[:4](inputs), rtol=1e-5, atol=1e-6)
    assert not model.net[4]._forward_pre_hooks


def test_inside_buckets_and_other_outputs() -> None:
    class WithoutBias(TinyClient):
        def __init__(self) -> None:
            super().__init__()
            self.net[4] = nn.Linear(37, 3, bias=False)

    data = tiny_data(root=RootSet(samples=1))
    fit(tiny_federation(aggregator=Bucketing(rule=FLARE()), attacks=[], client=WithoutBias()), data, rounds=1)
    rule = Captured(output_layer="net.0")
    fit(tiny_federation(aggregator=rule, attacks=[]), data, rounds=1)
    assert rule.shard.examined is not None
    assert rule.shard.examined.shape == (7, FEATURES)
    assert len(rule.shard.examined.unique(dim=0)) == 1  # these are the inputs


class Unused(TinyClient):
    """Has a layer that is not called, or with other inputs, after the one that gives the logits."""

    def __init__(self, calls: bool) -> None:
        super().__init__()
        self.last, self.calls = nn.Linear(3, 3), calls

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.net(inputs)
        return logits + self.last(logits[:1]) if self.calls else logits


@pytest.mark.parametrize(("calls", "got"), [(True, r"\(1, 3\) for 8 samples"), (False, "nothing")])
def test_a_layer_that_sees_something_else_is_refused(calls: bool, got: str) -> None:
    data = tiny_data(root=RootSet(samples=8))
    message = rf"what goes into last, which should be \(b, 3\), but is {got}; name .* FLARE\.output_layer"
    with pytest.raises(ConfigurationError, match=message):
        fit(tiny_federation(aggregator=FLARE(), attacks=[], client=Unused(calls)), data, rounds=1)


# ---- hostile input -----------------------------------------------------------------------------------------------------------


def test_features_that_are_not_finite_get_no_trust(caplog: pytest.LogCaptureFixture) -> None:
    features, updates = seen(6, 0), torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    features[1, 2, 0], features[4, 0, 0] = NAN, INF
    trust = FLARE().trusts(features, 1.0)
    good = [0, 2, 3, 5]
    assert trust[[1, 4]].tolist() == [0, 0]
    assert trust.sum() == pytest.approx(1)
    assert trust[good].tolist() == pytest.approx(slow_trust(features[good].double().numpy(), 3, 1.0, 1.0))
    with caplog.at_level(logging.WARNING):
        shard = shard_of(updates, NAN * features)
        assert not FLARE()(shard).any()
    assert "no client's features are finite" in caplog.text
    assert shard.verdict is not None
    assert not shard.verdict.any()


@pytest.mark.parametrize("n", [1, 2, 6])
@pytest.mark.parametrize(("trust", "sigma"), [("softmax", 1.0), ("share", 1e-200), ("share", 1e200), ("softmax", "median")])
def test_hostile_features_and_updates(n: int, trust: Any, sigma: Any) -> None:
    draws = torch.Generator().manual_seed(n)
    for factor in (0.0, 1e-45, 1.0, 1e37):
        features = factor * torch.randn(n, 5, 2, generator=draws)
        for updates in (torch.full((n, 8), 3e38), torch.zeros(n, 8), torch.randn(n, 8, generator=draws)):
            result = FLARE(trust=trust, sigma=sigma)(shard_of(updates, features))
            assert result.isfinite().all()
            assert (result.abs() <= updates.abs().amax(0) * (1 + (n + 3) * 2.0**-23)).all()


# ---- refusals ----------------------------------------------------------------------------------------------------------------


def test_check() -> None:
    for n in (3, 4, 20):
        FLARE().check(n)
    for rule, n in ((FLARE(), 2), (FLARE(), 1), (FLARE(neighbors=0.9), 10), (FLARE(neighbors=0.05), 10)):
        with pytest.raises(ConfigurationError, match=rf"FLARE: of {n} clients each votes for .*; change model\.cohort"):
            rule.check(n)


def test_models_and_tensors_that_are_refused() -> None:
    for names, shapes, where in (
        (["conv.weight"], [(8, 1, 3, 3)], r"conv.weight \(8, 1, 3, 3\) is the model's last"),
        (["weight", "bias"], [(3, 8), (3,)], r"bias \(3,\) is the model's last"),
        (["", ""], [(3, 8), (3,)], r"an unnamed one \(3,\) is the model's last"),
    ):
        with pytest.raises(ConfigurationError, match=rf"must have a parameter 'weight' \(C, h\), but {where}; name that layer"):
            FLARE().check_model(layers_of(names, shapes))
    with pytest.raises(ConfigurationError, match="but fc has none; name that layer"):
        FLARE(output_layer="fc").check_model(layers_of(["net.weight"], [(3, 2)]))
    FLARE().check_model(layers_of(["a.weight", "net.weight"], [(3, 2), (2, 3)]))
    with pytest.raises(ConfigurationError, match="FLARE compares what submitted models make of root samples"):
        FLARE()(torch.ones(4, 3))
    with pytest.raises(ConfigurationError, match=r"FLARE examines models on clean samples .*; set data\.root"):
        fit(tiny_federation(aggregator=FLARE()), rounds=1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("neighbors", 0.0), ("neighbors", 1.0), ("sigma", 0.0), ("sigma", INF), ("sigma", "mean"), ("trust", "votes")),
        *(("temperature", 0.0), ("temperature", NAN)),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"FLARE\.{setting} must .*, got {value!r}"):
        FLARE(**{setting: value})


def test_buffers_take_the_median() -> None:
    assert FLARE().aggregate_buffers(UpdateShard.from_updates(torch.tensor([[1.0], [2.0], [900.0]]))).tolist() == [2]
