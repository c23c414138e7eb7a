"""How long a backdoor lives after the last attack: the published definitions, from evaluations as a run has them.

Z. Zhang, A. Panda, L. Song, Y. Yang, M. Mahoney, P. Mittal, R. Kannan, J. Gonzalez, "Neurotoxin: Durable Backdoors in Federated
Learning", ICML 2022, https://arxiv.org/abs/2206.10341, where lifespan is the last round in which ASR is above a threshold.

Letters: A_l is the ASR l rounds after the last attacked one, so that A_0 is measured right after that round. A run evaluates
every so many rounds, so most A_l are not known: what falls between two evaluations is told by both of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

Curve = Sequence[tuple[int, float]]
"""(l, A_l) of the evaluations, by ascending l."""


@dataclass(frozen=True)
class Span:
    """A number of rounds after the last attack, as far as evaluations tell.

    Attributes:
        least: it is at least that many; the ASR was seen above the threshold then.
        most: it is at most that many; None where the ASR had not fallen by the last evaluation, which is right-censoring.
    """

    least: int
    most: int | None

    @property
    def censored(self) -> bool:
        return self.most is None

    def __str__(self) -> str:
        """
        >>> str(Span(5, 9)), str(Span(5, 5)), str(Span(80, None))
        ('5 to 9', '5', '>= 80')
        """
        if self.most is None:
            return f">= {self.least}"
        return str(self.least) if self.least == self.most else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Retention:
    """What is left of a backdoor K rounds after the last attack.

    Attributes:
        at: the last evaluation among those K rounds; K itself where there is one.
        asr: A_l there.
        share: of the ASR at the end of the attack; None where that was 0.
        mean: of all A_l from 1 to K that were measured.
    """

    at: int
    asr: float
    share: float | None
    mean: float


@dataclass(frozen=True)
class Lifespan:
    """What became of a backdoor after the last attack. Rounds are those done, as in `metrics.jsonl`.

    Attributes:
        state: `measured`; `not injected`: ASR was not above kappa at the end of the attack, so that it lived for 0 rounds;
            `unknown`: there is no evaluation after the attack; `no attack`: nobody attacked.
        kappa: the threshold.
        attack_over: rounds done right after the last attack, from which l counts.
        asr_end: A_0; where that was not measured, the larger one of the evaluations before and after it, as ASR rises while it
            is attacked and falls afterwards.
        asr_end_round: where that is from.
        last_evaluation: l of the last evaluation: no lifespan can be seen to be longer.
        resolution: the most rounds between two evaluations, from the end of the attack on.
        first_fall: rounds before ASR first fell to kappa or below.
        last_above: the last round with ASR above kappa.
        half: as `first_fall`, for half of `asr_end` in place of kappa.
        clean: likewise, for `margin` above the ASR without attack; None where that is not known.
        clean_asr: the ASR without attack.
        clean_asr_round: the evaluation that it is from; None where it was given, or is not known.
        margin: see `clean`.
        excess: whether `asr_end`, kappa, half, retention and mean are of what ASR has beyond `clean_asr`.
        retention: by K, as far as the run goes.
        mean: of all A_l from 1 on that were measured.
    """

    state: Literal["measured", "not injected", "unknown", "no attack"]
    kappa: float
    attack_over: int | None = None
    asr_end: float | None = None
    asr_end_round: int | None = None
    last_evaluation: int | None = None
    resolution: int | None = None
    first_fall: Span | None = None
    last_above: Span | None = None
    half: Span | None = None
    clean: Span | None = None
    clean_asr: float | None = None
    clean_asr_round: int | None = None
    margin: float | None = None
    excess: bool = False
    retention: Mapping[int, Retention] | None = None
    mean: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in `run.json`; spans with `censored` beside their bounds."""
        found = asdict(self)
        for name in SPANS:
            span = getattr(self, name)
            if span is not None:
                found[name] |= {"censored": span.censored}
        found["retention"] = {str(k): kept for k, kept in (found["retention"] or {}).items()}
        return found


SPANS = ("first_fall", "last_above", "half", "clean")
"""The lifespans by their four definitions."""


# ---- the definitions -------------------------------------------------------------------------------------------------


