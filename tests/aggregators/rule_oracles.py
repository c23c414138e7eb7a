"""Slow oracles for the coordinate-wise rules, and what all their tests share.

Oracles go through one column at a time with plain loops, exact sums and exact fractions, so they share neither code nor
rounding with the rules. Each returns per column its value and a bound for the rounding of N float32 additions.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from fl_lightning.aggregators import Aggregator, AndMask, FedAvg, Invariant, Median, TrimmedMean
from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.examined import Examined
from fl_lightning.updates.layers import layers_of

Estimate = tuple[float, float]
Oracle = Callable[[np.ndarray, list[float], list[int]], list[Estimate]]
"""(N, d) updates, N weights, layer sizes -> value and bound per column."""

SMALLEST = 2.0**-149  # the least positive float32
EPSILON = 2.0**-23


def exact(decimal: float) -> Fraction:
    """The number that a setting stands for: .2 is 1/5, and 1/7 is 1/7."""
    return Fraction(decimal).limit_denominator(10_000)


# ---- one column ------------------------------------------------------------------------------------------------------


def sum_of_signs(column: list[float]) -> int:
    total = 0
    for value in column:
        if value > 0:
            total += 1
        elif value < 0:
            total -= 1
    return total


def is_consistent(column: list[float], tau: float, *, inclusive: bool = False, ignore_zeros: bool = False) -> bool:
    voters = len(column)
    if ignore_zeros:
        voters = sum(1 for value in column if value != 0)
        if voters == 0:
            return False
    consistency = Fraction(abs(sum_of_signs(column)), voters)
    return consistency >= exact(tau) if inclusive else consistency > exact(tau)


def number_trimmed(n: int, alpha: float) -> int:
    return min(math.ceil(exact(alpha) * n), (n - 1) // 2)


def average(values: list[float], shares: list[float]) -> Estimate:
    terms = [value * share for value, share in zip(values, shares, strict=True)]
    return math.fsum(terms), (len(values) + 3) * (EPSILON * math.fsum(abs(term) for term in terms) + SMALLEST)


def trimmed_average(column: list[float], trim: int) -> Estimate:
    kept = sorted(column)[trim : len(column) - trim]
    return average(kept, [1 / len(kept)] * len(kept))


# ---- whole rules -----------------------------------------------------------------------------------------------------


def columns_of(updates: np.ndarray) -> list[list[float]]:
    return [[float(value) for value in column] for column in updates.T]


def fedavg(*, weighted: bool = True) -> Oracle:
    def oracle(updates: np.ndarray, weights: list[float], layers: list[int]) -> list[Estimate]:
        used = weights if weighted else [1.0] * len(weights)
        shares = [weight / math.fsum(used) for weight in used]
        return [average(column, shares) for column in columns_of(updates)]

    return oracle


def median() -> Oracle:
    def oracle(updates: np.ndarray, weights: list[float], layers: list[int]) -> list[Estimate]:
        n = len(updates)
        found = []
        for column in columns_of(updates):
            ordered = sorted(column)
            if n % 2:
                found.append((ordered[n // 2], 0.0))
            else:
                found.append(average([ordered[n // 2 - 1], ordered[n // 2]], [0.5, 0.5]))
        return found

    return oracle


def trimmed_mean(*, alpha: float = 0.25) -> Oracle:
    def oracle(updates: np.ndarray, weights: list[float], layers: list[int]) -> list[Estimate]:
        return [trimmed_average(column, number_trimmed(len(column), alpha)) for column in columns_of(updates)]

    return oracle


def masked(
    base: Oracle, *, tau: float = 0.2, inclusive: bool = False, ignore_zeros: bool = False, rescale: bool = False
) -> Oracle:
    def oracle(updates: np.ndarray, weights: list[float], layers: list[int]) -> list[Estimate]:
        columns = columns_of(updates)
        kept = [is_consistent(column, tau, inclusive=inclusive, ignore_zeros=ignore_zeros) for column in columns]
        factors = []
        for layer, size in enumerate(layers):
            first = sum(layers[:layer])
            share = sum(kept[first : first + size]) / size
            factors += [1 / (1e-10 + share) if rescale else 1.0] * size
        estimates = base(updates, weights, layers)
        return [
            (value * factor, (bound + 2 * EPSILON * abs(value) + SMALLEST) * factor) if keep else (0.0, 0.0)
            for keep, factor, (value, bound) in zip(kept, factors, estimates, strict=True)
        ]

    return oracle


RULES: dict[str, tuple[Aggregator, Oracle, Oracle]] = {
    "FedAvg": (FedAvg(), fedavg(), fedavg()),
    "FedAvg, uniform": (FedAvg(weighted=False), fedavg(weighted=False), fedavg(weighted=False)),
    "Median": (Median(), median(), median()),
    "TrimmedMean": (TrimmedMean(), trimmed_mean(), trimmed_mean()),
    "TrimmedMean, .1": (TrimmedMean(alpha=0.1), trimmed_mean(alpha=0.1), trimmed_mean(alpha=0.1)),
    "TrimmedMean, .4": (TrimmedMean(alpha=0.4), trimmed_mean(alpha=0.4), trimmed_mean(alpha=0.4)),
    "TrimmedMean, 0": (TrimmedMean(alpha=0), trimmed_mean(alpha=0), trimmed_mean(alpha=0)),
    "AndMask": (AndMask(), masked(fedavg(weighted=False)), fedavg(weighted=False)),
    "AndMask, all options": (
        AndMask(tau=0.6, inclusive=True, ignore_zeros=True, weighted=True, rescale=True),
        masked(fedavg(), tau=0.6, inclusive=True, ignore_zeros=True, rescale=True),
        fedavg(),
    ),
    "Invariant": (Invariant(), masked(trimmed_mean()), trimmed_mean()),
    "Invariant, .6, .1": (Invariant(tau=0.6, alpha=0.1), masked(trimmed_mean(alpha=0.1), tau=0.6), trimmed_mean(alpha=0.1)),
    "Invariant, inclusive": (Invariant(inclusive=True), masked(trimmed_mean(), inclusive=True), trimmed_mean()),
    "Invariant, all options": (
        Invariant(tau=0.6, alpha=0.1, inclusive=True, ignore_zeros=True, rescale=True),
        masked(trimmed_mean(alpha=0.1), tau=0.6, inclusive=True, ignore_zeros=True, rescale=True),
        trimmed_mean(alpha=0.1),
    ),
}
"""Every rule under several settings: the rule, its oracle, and the oracle of what it does with buffers."""


# ---- inputs and comparisons ------------------------------------------------------------------------------------------


def hostile_updates(n: int, seed: int = 0) -> Tensor:
    """(n, 160) updates, 20 columns of each kind that could trip a rule."""
    rng = np.random.default_rng([seed, n])
    width = 20
    plain = rng.standard_normal((n, width))
    outliers = plain.copy()
    outliers[: n // 3] = 1e30 * rng.choice([-1, 1], (n // 3, width))
    kinds = [
        plain,
        rng.integers(-1, 2, (n, width)),  # ties and zeros
        np.repeat(rng.standard_normal(((n + 1) // 2, width)), 2, axis=0)[:n],  # duplicated clients
        np.tile(rng.standard_normal(width), (n, 1)),  # all alike
        np.where(rng.random((n, width)) < 0.8, rng.choice([0.0, -0.0], (n, width)), plain),  # mostly zeros of either sign
        outliers,
        rng.integers(-9, 10, (n, width)) * SMALLEST,  # denormals
        rng.choice([-1, 1], (n, width)) * 10 ** rng.uniform(-44, 30, (n, width)),
    ]
    return torch.from_numpy(np.concatenate(kinds, axis=1).astype(np.float32))


def assert_is(result: Tensor, expected: list[Estimate]) -> None:
    """Equal up to the rounding of float32 sums, column by column."""
    assert result.dtype == torch.float32
    assert len(result) == len(expected)
    for column, (found, (value, bound)) in enumerate(zip(result.tolist(), expected, strict=True)):
        assert abs(found - value) <= bound, f"column {column}: {found}, expected {value} within {bound}"


def aggregated(rule: Aggregator, columns: list[list[float]], weights: list[float] | None = None) -> list[float]:
    """A rule on columns written out by hand."""
    given = None if weights is None else torch.tensor(weights)
    return rule(torch.tensor(columns, dtype=torch.float32).T, given).tolist()


def votes(positive: int, negative: int, zeros: int = 0) -> list[float]:
    """A column in which so many clients go up, down and nowhere."""
    return [1.0] * positive + [-1.0] * negative + [0.0] * zeros


def with_models(shard: UpdateShard, classes: int = 3, h: int = 6) -> UpdateShard:
    """The shard as if its last coordinates were an output layer, and its models had been looked at."""
    shapes = [(shard.num_coordinates - classes * (h + 1),), (classes, h), (classes,)]
    shard.layers = layers_of(["base", "head.weight", "head.bias"], shapes)

    def examination(of: UpdateShard) -> Examined:
        draws = torch.Generator().manual_seed(7)
        clients = 0.5 * torch.rand(of.num_clients, 3 * classes * h, generator=draws)
        clients[-2:] += 1
        return Examined(clients, torch.rand(3 * classes * h, generator=draws))

    shard.examination = examination
    return shard


# ---- on ranks --------------------------------------------------------------------------------------------------------

LAYERS = [3000, 1, 1999]
NUM_CLIENTS = 7


def rows_on_ranks(world: int) -> tuple[Tensor, Tensor]:
    """Updates over five blocks, two clients of which are to be dropped, and who trains whom."""
    blocks = [hostile_updates(NUM_CLIENTS, seed) for seed in range(-(-sum(LAYERS) // 160))]
    updates = torch.cat(blocks, dim=1)[:, : sum(LAYERS)].clone()
    updates[2, -1] = float("nan")
    updates[5, 0] = float("inf")
    return updates, torch.tensor([(2, 0, 1, 1, 0, 2, 2)[client] % world for client in range(NUM_CLIENTS)])


def rules_on_a_rank() -> dict[str, list[bytes]]:
    """The bytes of `on_a_rank` for the rules here."""
    return on_a_rank({name: rule for name, (rule, _, _) in RULES.items()})


def on_a_rank(rules: dict[str, Aggregator]) -> dict[str, list[bytes]]:
    """Every rule's aggregate, mask and combined buffers, whole and as bytes, after an exchange between ranks."""
    exchange = exchange_on_a_rank()
    shard = shard_on_a_rank(exchange, *rows_on_ranks(exchange.world))
    found = {}
    for name, rule in rules.items():
        parts = rule(shard), rule.mask(shard), rule.aggregate_buffers(shard)
        found[name] = [exchange.to_all(part).numpy().tobytes() for part in parts]
    return found


def exchange_on_a_rank() -> Exchange:
    """An exchange over the layers here, in buckets of one block."""
    return Exchange(LAYERS, torch.device("cpu"), bucket_bytes=4 * NUM_CLIENTS * 1024)


def shard_on_a_rank(exchange: Exchange, updates: Tensor, owner: Tensor, round_number: int = 5) -> UpdateShard:
    """The rank's coordinates of the updates that are finite, after an exchange; clients bear their rows' numbers."""
    local = torch.nonzero(owner == exchange.rank).flatten().tolist()
    room = exchange.local_updates(NUM_CLIENTS, len(local), torch.zeros(sum(LAYERS)))
    for k, client in enumerate(local):
        room.new[:] = -updates[client]
        room.store(k)
    everyone = torch.arange(1.0, NUM_CLIENTS + 1), torch.zeros(NUM_CLIENTS).bool(), torch.arange(NUM_CLIENTS)
    shard = exchange.to_coordinates(room, owner, *everyone, seed=3, round_number=round_number)
    shard.keep(shard.finite_rows())
    return shard
