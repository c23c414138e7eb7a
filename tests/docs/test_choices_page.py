"""The page on settings that the paper leaves open is what its table of runs says."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from results_pages import RESULTS, script

from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.sweep import read_sweep

PAGE = script("choices_page")


def made(**asr: list[float]) -> pd.DataFrame:
    """Runs of a grid by `rule, choice` (an underscore stands for the comma) and the ASR of each seed."""
    rows: list[dict[str, Any]] = []
    for name, values in asr.items():
        rule, _, choice = name.partition("_")
        choice = {"shipped": "as shipped"}.get(choice, choice)
        rows += [
            {"grid": "made", "rule": rule, "choice": choice, "seed": seed, "acc": 0.9, "asr": value}
            for seed, value in enumerate(values)
        ]
    return pd.DataFrame(rows)


def test_the_page_is_what_the_table_says() -> None:
    text, frame = (RESULTS / "choices.md").read_text(), PAGE["runs"]()
    assert set(PAGE["blocks"].names(text, "choices.csv")) == set(PAGE["BLOCKS"])
    assert PAGE["written"](text, frame) == text, "write it anew: python docs/results/choices_page.py"
    assert not frame.duplicated(PAGE["KEYS"]).any()


def test_the_table_is_what_the_packed_runs_say(tmp_path: Path) -> None:
    found = PAGE["collect"]([root_of(RESULTS / "runs" / "choices.jsonl.gz")])
    found.to_csv(tmp_path / "choices.csv", index=False, float_format="%.5g")
    assert (tmp_path / "choices.csv").read_text() == (RESULTS / "choices.csv").read_text()


def test_every_run_is_of_a_grid_as_its_file_has_it() -> None:
    for grid, part in PAGE["runs"]().groupby("grid"):
        labels = {(cell.labels["rule"], cell.labels["choice"]) for cell in read_sweep(PAGE["SWEEPS"] / f"{grid}.yaml").cells}
        assert set(zip(part["rule"], part["choice"], strict=True)) <= labels


@pytest.mark.parametrize("grid", PAGE["grids"]())
def test_a_grid_varies_one_thing_at_a_time_over_three_seeds(grid: str) -> None:
    sweep = read_sweep(PAGE["SWEEPS"] / f"{grid}.yaml")
    assert sweep.name == f"choices-{grid}"
    assert sweep.seeds == [0, 1, 2]
    assert {tuple(sorted(cell.labels)) for cell in sweep.cells} == {("choice", "rule")}


def test_a_change_counts_if_it_exceeds_the_spread_of_either_and_what_is_little() -> None:
    frame = made(
        A_shipped=[0.5, 0.5, 0.5],
        A_more=[0.6, 0.6, 0.6],
        A_little=[0.51, 0.51, 0.51],
        A_wild=[0.1, 0.6, 0.9],
        A_two=[0.9, 0.9],
        B_more=[0.9, 0.9, 0.9],  # nothing to compare with
    )
    found = {change["choice"]: change for change in PAGE["changes"](frame)}
    assert {name: change["counts"] for name, change in found.items()} == {"more": True, "little": False, "wild": False}
    assert found["more"]["change"] == pytest.approx(0.1)
    assert "| made | A | more | .500 | .600 | +.100 | .000 | +.000 |" in PAGE["largest"](frame)


def test_rules_are_compared_choice_by_choice() -> None:
    frame = made(
        Invariant_a=[0.1] * 3, TrimmedMean_a=[0.5] * 3, FedAvg_a=[0.11] * 3, Invariant_b=[0.9] * 3, TrimmedMean_b=[0.5] * 3
    )
    lines = PAGE["orders"](frame).splitlines()[2:]
    assert lines == ["| made | a | .100 | .500 | lower | .110 | even |", "| made | b | .900 | .500 | higher | - | - |"]
    assert PAGE["orders"](frame[frame["seed"] < 2]) == "Nothing has three seeds yet."
    assert PAGE["largest"](frame[frame["seed"] < 2]) == "Nothing has three seeds yet."
