import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_lightning import ConfigurationError
from fl_lightning.analysis.theory import Setting, backdoor_loss_bound, figure3, theorem10, theorem10_printed, theorem11

# ---- Figure 3 ----------------------------------------------------------------------------------------------------------


def test_figure3_is_its_closed_form():
    found = figure3(np.arange(0, np.pi, 1e-3))
    np.testing.assert_allclose(found.maximised, 0.5 - 1.5 * np.cos(found.theta), atol=1e-6, rtol=0)
    np.testing.assert_allclose(found.closed_form, found.maximised, atol=1e-6, rtol=0)


def test_figure3_at_the_values_of_the_paper():
    found = figure3(np.array([0.0, 0.4 * np.pi, np.pi / 2]))
    np.testing.assert_allclose(found.maximised, [-1.0, 0.0365, 0.5], atol=1e-4)
    assert found.root / math.pi == pytest.approx(0.39183, abs=1e-5)


# ---- Theorem 10 --------------------------------------------------------------------------------------------------------

THEOREM = Setting(20, 4, alpha=0.2, tau=0.6, inclusive=True)
INCLUSIVE = Setting(20, 4, alpha=0.25, tau=0.5, inclusive=True)
STRICT = Setting(20, 4, alpha=0.25, tau=0.5)
CIFAR = Setting(20, 4, alpha=0.25, tau=0.2)
TWITTER = Setting(15, 2, alpha=0.25, tau=0.6)
PHISHING = Setting(20, 4, alpha=0.25, tau=0.6)


@pytest.mark.parametrize(
    ("setting", "x_min", "b", "p", "benign", "malicious", "trimmed"),
    [
        (THEOREM, 16, 4, 0.1, 0.1853, 1.24e-9, 0.8147),
        (THEOREM, 16, 4, 0.3, 0.00332, 2.66e-4, 0.9967),
        (INCLUSIVE, 15, 5, 0.1, 0.5147, 2.70e-8, 0.4853),
        (INCLUSIVE, 15, 5, 0.3, 0.0261, 1.57e-3, 0.9739),
        (STRICT, 16, 5, 0.1, 0.1853, 1.24e-9, 0.4853),
        (CIFAR, 13, 5, 0.1, 0.5147, 0.4852, 0.4853),
        (CIFAR, 13, 5, 0.3, 0.0261, 0.9252, 0.9739),
        (TWITTER, 13, 4, 0.1, 0.2542, 6.4e-10, 0.1339),
        (PHISHING, 17, 5, 0.1, 0.0, 4.2e-11, 0.4853),
    ],
)
def test_theorem10_by_table(setting, x_min, b, p, benign, malicious, trimmed):
    """To the digits that were worked out by hand, four in most rows."""
    assert (setting.majority, setting.trimmed) == (x_min, b)
    found = theorem10(setting, p)
    assert found.benign == pytest.approx(benign, abs=5e-5)
    assert found.malicious == pytest.approx(malicious, rel=6e-3 if malicious < 0.01 else 1.1e-4)
    assert found.malicious_trimmed == pytest.approx(trimmed, abs=5e-5)


def test_theorem10_outside_its_regime_counts_what_is_added():
    inside = {p: math.fsum(math.comb(16, f) * p**f * (1 - p) ** (16 - f) for f in range(9, 17)) for p in (0.1, 0.3)}
    assert inside[0.1] == pytest.approx(5.9e-6, rel=1e-2)
    assert inside[0.3] == pytest.approx(0.0257, abs=5e-5)
    for p, without in inside.items():
        assert theorem10(CIFAR, p).malicious > without


def test_which_settings_lie_in_the_regime():
    settings = (THEOREM, INCLUSIVE, STRICT, CIFAR, TWITTER, PHISHING)
    assert [s.in_regime for s in settings] == [True, True, True, False, True, True]
    assert [s.survives_veto for s in settings] == [True, True, True, True, True, False]
    assert not Setting(20, 6, alpha=0.25, tau=0.5).trimming_covers


def test_theorem10_as_printed_is_no_probability():
    assert theorem10_printed(STRICT, 0.0).benign == 2.0
    # With alpha = N'/N the sum has one term, and agrees.
    assert theorem10_printed(THEOREM, 0.1).benign == pytest.approx(theorem10(THEOREM, 0.1).benign)
    assert theorem10_printed(THEOREM, 0.5).malicious == pytest.approx(0.5**13 + 0.5**14 + 0.5**15 + 0.5**16)


