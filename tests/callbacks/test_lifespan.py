"""Lifespans by their definitions, against slow oracles and vectors worked out by hand."""

import math

import numpy as np
import pytest

from fl_lightning.callbacks.lifespan import Span, columns, first_fall, in_words, last_above, lifespan, retention

WORKED = (0.9, 0.8, 0.6, 0.55, 0.45, 0.52, 0.3, 0.2)
"""ASR 1 to 8 rounds after the last attack; by hand: 4 rounds before the first fall to .5, the last above it at 6, mean .54."""


def curve(values, first=1):
    return list(enumerate(values, first))


def evaluations(values: dict[int, float | None]):
    return [{"round": t, "asr": asr} for t, asr in values.items()]


def test_the_definitions_as_worked_out_by_hand():
    after = curve(WORKED)
    assert first_fall(after, 0.5) == Span(4, 4)
    assert last_above(after, 0.5) == Span(6, 6)
    kept = retention(after, 1.0, 8)
    assert kept is not None
    assert (kept.at, kept.asr, kept.share) == (8, 0.2, 0.2)
    assert kept.mean == pytest.approx(0.54, abs=1e-12)
    assert retention(after, 0.8, 4).share == pytest.approx(0.55 / 0.8)  # type: ignore[union-attr]
    assert retention(after, 1.0, 9) is None  # the run does not go so far
    assert retention(after, 0.0, 8).share is None  # type: ignore[union-attr]


def oracle(asr: np.ndarray, kappa: float) -> tuple[float, float]:
    """First fall and last above of A_0 > kappa, A_1, ... as the formulas have them; infinity where it never falls."""
    fallen = [t for t in range(1, len(asr)) if asr[t] <= kappa]
    above = max(t for t in range(len(asr)) if asr[t] > kappa)
    return (fallen[0] - 1 if fallen else math.inf), (above if above < len(asr) - 1 else math.inf)


@pytest.mark.parametrize("seed", range(30))
def test_where_every_round_is_evaluated_the_bounds_are_the_definition(seed):
    draws = np.random.default_rng(seed)
    asr = np.concatenate([[0.9], draws.random(draws.integers(1, 12))])
    after, expected = curve(asr.tolist(), 0), oracle(asr, 0.5)
    for found, value in zip((first_fall(after, 0.5), last_above(after, 0.5)), expected, strict=True):
        assert found == (Span(len(asr) - 1, None) if value == math.inf else Span(int(value), int(value)))


@pytest.mark.parametrize("seed", range(60))
def test_where_rounds_are_left_out_the_definition_lies_within_the_bounds(seed):
    """Of any curve as far as one side goes; of one that only falls on both."""
    draws = np.random.default_rng(seed)
    asr = np.concatenate([[0.95], draws.random(20) * 0.95])
    if seed % 2:
        asr = np.sort(asr)[::-1]
    every = draws.integers(2, 6)
    kept = [t for t in range(draws.integers(0, every), len(asr), every) if draws.random() > 0.2]
    after = [(t, float(asr[t])) for t in kept]
    fall, above = first_fall(after, 0.5), last_above(after, 0.5)
    true_fall, true_above = oracle(asr, 0.5)
    if fall.most is not None:
        assert true_fall <= fall.most
    assert true_above >= above.least
    if seed % 2:
        assert fall == above
        assert fall.least <= true_fall <= (math.inf if fall.most is None else fall.most)
    for t, value in after:  # nothing is claimed that an evaluation contradicts
        assert value > 0.5 or above.most is None or t > above.least or t < above.least
        assert not (value <= 0.5 and 1 <= t <= fall.least)
        assert not (value > 0.5 and t > above.least)


