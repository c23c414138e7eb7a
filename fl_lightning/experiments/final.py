"""The number that a paper gives for a cell: which it is, of how many seeds, and why there is none."""

import math
from collections.abc import Iterable
from enum import StrEnum

import pandas as pd

from fl_lightning.callbacks.history import FEWEST
from fl_lightning.experiments.groups import Group
from fl_lightning.experiments.results import AVERAGED, Results
from fl_lightning.experiments.run_folder import State

WHY = {
    State.PENDING: "not run",
    State.RUNNING: "still running",
    State.INTERRUPTED: "interrupted",
    State.STOPPED: "stopped before the last round",
    State.FAILED: "failed",
}
"""What is said of runs without a result."""

LEFT_OUT = "left out of the sweep"


class Final(StrEnum):
    """Of which rounds a run's Acc and ASR are."""

    LAST = "last"
    """The last round."""

    MEAN = "mean"
    """The mean over the last evaluations, ten at most: a single ASR swings from one evaluation to the next."""

    def column(self, measure: str) -> str:
        """Where it stands among the results.

        >>> Final.LAST.column("asr"), Final.MEAN.column("asr")
        ('asr', 'asr_last10')
        """
        return measure if self is Final.LAST else f"{measure}_last10"

    def words(self, cells: pd.DataFrame) -> str:
        """What it is of, with the rounds of these cells."""
        known = cells[list(AVERAGED)].dropna()
        if self is Final.LAST:
            return "last round"
        if known.empty:
            return "mean of the last evaluations"
        count, first, last = (known[name] for name in AVERAGED)
        return f"mean of the last {between(count)} evaluations (rounds {first.min():.0f} to {last.max():.0f})"


def between(numbers: Iterable[float]) -> str:
    """
    >>> between([3.0, 1.0, 3.0]), between([2.0])
    ('1 to 3', '2')
    """
    low, high = min(numbers), max(numbers)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def seeds(results: Results, group: Group) -> str:
    """How many seeds the numbers of a group are of: `n = 3 seeds`, `n = 1 to 3 seeds`."""
    numbers = [n for n in results.cells.iloc[list(group.cells.values())]["n"] if n]
    if not numbers:
        return "no finished run yet"
    return f"n = {between(numbers)} seed{'s' if max(numbers) > 1 else ''}"


def measured(results: Results, group: Group, final: Final) -> str:
    """What the numbers of a group are, for a caption: of which rounds, which deviation, of how many seeds."""
    cells = results.cells.iloc[list(group.cells.values())]
    several = bool((cells["n"] > 1).any())
    spread = ", means and sample standard deviations over seeds" if several else ""
    return f"{final.words(cells)}{spread}, {seeds(results, group)}"


def mean(results: Results, cell: int | None, measure: str, final: Final) -> tuple[float, float]:
    """Mean and sample standard deviation of a cell; NaN where there is none, or no cell."""
    if cell is None:
        return math.nan, math.nan
    row, column = results.cells.iloc[cell], final.column(measure)
    return float(row[column]), float(row[f"{column}_sd"])


def why(results: Results, cell: int | None, measure: str, final: Final) -> str:
    """Why a cell's number is not there, or not of all seeds; empty where all is as planned."""
    if cell is None:
        return LEFT_OUT
    row = results.cells.iloc[cell]
    start = cell * len(results.seeds)
    states = [State(state) for state in results.runs["state"].iloc[start : start + len(results.seeds)]]
    others = " or ".join(dict.fromkeys(WHY[state] for state in states if state is not State.FINISHED))
    if not row["n"]:
        return others
    if math.isnan(row[measure]):
        return "not measured"
    if math.isnan(row[final.column(measure)]):
        return f"fewer than {FEWEST} evaluations"
    return f"{row['n']} of {row['planned']} seeds, the rest {others}" if others else ""