@given(st.integers(3, 40), st.floats(0, 0.4), st.floats(0, 0.99), st.booleans(), st.floats(0, 1), st.floats(0, 1), st.data())
def test_laws_of_theorem10(n, alpha, tau, inclusive, p, q, data):
    if n - 2 * math.ceil(alpha * n - 1e-9) < 1:
        return
    setting = Setting(n, data.draw(st.integers(0, n - 1)), alpha, tau, inclusive)
    low, high = theorem10(setting, min(p, q)), theorem10(setting, max(p, q))
    slack = 1e-9
    assert low.benign >= high.benign - slack  # falls with p
    assert low.malicious_trimmed <= high.malicious_trimmed + slack
    if setting.mask_covers:
        assert low.malicious <= high.malicious + slack
    for bounds in (low, high):
        assert bounds.benign <= bounds.benign_trimmed + slack  # a mask can only hold back
        assert bounds.malicious <= bounds.malicious_trimmed + slack
        assert 0 <= bounds.benign <= 1
        assert 0 <= bounds.malicious <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clients": 0}, "clients must be at least 1"),
        ({"malicious": 20}, "malicious must be from 0 to 19"),
        ({"alpha": 0.5}, "alpha must lie in"),
        ({"alpha": 0.49}, "leaves 0"),
        ({"tau": 1.0}, "masks every coordinate"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ConfigurationError, match=message):
        Setting(**({"clients": 20, "malicious": 4, "alpha": 0.25, "tau": 0.2} | change))


def test_next_to_nothing_is_a_probability():
    assert theorem10(CIFAR, 1e-310) == theorem10(CIFAR, 0.0)
    assert theorem11(1e-310, 0.0, **EXAMPLE).corrected == 0.0


def test_a_probability_lies_between_0_and_1():
    with pytest.raises(ConfigurationError, match="p is a probability"):
        theorem10(CIFAR, 1.5)


# ---- Theorem 11 --------------------------------------------------------------------------------------------------------

EXAMPLE: dict[str, Any] = {"rounds": 300, "distance": 1.0, "smallest": 0.01, "largest": 0.02}


def test_theorem11_example():
    found = theorem11(0.6, 0.2, **EXAMPLE, coordinates=3)
    assert found.corrected == pytest.approx(0.0233, abs=5e-5)
    assert found.printed == pytest.approx(0.0808, abs=5e-5)
    assert found.log10_all == pytest.approx(3 * math.log10(found.corrected))
    assert found.union == 0.0


@pytest.mark.parametrize(("benign", "malicious"), [(0.6, 0.1), (0.7, 0.2), (0.5, 0.0)])
def test_theorem11_against_a_random_walk(benign, malicious):
    """Steps of one size: the walk arrives if and only if benign minus malicious steps reach the distance."""
    draws = np.random.default_rng(0).random((40_000, 30))
    walks = (draws < benign).sum(1) - ((draws >= benign) & (draws < benign + malicious)).sum(1)
    seen = (walks >= 12).mean()
    found = theorem11(benign, malicious, rounds=30, distance=12.0, smallest=1.0, largest=1.0).corrected
    assert found == pytest.approx(seen, abs=4 * math.sqrt(seen * (1 - seen) / len(draws)))


def test_theorem11_at_many_coordinates():
    sure = theorem11(1.0, 0.0, **EXAMPLE, coordinates=10**7)
    assert (sure.corrected, sure.log10_all, sure.union) == (1.0, 0.0, 1.0)
    never = theorem11(0.0, 0.5, **EXAMPLE, coordinates=10**7)
    assert (never.corrected, never.union) == (0.0, 0.0)
    assert never.log10_all == -math.inf
    # Near 1 the product of ten million ones keeps its precision: what is missing is 10,000 times the rounding of 1.
    near = theorem11(0.5, 0.0, rounds=100, distance=20.0, smallest=1.0, largest=1.0, coordinates=10**7)
    missing = math.fsum(math.comb(100, i) for i in range(20)) / 2**100
    assert 1e-12 < missing < 1e-9
    assert near.log10_all == pytest.approx(10**7 * math.log10(math.e) * -missing, rel=1e-6)
    assert 1 - near.union == pytest.approx(10**7 * missing, rel=1e-3)


@given(st.floats(0.01, 0.6), st.floats(0, 0.3), st.integers(1, 60))
def test_theorem11_falls_with_malicious_steps(benign, malicious, rounds):
    given_ = {"rounds": rounds, "distance": 3.0, "smallest": 1.0, "largest": 2.0}
    assert theorem11(benign, malicious, **given_).corrected >= theorem11(benign, malicious + 0.1, **given_).corrected - 1e-9


def test_theorem11_refuses_steps_that_go_nowhere():
    changes: list[dict[str, Any]] = [{"smallest": 0.0}, {"largest": 0.001}, {"distance": -1.0}, {"distance": math.inf}]
    for change in changes:
        with pytest.raises(ConfigurationError, match="smallest must be more than 0"):
            theorem11(0.6, 0.2, **(EXAMPLE | change))
    with pytest.raises(ConfigurationError, match="rounds must be at least 1"):
        theorem11(0.6, 0.2, **(EXAMPLE | {"rounds": 0}))


def test_backdoor_loss_bound():
    assert backdoor_loss_bound(5.0, flatness=2.0, radius=0.5, largest=0.1, coordinates=100) == pytest.approx(2.0)
    assert backdoor_loss_bound(5.0, flatness=9.0, radius=0.5, largest=0.1, coordinates=100) == 0.0
