"""The map's page is what its table of runs says, and the table is judged as the page says."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_pages import RESULTS, script

PAGE = script("map_page")
USUAL = {
    "task": "digits",
    "grids": "tau_share",
    "state": "finished",
    "share": 0.2,
    "clients": 10,
    "participation": "fixed_share",
}
USUAL |= {"epochs": 2, "skew": "IID", "momentum": 0.9, "decay": 0.0, "trigger": 2, "poisoned": 0.2, "per_batch": False}
USUAL |= {"inclusive": False, "ignore_zeros": False, "acc": 0.9, "kept": 0.5, "flip": 0.3, "direction": 0.6, "p_plus": 0.1}
USUAL |= {"norm_benign": 1.0, "norm_malicious": 2.0, "seconds": 1.0}


def made(**asr: Any) -> pd.DataFrame:
    """Three runs of each rule, by the ASR of each seed: of `Invariant` with tau and alpha, of the trimmed mean with alpha."""
    rows = []
    for rule, values in asr.items():
        settings = {"tau": 0.2 if rule == "Invariant" else np.nan, "alpha": np.nan if rule == "FedAvg" else 0.25}
        rows += [{**USUAL, **settings, "rule": rule, "seed": seed, "asr": value} for seed, value in enumerate(values)]
    return pd.DataFrame(rows)


def test_the_page_is_what_the_table_says() -> None:
    text = (RESULTS / "map.md").read_text()
    frame = PAGE["runs"]()
    assert set(PAGE["blocks"].names(text, "map.csv")) == set(PAGE["BLOCKS"])
    assert PAGE["written"](text, frame) == text, "write it anew: python docs/results/map_page.py"


def test_runs_that_are_found_now_are_added_to_the_table() -> None:
    """And take nothing from it: their folders may be gone."""
    columns = ["run", "grids", "state", "asr"]
    earlier = pd.DataFrame(
        [("a", "x", "finished", 0.5), ("b", "x", "pending", np.nan), ("c", "y", "pending", np.nan)], columns=columns
    )
    found = pd.DataFrame(
        [("a", "z", "pending", np.nan), ("b", "x", "finished", 0.25), ("d", "z", "pending", np.nan)], columns=columns
    )
    rows = script("map_runs")["with_earlier"](found, earlier).set_index("run").sort_index()
    assert rows["state"].to_dict() == {"a": "finished", "b": "finished", "c": "pending", "d": "pending"}
    assert rows["grids"].to_dict() == {"a": "x z", "b": "x", "c": "y", "d": "z"}
    assert rows["asr"].dropna().to_dict() == {"a": 0.5, "b": 0.25}


def test_every_picture_is_there_and_no_other() -> None:
    shown = {part.split(")")[0] for part in (RESULTS / "map.md").read_text().split("](")[1:] if part.startswith("map_")}
    assert shown == {path.name for path in RESULTS.glob("map_*.svg")}


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        ([0.1, 0.1, 0.1], [0.5, 0.5, 0.5], "wins"),
        ([0.5, 0.5, 0.5], [0.1, 0.1, 0.1], "loses"),
        ([0.1, 0.2, 0.9], [0.5, 0.5, 0.5], "even"),  # by less than the seeds' spread
        ([0.010, 0.010, 0.010], [0.025, 0.025, 0.025], "even"),  # by less than counts, with no spread at all
    ],
)
def test_a_duel_is_decided_by_more_than_the_seeds_spread(mine: list[float], theirs: list[float], verdict: str) -> None:
    (duel,) = PAGE["duels"](made(Invariant=mine, TrimmedMean=theirs), "TrimmedMean").to_dict("records")
    assert duel["verdict"] == verdict
    assert duel["gain"] == pytest.approx(np.mean(theirs) - np.mean(mine))
    assert duel["spread"] == pytest.approx(max(np.std(mine, ddof=1), np.std(theirs, ddof=1)))


def test_two_seeds_decide_nothing_and_other_settings_are_not_compared() -> None:
    assert PAGE["duels"](made(Invariant=[0.1, 0.1], TrimmedMean=[0.5, 0.5]), "TrimmedMean").empty
    frame = made(Invariant=[0.1] * 3, TrimmedMean=[0.5] * 3, FedAvg=[0.9] * 3)
    frame.loc[frame["rule"] == "TrimmedMean", "alpha"] = 0.4
    assert PAGE["duels"](frame, "TrimmedMean").empty
    assert PAGE["duels"](frame, "FedAvg")["gain"].tolist() == pytest.approx([0.8])  # which has no alpha


def test_a_threshold_is_fitted_on_one_part_and_judged_on_the_other() -> None:
    values = pd.DataFrame({"flip": [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4]})
    truth = pd.Series([False, False, True, True, False, True, True, True])
    held = pd.Series([False] * 4 + [True] * 4)
    assert PAGE["stump"](values["flip"].to_numpy()[:4], truth.to_numpy()[:4]) == (0.25, 1)
    assert PAGE["judged"](values, truth, held) == ["1.000", ".833", "1.000"]
    assert PAGE["judged"](-values, truth, held) == ["1.000", ".833", "1.000"]  # the sign is fitted too
    assert PAGE["judged"](values, truth & ~held, held) == ["-", "-", "-"]  # nothing to tell apart
