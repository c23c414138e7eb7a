"""The page for a reader of the paper is what the tables of results say, and verdicts are judged as it says."""

from typing import Any

import pytest
from results_pages import RESULTS, script

PAGE = script("paper_page")
CLAIMS = PAGE["claims"]


def test_the_page_and_its_picture_are_what_the_tables_say() -> None:
    text = (RESULTS / "index.md").read_text()
    assert set(PAGE["blocks"].names(text, "all tables")) == set(PAGE["BLOCKS"])
    assert PAGE["written"]() == text, "write it anew: python docs/results/paper_page.py"
    assert f"]({PAGE['PICTURE']})" in text
    assert (RESULTS / PAGE["PICTURE"]).is_file()


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([], "not yet measured"),
        ([True], "agrees"),
        ([True, True], "agrees"),
        ([True, False], "partly"),
        ([False, True], "contradicts"),
        ([False, False], "contradicts"),
    ],
)
def test_a_verdict_follows_from_the_point_and_the_rest(checks: list[bool], verdict: str) -> None:
    assert CLAIMS.Result("Table 1", "", "", "", checks).verdict == verdict


def test_every_claim_of_the_paper_has_a_row_and_every_row_a_page_that_there_is() -> None:
    found = CLAIMS.results()
    assert list(dict.fromkeys(row.item for row in found)) == list(CLAIMS.CLAIMS)
    assert all((RESULTS / row.page).is_file() for row in found if row.page)


def made(**asr: float) -> Any:
    """Table 1 of a task whose runs ended like this, by rule; Acc is the same for all."""
    rows = {name: {"asr_last10": value, "acc_last10": 0.6, "n": 3} for name, value in asr.items()}
    return CLAIMS.table1(rows, "made", "cifar10", "phishing.md")


def test_table_1_is_judged_by_the_rules_that_the_paper_has_above_the_invariant_aggregator() -> None:
    assert made(FedAvg=0.7, RFA=0.8, Invariant=0.05).verdict == "agrees"
    assert made(FedAvg=0.7, RFA=0.8, Invariant=0.5).verdict == "partly"
    assert made(FedAvg=0.7, RFA=0.02, Invariant=0.05).verdict == "contradicts"
    assert made(FedAvg=0.7, RFA=0.04, Invariant=0.05).verdict == "partly"  # too near to tell
    found = made(FedAvg=0.7, **{"Sign-SGD": 0.0}, Invariant=0.05)  # at which the paper has .000 as well
    assert found.verdict == "agrees"
    assert "of 1 rules that the paper has above it 0 lie below, 0 even" in found.found
    assert made(Invariant=0.5).verdict == "contradicts"  # no other rule was run
