"""The reference has every class, with its arguments and the YAML of the package's catalogue."""

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def catalogue() -> dict[str, Any]:
    """What docs/catalogue.py defines; it reads the benchmarks' results by a module of the root."""
    sys.path.insert(0, str(ROOT))
    try:
        return runpy.run_path(str(ROOT / "docs" / "catalogue.py"), run_name="catalogue")
    finally:
        sys.path.remove(str(ROOT))


CATALOGUE = catalogue()
CLASSES = CATALOGUE["classes"]()
PAGES = CATALOGUE["pages"]()


def test_every_class_has_a_line_by_hand_and_no_other_has() -> None:
    by_hand = yaml.safe_load((ROOT / "docs" / "catalogue.yaml").read_text())
    said = {(page, name) for page, names in by_hand.items() for name in names}
    assert said == {(shown.kind.name, shown.name) for shown in CLASSES}


@pytest.mark.parametrize("shown", CLASSES, ids=lambda shown: shown.name)
def test_a_class_is_on_its_page_with_its_arguments(shown: Any) -> None:
    page = PAGES[f"reference/{shown.kind.name}.md"]
    (own,) = re.findall(rf"^## {shown.name}\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    assert all(f"\n`{argument.name}` (" in own for argument in shown.entry.arguments)
    assert f"{{py:class}}`{shown.name} <{shown.path}>`" in PAGES["reference/everything.md"]
    if shown.entry.yaml:
        (snippet,) = re.findall(r"^```yaml\n(.*?)^```", own, flags=re.DOTALL | re.MULTILINE)
        assert yaml.safe_load(snippet) == yaml.safe_load(shown.entry.yaml)


def test_formulas_bounds_and_papers_are_on_the_page() -> None:
    page = PAGES["reference/rules.md"]
    assert "m_k = 1 if |sum_i sign(g_ik)| / N > tau" in page
    assert "**Bounds:** with f" in page
    assert "<https://arxiv.org/abs/2210.01834>" in page