def first_fall(after: Curve, threshold: float) -> Span:
    """Rounds before the first fall: min { l >= 1 : A_l <= threshold } - 1, for an ASR that was above it at l = 0.

    Args:
        after: the evaluations; those with l < 1 are not looked at.
        threshold: kappa, for example.

    Returns:
        Between the last evaluation before that fall and the one that shows it. A fall and rise between two evaluations that
        are both above is not seen.

    Example:
        >>> first_fall([(5, 0.9), (10, 0.4), (15, 0.6)], 0.5)
        Span(least=5, most=9)
    """
    seen = 0
    for age, asr in after:
        if age >= 1 and asr <= threshold:
            return Span(seen, age - 1)
        seen = max(seen, age)
    return Span(seen, None)


def last_above(after: Curve, threshold: float) -> Span:
    """The last round above: max { l >= 0 : A_l > threshold }, for an ASR that was above it at l = 0.

    Returns:
        Between the last evaluation above and the next one. An ASR that rises again after the last evaluation is not seen.

    Example:
        >>> last_above([(5, 0.9), (10, 0.4), (15, 0.6)], 0.5), last_above([(5, 0.9), (10, 0.4)], 0.5)
        (Span(least=15, most=None), Span(least=5, most=9))
    """
    last = max((age for age, asr in after if age >= 0 and asr > threshold), default=0)
    return Span(last, next((age - 1 for age, _ in after if age > last), None))


def retention(after: Curve, asr_end: float, rounds: int) -> Retention | None:
    """What is left K rounds after the last attack, A_K / A_0, and the mean over these rounds.

    Args:
        after: the evaluations; those with l < 1 are not looked at.
        asr_end: A_0.
        rounds: K.

    Returns:
        None where the run ends before K, or has no evaluation up to K.

    Example:
        >>> retention([(5, 0.75), (10, 0.25)], 1.0, 8)
        Retention(at=5, asr=0.75, share=0.75, mean=0.75)
    """
    within = [(age, asr) for age, asr in after if 1 <= age <= rounds]
    if not within or after[-1][0] < rounds:
        return None
    at, asr = within[-1]
    return Retention(at, asr, asr / asr_end if asr_end else None, sum(a for _, a in within) / len(within))


def lifespan(
    evaluations: Iterable[Mapping[str, Any]],
    first_attack: int | None,
    last_attack: int | None,
    *,
    kappa: float = 0.5,
    horizons: Sequence[int] = (100, 200, 400),
    clean_asr: float | None = None,
    margin: float = 0.1,
    excess: bool = False,
) -> Lifespan:
    """All of them, from a run's evaluations.

    Args:
        evaluations: entries with `round`, the rounds done, and `asr`; without it, or with one that is not finite, nothing was
            measured there.
        first_attack: the first attacked round, counted from 0; None without an attack.
        last_attack: the last one.
        kappa: the threshold of `first_fall` and `last_above`.
        horizons: the K of `retention`.
        clean_asr: the ASR without attack; None takes the last evaluation before the first attacked round.
        margin: what ASR may have beyond that to count as gone.
        excess: whether to take A_l less the ASR without attack in place of A_l, for tasks whose clean models have an ASR that
            is not near 0; `unknown` where that ASR is not known.

    Example:
        >>> curve = [{"round": t, "asr": asr} for t, asr in ((10, 0.0), (20, 0.9), (30, 0.6), (40, 0.2))]
        >>> found = lifespan(curve, first_attack=10, last_attack=19, horizons=[20])
        >>> str(found.first_fall), found.clean_asr, found.retention[20].asr
        ('10 to 19', 0.0, 0.2)
    """
    if first_attack is None or last_attack is None:
        return Lifespan("no attack", kappa)
    known = {int(entry["round"]): entry.get("asr") for entry in evaluations}
    rounds = sorted((t, float(asr)) for t, asr in known.items() if asr is not None and math.isfinite(asr))
    over = last_attack + 1
    before = [(t, asr) for t, asr in rounds if t <= first_attack]
    clean_round = before[-1][0] if before and clean_asr is None else None
    clean_asr = before[-1][1] if before and clean_asr is None else clean_asr
    if not any(t >= over for t, _ in rounds) or (excess and clean_asr is None):
        return Lifespan("unknown", kappa, attack_over=over, excess=excess)
    base = clean_asr if excess and clean_asr is not None else 0.0
    rounds = [(t, asr - base) for t, asr in rounds]
    after = [(t - over, asr) for t, asr in rounds if t >= over]
    during = [(t - over, asr) for t, asr in rounds if first_attack < t < over]
    ends = after[:1] if after[0][0] == 0 else [*during[-1:], after[0]]
    at, asr_end = max(ends, key=lambda end: end[1])
    ages = [0, *(age for age, _ in after)]
    later = [asr for age, asr in after if age >= 1]

    def fell(threshold: float) -> Span:
        return first_fall(after, threshold) if asr_end > threshold else Span(0, 0)

    return Lifespan(
        state="measured" if asr_end > kappa else "not injected",
        kappa=kappa,
        attack_over=over,
        asr_end=asr_end,
        asr_end_round=at + over,
        last_evaluation=after[-1][0],
        resolution=max((b - a for a, b in pairwise(ages))),
        first_fall=fell(kappa),
        last_above=last_above(after, kappa) if asr_end > kappa else Span(0, 0),
        half=fell(asr_end / 2),
        clean=None if clean_asr is None else fell(clean_asr - base + margin),
        clean_asr=clean_asr,
        clean_asr_round=clean_round,
        margin=margin,
        excess=excess,
        retention={k: kept for k in horizons if (kept := retention(after, asr_end, k)) is not None},
        mean=sum(later) / len(later) if later else None,
    )


