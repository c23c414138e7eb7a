"""What can be computed about the invariant aggregator without training: Figure 3, Theorem 10, Theorem 11.

X. Wang, D. Dimitriadis, S. Koyejo, S. Tople, "Invariant Aggregator for Defending against Federated Backdoor Attacks",
AISTATS 2024, https://arxiv.org/abs/2210.01834, Proposition 5 and Figure 3, Theorems 10 and 11.

Letters: N clients report in a round, N' of them malicious, B = N - N' benign; b entries are trimmed from each tail; a benign
client's sign is flipped by noise with probability p, F of them in all, X = B - F are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import binom

from fl_lightning.aggregators.votes import GUARD, SignConsistency, check_alpha, check_trim, trim_count
from fl_lightning.errors import ConfigurationError

NOTHING = 1e-300
"""Probabilities below this are taken as 0."""

# ---- Figure 3 ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure3:
    """f(theta) of Proposition 5; where f > 0, FLTrust can be led in the malicious direction.

    Attributes:
        theta: (n,) float64, angles from the flat axis, in [0, pi].
        maximised: (n,) float64, f by maximisation over theta' on a grid.
        closed_form: (n,) float64, 1/2 - 3/2 cos(theta).
    """

    theta: np.ndarray
    maximised: np.ndarray
    closed_form: np.ndarray

    @property
    def root(self) -> float:
        """The angle beyond which f > 0: arccos(1/3), .392 pi."""
        return math.acos(1 / 3)


def figure3(theta: np.ndarray, grid: int = 2001) -> Figure3:
    """f(theta) = max over theta' in [0, pi/2] of cos(theta') cos(pi - theta - theta') - cos(theta).

    A product of cosines whose angles add up to pi - theta is largest where both are half of that, so that
    f(theta) = 1/2 - 3/2 cos(theta). The paper says that there is no tractable closed form, and plots the maximum.

    Args:
        theta: (n,) float64, in [0, pi].
        grid: values of theta' that are tried.

    Example:
        >>> round(float(figure3(np.array([np.pi / 2])).closed_form[0]), 4)
        0.5
    """
    tried = np.linspace(0.0, np.pi / 2, grid)
    maximised = np.array([(np.cos(tried) * np.cos(np.pi - t - tried)).max() - np.cos(t) for t in theta])
    return Figure3(theta, maximised, 0.5 - 1.5 * np.cos(theta))


# ---- Theorem 10 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A round and a rule, as Theorem 10 sees them.

    Attributes:
        clients: N, at least 1.
        malicious: N', from 0 to N - 1.
        alpha: share trimmed from each tail, in [0, .5); b = ceil(alpha N).
        tau: consistency threshold of the mask, in [0, 1].
        inclusive: whether a consistency of tau passes the mask.

    Example:
        >>> setting = Setting(clients=20, malicious=4, alpha=0.25, tau=0.2)
        >>> setting.trimmed, setting.majority, setting.in_regime
        (5, 13, False)
    """

    clients: int
    malicious: int
    alpha: float
    tau: float
    inclusive: bool = False

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ConfigurationError(f"clients must be at least 1, got {self.clients}")
        if not 0 <= self.malicious < self.clients:
            raise ConfigurationError(
                f"malicious must be from 0 to {self.clients - 1}, as one of the {self.clients} clients must be benign, "
                f"got {self.malicious}"
            )
        check_alpha(self.alpha)
        check_trim("alpha", self.clients, self.alpha)
        SignConsistency(tau=self.tau, inclusive=self.inclusive)  # checks tau

    @property
    def benign(self) -> int:
        """B."""
        return self.clients - self.malicious

    @property
    def trimmed(self) -> int:
        """b."""
        return trim_count(self.clients, self.alpha)

    @property
    def threshold(self) -> int:
        """The least |sum of signs| that passes the mask."""
        return SignConsistency(tau=self.tau, inclusive=self.inclusive).threshold(self.clients)

    @property
    def majority(self) -> int:
        """x_min, the smallest number of equal signs among N, none of them zero, that passes the mask."""
        return math.ceil((self.threshold + self.clients) / 2)

    @property
    def trimming_covers(self) -> bool:
        """Whether N' <= b: then a kept value lies between benign ones."""
        return self.malicious <= self.trimmed

    @property
    def mask_covers(self) -> bool:
        """Whether x_min >= N - b: then a mask that passes leaves one sign alone after trimming."""
        return self.majority >= self.clients - self.trimmed

    @property
    def in_regime(self) -> bool:
        """Whether Theorem 10's bounds hold."""
        return self.trimming_covers and self.mask_covers

    @property
    def survives_veto(self) -> bool:
        """Whether a unanimous benign vote passes the mask when all malicious clients vote against it."""
        return self.benign - self.malicious >= self.threshold


@dataclass(frozen=True)
class Bounds:
    """What becomes of a coordinate in one round, each in [0, 1].

    Attributes:
        benign: p-, at least how likely the aggregate has the benign sign, whatever attackers do.
        malicious: p+, at most how likely attackers who know everything can give it the other sign.
        benign_trimmed: p- of the trimmed mean alone.
        malicious_trimmed: p+ of the trimmed mean alone.
    """

    benign: float
    malicious: float
    benign_trimmed: float
    malicious_trimmed: float


def theorem10(setting: Setting, p: float) -> Bounds:
    """The exact probabilities behind Theorem 10.

    Benign signs flip independently, each with probability p; none is zero.

    - p- = P[X >= max(N - b, x_min)]; of the trimmed mean alone P[X >= N - b].
    - p+ = P[F >= x_min - N'] if x_min >= N - b, else P[F >= x_min - N' or b + 1 - N' <= F <= N - x_min]: attackers then vote
      with the benign side just enough to pass the mask, while a malicious entry survives trimming. Of the trimmed mean alone
      P[F >= b + 1 - N'].

    Args:
        setting: the round and the rule.
        p: in [0, 1], the largest of the benign clients' flip probabilities.

    Differs from the paper, whose sums lack binomial coefficients and complementary powers (`theorem10_printed`) and stand for
    tau = 1 - 2 alpha with whole alpha N.

    Example:
        >>> bounds = theorem10(Setting(20, 4, alpha=0.2, tau=0.6, inclusive=True), 0.1)
        >>> round(bounds.benign, 4), f"{bounds.malicious:.2e}"
        (0.1853, '1.24e-09')
    """
    p = check_probability("p", p)
    n, f, b, x_min = setting.clients, setting.malicious, setting.trimmed, setting.majority
    flips = np.arange(setting.benign + 1)  # F
    likely = binom.pmf(flips, setting.benign, p)
    kept = setting.benign - flips  # X
    lifted = flips >= x_min - f
    if not setting.mask_covers:
        lifted |= (flips >= b + 1 - f) & (flips <= n - x_min)
    events = kept >= max(n - b, x_min), lifted, kept >= n - b, flips >= b + 1 - f
    benign, malicious, benign_trimmed, malicious_trimmed = (min(1.0, float(likely[event].sum())) for event in events)
    return Bounds(benign, malicious, benign_trimmed, malicious_trimmed)


def theorem10_printed(setting: Setting, p: float) -> Bounds:
    """The sums as Theorem 10 prints them; they are not probabilities and may exceed 1.

    p- = sum_{i = N - alpha N}^{N - N'} (1 - p)^i, p+ = sum_{i = (1 + tau) N/2 - N' + 1}^{N - N'} p^i, and of the trimmed mean
    alone the latter from i = alpha N - N' + 1 on. Bounds that are not whole are rounded up.

    Example:
        >>> theorem10_printed(Setting(20, 4, alpha=0.25, tau=0.5), 0.0).benign
        2.0
    """
    check_probability("p", p)
    n, f = setting.clients, setting.malicious

    def powers(base: float, first: float) -> float:
        return float(sum(base**i for i in range(math.ceil(first - GUARD), n - f + 1)))

    benign = powers(1 - p, n - setting.alpha * n)
    return Bounds(benign, powers(p, (1 + setting.tau) * n / 2 - f + 1), benign, powers(p, setting.alpha * n - f + 1))


# ---- Theorem 11 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How likely benign progress is, of one coordinate and of d.

    Attributes:
        corrected: P1, of one coordinate, with the number of neutral steps that are needed.
        printed: the same with the paper's inner bound.
        log10_all: log10 of P1^d, for independent coordinates; -inf where P1 is 0.
        union: 1 - d (1 - P1), at least 0: what holds for all coordinates together without independence.
    """

    corrected: float
    printed: float
    log10_all: float
    union: float


def theorem11(
    benign: float, malicious: float, *, rounds: int, distance: float, smallest: float, largest: float, coordinates: int = 1
) -> Progress:
    """The probability that a coordinate travels a distance in the benign direction within some rounds.

    In each round the coordinate steps in the benign direction with probability p-, against it with probability p+, else not.
    With i benign steps of at least `smallest`, tol(i) = floor((i smallest - distance) / largest) steps against it are
    tolerated, so that of the T - i others at least T - i - tol(i) must be neutral:

    P1 = sum_{i = ceil(distance / smallest)}^T Bin(i; T, p-) P[Bin(T - i, q) >= max(0, T - i - tol(i))],
    q = (1 - p- - p+) / (1 - p-).

    Args:
        benign: p-, in [0, 1].
        malicious: p+, in [0, 1]; cut off at 1 - p-, as the two bounds may add up to more.
        rounds: T, at least 1.
        distance: c, from the starting point to the minimum, more than 0.
        smallest: eta_-, the smallest step that is not zero, more than 0.
        largest: eta^-, the largest, at least `smallest`.
        coordinates: d, at least 1.

    Differs from the paper, whose inner sum begins at (i smallest - distance) / smallest: the excess of benign steps, where the
    number of neutral ones that are needed belongs. The two are close in the example below by accident.

    Example:
        >>> found = theorem11(0.6, 0.2, rounds=300, distance=1.0, smallest=0.01, largest=0.02)
        >>> round(found.corrected, 4), round(found.printed, 4)
        (0.0233, 0.0808)
    """
    benign, malicious = check_probability("benign", benign), check_probability("malicious", malicious)
    for name, value, least in (("rounds", rounds, 1), ("coordinates", coordinates, 1)):
        if value < least:
            raise ConfigurationError(f"{name} must be at least {least}, got {value}")
    if not (distance > 0 and smallest > 0 and largest >= smallest and math.isfinite(distance + largest)):
        raise ConfigurationError(
            f"distance and smallest must be more than 0 and largest at least smallest, got {distance}, {smallest} and {largest}"
        )
    neutral = 0.0 if benign == 1 else check_probability("neutral", max(0.0, min(1.0, (1 - benign - malicious) / (1 - benign))))
    steps = np.arange(rounds + 1)  # i
    others = rounds - steps
    tolerated = (steps * smallest - distance) / largest
    arrives = tolerated >= -GUARD
    log_steps = binom.logpmf(steps, rounds, benign)
    needed = np.maximum(0, others - np.floor(tolerated + GUARD))
    corrected, log_success = _arrival(log_steps, others, needed, neutral, arrives)
    excess = np.maximum(0, np.ceil((steps * smallest - distance) / smallest - GUARD))
    printed, _ = _arrival(log_steps, others, excess, neutral, arrives)
    return Progress(
        corrected=corrected,
        printed=printed,
        log10_all=coordinates * log_success / math.log(10) if log_success < 0 else 0.0,
        union=max(0.0, 1 + coordinates * math.expm1(log_success)),
    )


def _arrival(
    log_steps: np.ndarray, others: np.ndarray, needed: np.ndarray, neutral: float, arrives: np.ndarray
) -> tuple[float, float]:
    """P1 and log P1, with full precision near 0 and near 1.

    Args:
        log_steps: (T + 1,) log-probability of i benign steps.
        others: (T + 1,) T - i.
        needed: (T + 1,) how many of the others must be neutral.
        neutral: q.
        arrives: (T + 1,) bool, whether i benign steps are enough if all others are neutral.
    """
    with np.errstate(divide="ignore"):
        enough = np.where(arrives, binom.logsf(needed - 1, others, neutral), -np.inf)
        short = np.where(arrives, binom.logcdf(needed - 1, others, neutral), 0.0)
    success = min(0.0, float(logsumexp(log_steps + enough)))
    if success > math.log(0.5):  # then what is missing is the more precise
        success = float(np.log1p(-np.exp(min(0.0, float(logsumexp(log_steps + short))))))
    return math.exp(success), success


def backdoor_loss_bound(loss: float, flatness: float, radius: float, largest: float, coordinates: int) -> float:
    """max(0, L - gamma (delta + sqrt(d) eta^-)): how low the backdoor loss can be once the model is near the benign minimum.

    Args:
        loss: backdoor loss at the benign minimum, at least 0.
        flatness: gamma, the norm of the malicious gradient.
        radius: delta, how near the minimum.
        largest: eta^-, the largest step of a coordinate.
        coordinates: d.
    """
    return max(0.0, loss - flatness * (radius + math.sqrt(coordinates) * largest))


def check_probability(name: str, value: float) -> float:
    """The value; raise `ConfigurationError` unless it lies in [0, 1]. Next to nothing is taken as 0: SciPy overflows there."""
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{name} is a probability, which lies in [0, 1], got {value}")
    return value if value > NOTHING else 0.0
