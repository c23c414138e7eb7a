"""The reference has every class, and its YAML makes each of them."""

import runpy
import sys
from pathlib import Path
from typing import Any

import jsonargparse
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
ENTRIES = CATALOGUE["entries"]()
PAGES = CATALOGUE["pages"]()


def test_every_class_has_a_line_by_hand_and_no_other_has() -> None:
    said = {
        (page, name) for page, names in yaml.safe_load((ROOT / "docs" / "catalogue.yaml").read_text()).items() for name in names
    }
    assert said == {(entry.kind.page, entry.name) for entry in ENTRIES}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_configuration_shown_makes_it(entry: Any) -> None:
    shown = yaml.safe_load(yaml.safe_dump(entry.configuration()))
    place: dict[str, Any] = shown
    while place.get("class_path") != entry.name:
        (place,) = [
            value[0] if isinstance(value, list) else value for value in place.values() if isinstance(value, (dict, list))
        ]
    parser = jsonargparse.ArgumentParser()
    parser.add_subclass_arguments(entry.kind.base, "it")
    made = parser.instantiate(parser.parse_object({"it": place})).it
    assert type(made) is entry.cls


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_argument_is_described(entry: Any) -> None:
    assert set(entry.arguments()) <= {*CATALOGUE["documented"](entry), "config"}, "an argument has no line under `Args:`"


def test_formulas_bounds_and_papers_are_on_the_page() -> None:
    page = PAGES["reference/rules.md"]
    assert "m_k = 1 if |sum_i sign(g_ik)| / N > tau" in page
    assert "**Bounds:** with f" in page
    assert "<https://arxiv.org/abs/2210.01834>" in page
    assert "| {py:class}`Krum <fl_lightning.aggregators.Krum>` |" in PAGES["reference/everything.md"]