HOSTILE: dict[str, tuple[dict[int, float | None], str, Span | None, Span | None]] = {
    "always above": ({10: 0.9, 20: 0.8, 30: 0.7}, "measured", Span(20, None), Span(20, None)),
    "never above": ({10: 0.4, 20: 0.1, 30: 0.0}, "not injected", Span(0, 0), Span(0, 0)),
    "above again, though it was not injected": ({10: 0.4, 20: 0.9, 30: 0.0}, "not injected", Span(0, 0), Span(0, 0)),
    "just at the threshold": ({10: 0.5, 20: 0.5}, "not injected", Span(0, 0), Span(0, 0)),
    "NaN": ({10: 0.9, 20: math.nan, 30: 0.2}, "measured", Span(0, 19), Span(0, 19)),
    "null": ({10: 0.9, 20: None, 30: 0.2}, "measured", Span(0, 19), Span(0, 19)),
    "infinite": ({10: 0.9, 20: math.inf, 30: 0.2}, "measured", Span(0, 19), Span(0, 19)),
    "NaN at the end": ({8: 0.9, 10: math.nan, 12: 0.2}, "measured", Span(0, 1), Span(0, 1)),
    "nothing at the end, but before": ({8: 0.9, 14: 0.2}, "measured", Span(0, 3), Span(0, 3)),
    "nothing at the end, higher afterwards": ({6: 0.3, 14: 0.7, 20: 0.1}, "measured", Span(4, 9), Span(4, 9)),
    "nothing at the end, nothing before": ({14: 0.7, 20: 0.1}, "measured", Span(4, 9), Span(4, 9)),
    "one evaluation, at the end": ({10: 0.9}, "measured", Span(0, None), Span(0, None)),
    "before the attack alone": ({3: 0.9}, "unknown", None, None),
    "none": ({}, "unknown", None, None),
    "above again": ({10: 0.9, 11: 0.4, 12: 0.6, 13: 0.4}, "measured", Span(0, 0), Span(2, 2)),
    "above again in the end": ({10: 0.9, 11: 0.4, 12: 0.6}, "measured", Span(0, 0), Span(2, None)),
    "out of order": ({12: 0.1, 10: 0.9, 11: 0.8}, "measured", Span(1, 1), Span(1, 1)),
}
"""ASR by rounds done, of an attack in rounds 5 to 9; state, first fall and last above at kappa .5."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_evaluations(name):
    values, state, fall, above = HOSTILE[name]
    found = lifespan(evaluations(values), 5, 9)
    assert (found.state, found.first_fall, found.last_above) == (state, fall, above)
    plain = found.as_json()
    assert in_words(plain)
    assert all(isinstance(value, float) for value in columns(plain).values())


def test_the_ends_that_others_are_measured_against():
    found = lifespan(
        evaluations({3: 0.02, 5: 0.04, 7: 0.6, 10: 0.8, 15: 0.45, 20: 0.4, 25: 0.14, 31: 0.1}), 5, 9, horizons=(4, 15, 40)
    )
    assert (found.attack_over, found.asr_end, found.asr_end_round) == (10, 0.8, 10)
    assert (found.clean_asr, found.clean_asr_round) == (0.04, 5)  # after 5 rounds, none of them attacked
    assert (found.last_evaluation, found.resolution) == (21, 6)
    assert found.half == Span(5, 9)  # .4 is half of .8, and so below
    assert found.clean == Span(10, 14)  # .04 + .1
    assert found.retention is not None
    assert list(found.retention) == [15]  # nothing within 4 rounds, and 40 are not reached
    assert found.retention[15].share == pytest.approx(0.14 / 0.8)
    assert found.retention[15].mean == pytest.approx((0.45 + 0.4 + 0.14) / 3)
    assert found.mean == pytest.approx((0.45 + 0.4 + 0.14 + 0.1) / 4)


def test_an_asr_without_attack_is_given_or_not_known():
    values = evaluations({7: 0.6, 10: 0.8, 15: 0.3, 20: 0.2})
    unknown = lifespan(values, 5, 9)
    assert (unknown.clean, unknown.clean_asr) == (None, None)
    assert "which is not known" in in_words(unknown.as_json())
    given = lifespan(values, 5, 9, clean_asr=0.15)
    assert (given.clean, given.clean_asr, given.clean_asr_round) == (Span(5, 9), 0.15, None)
    assert lifespan(values, 5, 9, clean_asr=0.8).clean == Span(0, 0)


def test_the_excess_is_what_asr_has_beyond_that_without_attack():
    values: dict[int, float | None] = {4: 0.1, 7: 0.6, 10: 0.8, 15: 0.58, 20: 0.3}
    found = lifespan(evaluations(values), 5, 9, horizons=[10], excess=True)
    less: dict[int, float | None] = {7: 0.5, 10: 0.7, 15: 0.48, 20: 0.2}
    alike = lifespan(evaluations(less), 5, 9, horizons=[10], clean_asr=0.0)
    assert (found.first_fall, found.last_above, found.half) == (Span(0, 4), Span(0, 4), Span(5, 9))
    assert (alike.first_fall, alike.last_above, alike.half) == (found.first_fall, found.last_above, found.half)
    assert found.clean == alike.clean == lifespan(evaluations(values), 5, 9).clean
    assert found.asr_end == pytest.approx(0.7)
    assert found.as_json()["retention"]["10"]["share"] == pytest.approx(0.2 / 0.7)
    assert found.mean == pytest.approx(alike.mean)
    assert (found.clean_asr, found.clean_asr_round, found.excess) == (0.1, 4, True)
    assert "of ASR beyond that without attack, 0.7000" in in_words(found.as_json())


def test_no_excess_is_told_where_the_asr_without_attack_is_not_known():
    found = lifespan(evaluations({7: 0.6, 10: 0.8}), 5, 9, excess=True)
    assert found.state == "unknown"
    assert "or none without attack" in in_words(found.as_json())
    assert lifespan(evaluations({7: 0.6, 10: 0.8}), 5, 9, excess=True, clean_asr=0.5).state == "not injected"


def test_of_no_attack_and_in_words():
    assert lifespan(evaluations({1: 0.9}), None, None).state == "no attack"
    text = in_words(lifespan(evaluations({10: 0.9, 15: 0.8, 20: 0.4, 25: 0.6}), 5, 9, horizons=[5]).as_json())
    assert "5 to 9 rounds to the first fall to 0.5, >= 15 to the last ASR above it" in text
    assert "89% after 5 rounds" in text


def test_as_plain_data_and_as_numbers():
    plain = lifespan(evaluations({10: 0.9, 15: 0.8, 20: 0.4, 25: 0.6}), 5, 9, horizons=[5, 99]).as_json()
    assert plain["first_fall"] == {"least": 5, "most": 9, "censored": False}
    assert plain["last_above"] == {"least": 15, "most": None, "censored": True}
    assert list(plain["retention"]) == ["5"]
    numbers = columns(plain)
    assert (numbers["lifespan_first_fall"], numbers["lifespan_first_fall_most"], numbers["lifespan_last_above"]) == (5, 9, 15)
    assert math.isnan(numbers["lifespan_last_above_most"])
    assert math.isnan(numbers["lifespan_clean"])