# ---- in words and numbers --------------------------------------------------------------------------------------------


def span_text(span: Mapping[str, Any] | None) -> str:
    """A span of `Lifespan.as_json`, a dash where there is none.

    >>> span_text({"least": 5, "most": 9, "censored": False}), span_text(None)
    ('5 to 9', '-')
    """
    return "-" if span is None else str(Span(span["least"], span["most"]))


def in_words(found: Mapping[str, Any]) -> str:
    """What `Lifespan.as_json` gives, in a few lines for a reader."""
    if found["state"] == "no attack":
        return "Lifespan of the backdoor: nobody attacked."
    if found["state"] == "unknown":
        counted = ", or none without attack, which its excess is counted from" if found.get("excess") else ""
        return f"Lifespan of the backdoor: unknown, as no ASR was measured from round {found['attack_over']} on{counted}."
    kappa, clean = found["kappa"], found["clean_asr"]
    what = "ASR beyond that without attack," if found.get("excess") else "ASR"
    end = f"{what} {found['asr_end']:.4f} (after {found['asr_end_round']} rounds) at the end of the attack"
    if found["state"] == "not injected":
        lines = [f"Lifespan of the backdoor: 0 rounds, as it was not injected: {end} is not above {kappa:g}."]
    else:
        lines = [
            f"Lifespan of the backdoor, of {end}: {span_text(found['first_fall'])} rounds to the first fall to {kappa:g}, "
            f"{span_text(found['last_above'])} to the last ASR above it."
        ]
    known = "which is not known" if clean is None else f"{clean:.4f}"
    lines.append(
        f"To half of it: {span_text(found['half'])}. To {found['margin']:g} above the ASR without attack, {known}: "
        f"{span_text(found['clean'])}. ASR was measured every {found['resolution']} rounds or more "
        f"often, up to {found['last_evaluation']} rounds after it."
    )
    kept = [f"{entry['share']:.0%} after {k} rounds" for k, entry in found["retention"].items() if entry["share"] is not None]
    return "\n".join([*lines, *([f"Left of it: {', '.join(kept)}."] if kept else [])])


def columns(found: Mapping[str, Any]) -> dict[str, float]:
    """What `Lifespan.as_json` gives as numbers by name, NaN for none: bounds of spans, `_most` NaN where one is censored."""
    numbers: dict[str, Any] = {"lifespan_asr_end": found["asr_end"]}
    for name in SPANS:
        span = found[name] or {"least": None, "most": None}
        numbers |= {f"lifespan_{name}": span["least"], f"lifespan_{name}_most": span["most"]}
    numbers |= {f"lifespan_retention_{k}": kept["share"] for k, kept in (found["retention"] or {}).items()}
    numbers["lifespan_mean"] = found["mean"]
    return {name: math.nan if value is None else float(value) for name, value in numbers.items()}
