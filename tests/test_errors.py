import pytest

from fl_lightning.errors import ConfigurationError, cause, first_line, nearest

NAMES = ["Invariant", "Median", "TrimmedMean", "tau", "alpha"]


@pytest.mark.parametrize(
    ("name", "expected"), [("Invarient", "Invariant"), ("median", "Median"), ("tua", "tau"), ("trimedMean", "TrimmedMean")]
)
def test_a_misspelt_name_is_recognised(name, expected):
    assert nearest(name, NAMES) == f"did you mean {expected}?"


def test_equally_close_names_are_all_offered_and_far_ones_are_not():
    assert nearest("client", ["clients", "clienty", "lint"]) == "did you mean clients or clienty?"


def test_without_a_close_name_all_are_listed():
    assert nearest("xyz", NAMES) == "known: Invariant, Median, TrimmedMean, alpha, tau"
    assert nearest("xyz", []) == "known: "


@pytest.mark.parametrize("said", ["", "  \n"])
def test_what_says_nothing_is_told_by_its_kind(said):
    assert first_line(AssertionError(said)) == cause(AssertionError(said)) == "AssertionError"
    assert cause(ConfigurationError(said), ConfigurationError) == "ConfigurationError"


def test_mistakes_can_be_caught_as_value_errors():
    assert issubclass(ConfigurationError, ValueError)
