import pytest

from fl_lightning.errors import FEW_LETTERS, ConfigurationError, cause, enumerated, first_line, nearest

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


def test_a_list_of_names_ends():
    text = enumerated(f"name_{i}" for i in range(1000))
    assert len(text) <= FEW_LETTERS + len(" and 1000 more")
    assert text.startswith("name_0, name_1, ")
    assert text.endswith(" more")
    assert enumerated(["a", "b"]) == "a, b"
    assert enumerated(["x" * 5000, "b"]) == "x" * FEW_LETTERS + "... and 1 more"
    assert enumerated([]) == ""


def test_of_very_many_names_those_that_are_most_alike_are_offered():
    columns = [f"feature_{i:04}" for i in range(5000)]
    assert nearest("fdatum", columns).startswith("known: feature_00")
    assert len(nearest("zzz", columns)) < 2 * FEW_LETTERS
