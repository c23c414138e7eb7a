"""The page about performance is what the raw lines say, and fits one screen."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_lines_say() -> None:
    code = "from benchmarks.report import page; print(page(), end='')"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "performance.md").read_text() == said, "write it anew: python -m benchmarks.report"


def test_it_has_one_picture_and_one_table_of_at_most_fifteen_rows() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert page.count("![") == 1
    assert 5 < sum(line.startswith("|") for line in page.splitlines()) - 2 <= 15
