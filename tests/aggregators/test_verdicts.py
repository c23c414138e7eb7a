"""How much each client counted: every rule says so or says that it does not judge, and it is what the rule did."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from distance_oracles import bulyan_selection, cosine_distance, krum_selection, squared_distance
from ranks import on_ranks
from rule_oracles import (
    EPSILON,
    LAYERS,
    exchange_on_a_rank,
    hostile_updates,
    is_consistent,
    number_trimmed,
    rows_on_ranks,
    shard_on_a_rank,
    with_models,
)
from test_fl_trust import trusts
from test_flame import single_linkage_core
from torch import Tensor

from fl_lightning import aggregators
from fl_lightning.aggregators import (
    FLAME,
    FLARE,
    LASA,
    RFA,
    RFLBAT,
    Aggregator,
    AlignIns,
    AndMask,
    Bucketing,
    Bulyan,
    CenteredClipping,
    CosineMultiKrum,
    DeepSight,
    DnC,
    FedAvg,
    FLTrust,
    FoolsGold,
    FreqFed,
    Invariant,
    Krum,
    KrumTrimmedMean,
    MeanVarianceRatio,
    Median,
    MultiKrum,
    MultiMetrics,
    NearestNeighborMixing,
    NormClipping,
    SignGuard,
    SparseFed,
    TrimmedMean,
    WeakDP,
)
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates import UpdateShard

N, D = 9, 60


def updates_of(n: int = N, d: int = D, seed: int = 0) -> Tensor:
    """Benign updates around a direction, two long ones that point elsewhere, and two that are alike."""
    draws = torch.Generator().manual_seed(seed)
    updates = torch.randn(n, d, generator=draws) + 1
    updates[:2] = -3 * updates[:2] + torch.randn(d, generator=draws)
    updates[n - 1] = 1.01 * updates[n - 2] + 0.3 * torch.randn(d, generator=draws)
    return updates


def needs_models(rule: Aggregator) -> bool:
    return isinstance(rule, (DeepSight, FLARE))


def judged(rule: Aggregator, updates: Tensor, weights: Tensor | None = None, root: Tensor | None = None) -> tuple[Tensor, Any]:
    shard = UpdateShard.from_updates(updates, weights)
    if needs_models(rule):
        with_models(shard)
    shard.root = root
    shard.broadcast = torch.linspace(-1, 2, shard.width)
    return rule(shard), shard.verdict


# ---- no rule forgets ------------------------------------------------------------------------------------------------------

KINDS = [getattr(aggregators, name) for name in aggregators.__all__ if name != "Aggregator"]


def made(kind: type[Aggregator], **settings: Any) -> Aggregator:
    arguments = inspect.signature(kind).parameters
    settings |= {"rule": Krum(num_malicious=2)} if "rule" in arguments else {}
    settings |= {"num_malicious": 2 if kind is not Bulyan else 1} if "num_malicious" in arguments else {}
    return kind(**settings)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_rule_judges_or_says_that_it_does_not(kind: type[Aggregator]) -> None:
    settings = [{}, {"verdicts": True}] if "verdicts" in inspect.signature(kind).parameters else [{}]
    root = torch.ones(D)
    for given in settings:
        rule = made(kind, **given)
        aggregate, verdict = judged(rule, updates_of(), root=root)
        assert rule.judges == (verdict is not None), "a rule that calls shard.judge() has the property `judges`, and no other"
        if verdict is not None:
            assert (verdict.shape, verdict.dtype, verdict.device.type) == ((N,), torch.float32, "cpu")
            assert 0 <= verdict.min() <= verdict.max() <= 1
            assert verdict.any()
        assert rule.judges == given.get("verdicts", rule.judges)
        rule.forget()
        if kind is not AlignIns and not needs_models(rule):  # whose models, or weights, a plain tensor does not bring
            plain = rule(updates_of(), root=root if rule.needs_root else None)
            assert torch.equal(aggregate, plain)
    if len(settings) == 2:
        assert torch.equal(judged(made(kind), updates_of())[0], judged(made(kind, verdicts=True), updates_of())[0])
    assert "    Verdict: " in (kind.__doc__ or ""), "its docstring says `Verdict: ...`, if only `none, as ...`"


# ---- the verdict is what the rule did ------------------------------------------------------------------------------------

LINEAR: dict[str, tuple[Aggregator, bool]] = {
    "Krum": (Krum(num_malicious=2), True),
    "MultiKrum": (MultiKrum(num_malicious=2), True),
    "CosineMultiKrum": (CosineMultiKrum(num_malicious=2), True),
    "FLAME": (FLAME(noise_factor=0.0), False),
    "DnC": (DnC(num_malicious=2), True),
    "MultiMetrics": (MultiMetrics(), True),
    "RFLBAT": (RFLBAT(), True),
    "FreqFed": (FreqFed(transform="1d"), True),
    "AlignIns": (AlignIns(lambda_c=1.3, lambda_s=1.3), False),
    "SignGuard": (SignGuard(fraction=1.0), False),
    "FoolsGold": (FoolsGold(use_history=False), False),
    "NormClipping": (NormClipping(max_norm=9.0), False),
    "NormClipping, median": (NormClipping(adaptive="median"), False),
    "WeakDP": (WeakDP(max_norm=6.0, sigma=0.0), False),
    "CenteredClipping": (CenteredClipping(max_norm=8.0, carry=False), False),
    "RFA": (RFA(), True),
    "FLTrust": (FLTrust(), True),
    "DeepSight": (DeepSight(), False),
    "FLARE": (FLARE(temperature=5.0), True),
    "NNM, RFA": (NearestNeighborMixing(rule=RFA(weighted=False), num_malicious=2), True),
    "NNM, Krum": (NearestNeighborMixing(rule=Krum(), num_malicious=2), True),
    "Bucketing, MultiKrum": (Bucketing(rule=MultiKrum(num_malicious=1)), True),
    "Bucketing, NormClipping": (Bucketing(rule=NormClipping(max_norm=7.0, weighted=False)), False),
}
"""Rules whose aggregate is a sum of a_i g_i, and whether they share out weight, so that the largest of the round is 1."""

WEIGHTED = ("NormClipping", "WeakDP", "RFA", "MultiMetrics")


@pytest.mark.parametrize("name", LINEAR)
def test_weights_found_in_the_aggregate_are_the_verdict(name: str) -> None:
    """The a_i come from the aggregate alone, by least squares; u_i is 1/N or the share of the samples."""
    rule, shares_out = LINEAR[name]
    updates = updates_of()
    weights = torch.arange(1.0, N + 1) if name.split(",")[0] in WEIGHTED else torch.ones(N)
    aggregate, verdict = judged(rule, updates, weights, root=torch.ones(D))
    rows = updates.double().numpy()
    inverse = np.linalg.pinv(rows.T)
    found = inverse @ aggregate.double().numpy()
    # Of float32 sums, per column; wrappers add twice. Mixed rows are no longer than the longest.
    rounding = 2 * (N + 3) * EPSILON * max(1.0, np.abs(found).sum()) * np.abs(rows).max(0)
    slack = np.abs(inverse) @ rounding
    if name == "FLTrust":
        lengths = np.linalg.norm(rows, axis=1)  # to which all are brought
        found, slack = found * lengths, slack * lengths
    reference = (weights / weights.sum()).double().numpy()
    if isinstance(rule, Bucketing):  # the last of five buckets has one client
        matrix = rule.matrix(UpdateShard.from_updates(updates)).numpy()
        reference = matrix.sum(0) / len(matrix)
    ratios, slack = found / reference, slack / reference
    if name in ("FLAME", "SignGuard", "AlignIns", "DeepSight"):
        admitted = (np.abs(found) > slack).sum()  # each has the weight 1 / L, where it is not cut
        ratios, slack = ratios * admitted / N, slack * admitted / N
    largest = ratios.max() if shares_out else 1.0
    expected = ratios / largest
    assert (np.abs(verdict.double().numpy() - expected) <= (slack + slack.max()) / largest + EPSILON).all()
    assert ((slack + slack.max()) / largest).max() < 0.01
    assert expected.min() < 0.9


def test_several_steps_of_centered_clipping() -> None:
    rule, updates = CenteredClipping(max_norm=8.0, iterations=3, carry=False), updates_of()
    updates[5] *= 0.1  # never cut
    aggregate, verdict = judged(rule, updates)
    rows, center, counted, untouched = updates.double().numpy(), np.zeros(D), np.zeros(N), 0.0
    for _ in range(3):
        factors = np.array([min(1, 8 / np.linalg.norm(row - center)) for row in rows])
        center = center + sum(factor * (row - center) for factor, row in zip(factors, rows, strict=True)) / N
        counted, untouched = counted * (1 - factors.mean()) + factors / N, untouched * (1 - factors.mean()) + 1 / N
    np.testing.assert_allclose(aggregate.numpy(), center, atol=1e-5)
    np.testing.assert_allclose(verdict.numpy(), counted / untouched, atol=1e-6)
    assert verdict.max() == 1


def test_sparse_fed_clips() -> None:
    updates = updates_of()
    norms = [math.sqrt(math.fsum(value**2 for value in row)) for row in updates.double().tolist()]
    _, verdict = judged(SparseFed(max_norm=7.0), updates)
    assert verdict.tolist() == pytest.approx([min(1.0, 7.0 / norm) for norm in norms])


# ---- against the rules' slow oracles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 9, 20])
def test_selections(n: int) -> None:
    updates = updates_of(n)
    rows, f = updates.numpy(), n // 5
    for rule, chosen in (
        (Krum(num_malicious=f), krum_selection(rows, f, 1, squared_distance)),
        (MultiKrum(num_malicious=f), krum_selection(rows, f, None, squared_distance)),
        (CosineMultiKrum(num_malicious=f), krum_selection(rows, f, None, cosine_distance)),
        (KrumTrimmedMean(num_malicious=f), krum_selection(rows, f, None, squared_distance)),
        (Bulyan(num_malicious=f), bulyan_selection(rows, f)),
    ):
        assert judged(rule, updates)[1].tolist() == [float(i in set(chosen)) for i in range(n)], type(rule).__name__


@pytest.mark.parametrize("n", [7, 20])
def test_flame_and_fl_trust(n: int) -> None:
    updates = updates_of(n, d=300)
    rows = updates.double().numpy()
    norms = np.linalg.norm(rows, axis=1)
    core = single_linkage_core(rows, n // 2 + 1)
    expected = [min(1, np.median(norms) / norms[i]) if i in core else 0.0 for i in range(n)]
    assert judged(FLAME(), updates)[1].tolist() == pytest.approx(expected, rel=1e-6)
    trust = trusts(updates.numpy(), np.ones(300))
    assert judged(FLTrust(), updates, root=torch.ones(300))[1].tolist() == pytest.approx([t / max(trust) for t in trust])
    assert min(trust) == 0


def surviving(updates: Tensor, trim: int, kept: list[bool]) -> list[float]:
    """Coordinate by coordinate and client by client."""
    counts = [0] * len(updates)
    for column, keep in zip(updates.T.tolist(), kept, strict=True):
        within = sorted(column)[trim : len(column) - trim]
        for i, value in enumerate(column):
            counts[i] += keep and within[0] <= value <= within[-1]
    return [count / updates.shape[1] for count in counts]


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_shares_of_coordinates(n: int) -> None:
    updates = hostile_updates(n)
    width, b = updates.shape[1], number_trimmed(n, 0.25)
    signs = [is_consistent(column, 0.2) for column in updates.T.tolist()]
    without_zeros = [is_consistent(column, 0.2, ignore_zeros=True) for column in updates.T.tolist()]
    ratio = MeanVarianceRatio(verdicts=True)
    passes = ratio.mask(UpdateShard.from_updates(updates)).tolist()
    for rule, trim, kept in (
        (Median(verdicts=True), (n - 1) // 2, [True] * width),
        (TrimmedMean(verdicts=True), b, [True] * width),
        (Invariant(verdicts=True), b, signs),
        (
            Invariant(verdicts=True, ignore_zeros=True),
            b,
            without_zeros,
        ),
        (ratio, b, passes),
        (AndMask(verdicts=True), 0, signs),
    ):
        found = judged(rule, updates)[1]
        assert found.tolist() == torch.tensor(surviving(updates, trim, kept)).tolist(), type(rule).__name__


# ---- corner cases -------------------------------------------------------------------------------------------------------


def test_where_nobody_counts_all_are_turned_away() -> None:
    alike = torch.ones(4, 5)
    assert judged(FoolsGold(use_history=False), alike)[1].tolist() == [0] * 4
    assert judged(FLTrust(), alike, root=-torch.ones(5))[1].tolist() == [0] * 4
    assert judged(Bucketing(rule=FLTrust()), alike, root=-torch.ones(5))[1].tolist() == [0] * 4


def test_a_wrapper_judges_as_its_rule_does() -> None:
    assert judged(NearestNeighborMixing(rule=Median(), num_malicious=1), updates_of())[1] is None
    assert judged(NearestNeighborMixing(rule=Median(verdicts=True), num_malicious=1), updates_of())[1] is not None
    assert Bucketing(rule=NearestNeighborMixing(rule=Krum(), num_malicious=1)).judges
    assert not Bucketing(rule=FedAvg()).judges


def test_in_a_bucket_all_share_a_verdict() -> None:
    rule = Bucketing(rule=Krum(num_malicious=1), bucket_size=3)
    matrix = rule.matrix(UpdateShard.from_updates(updates_of()))
    verdict = judged(rule, updates_of())[1]
    assert sorted(verdict.tolist()) == [0] * 6 + [1] * 3
    assert all(len(set(verdict[row > 0].tolist())) == 1 for row in matrix)


def test_a_verdict_is_of_the_last_rule() -> None:
    shard = UpdateShard.from_updates(updates_of())
    Krum(num_malicious=1)(shard)
    assert shard.verdict is not None
    keep = torch.arange(N) > 0
    shard.keep(keep)
    assert len(shard.verdict) == N - 1
    FedAvg()(shard)
    assert shard.verdict is None


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [1.0, -1.0, 0.0], [1.0, float("nan"), 0.0], [[1.0], [1.0], [1.0]]])
def test_what_is_no_verdict_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="a rule's verdict must be 3 finite numbers of at least 0"):
        UpdateShard.from_updates(torch.ones(3, 2)).judge(torch.tensor(wrong))


# ---- on ranks ------------------------------------------------------------------------------------------------------------


def on_ranks_rules() -> dict[str, Aggregator]:
    return {
        **{name: rule for name, (rule, _) in LINEAR.items() if name != "DnC"},
        "DnC": DnC(num_malicious=1),
        "Bulyan": Bulyan(num_malicious=1),
        "LASA": LASA(lambda_n=0.5, lambda_s=0.5),
        "SparseFed": SparseFed(),
        "Median": Median(verdicts=True),
        "Invariant": Invariant(verdicts=True),
        "MeanVarianceRatio": MeanVarianceRatio(verdicts=True),
        "AndMask": AndMask(verdicts=True),
        "Bucketing, TrimmedMean": Bucketing(rule=TrimmedMean(verdicts=True)),
    }


def verdicts_on_a_rank() -> dict[str, bytes]:
    exchange = exchange_on_a_rank()
    shard = with_models(shard_on_a_rank(exchange, *rows_on_ranks(exchange.world)), h=666)  # over two blocks and more
    shard.root = torch.randn(sum(LAYERS), generator=torch.Generator().manual_seed(9))[exchange.start : exchange.stop]
    shard.broadcast = shard.root
    found = {}
    for name, rule in on_ranks_rules().items():
        rule(shard)
        assert shard.verdict is not None, name
        found[name] = shard.verdict.numpy().tobytes()
    return found


def test_same_bits_on_any_number_of_ranks() -> None:
    one = verdicts_on_a_rank()
    assert len(set(one.values())) > len(one) / 2
    for world in (2, 3):
        assert on_ranks(world, verdicts_on_a_rank) == [one] * world
