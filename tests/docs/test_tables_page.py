"""The tables of measured results are what their CSV files say."""

import pytest
from results_pages import RESULTS, script

PAGE = script("tables_page")


@pytest.mark.parametrize("page", PAGE["PAGES"])
def test_every_table_is_what_its_file_says(page: str) -> None:
    text = (RESULTS / page).read_text()
    for file, blocks in PAGE["PAGES"][page].items():
        assert PAGE["blocks"].names(text, file) == list(blocks)
    assert PAGE["written"](page) == text, "write it anew: python docs/results/tables_page.py"


def test_a_row_of_the_papers_table_has_its_values_and_what_lies_between() -> None:
    rows = {row["row"]: row for row in PAGE["rows_of"]("phishing", "1")}
    assert set(rows) == set(PAGE["published"]("phishing", "1"))
    line = next(line for line in PAGE["phishing"]("1", "rule").splitlines() if line.startswith("| Trimmed-Mean"))
    assert "| .999 / .999 | +.000 / -.960 | +.954 | 96.2% |" in line


def test_a_file_without_a_block_of_a_page_changes_nothing() -> None:
    text = "<!-- from a.csv: one -->\nold\n<!-- end --> <!-- from b.csv: one -->\nkept\n<!-- end -->"
    told = PAGE["blocks"].written(text, "a.csv", {"one": lambda: "new"})
    assert told == "<!-- from a.csv: one -->\n\nnew\n\n<!-- end --> <!-- from b.csv: one -->\nkept\n<!-- end -->"
