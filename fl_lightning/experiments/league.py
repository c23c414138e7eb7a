"""Rules against attacks as one board per measure: ASR, Acc lost, AUROC of detection, lifespan of the back door.

Where attacks end before a run does, ASR and Acc are those right after the last attack: at the run's end a back door may be gone
that was open all the time that attackers were at work. A sweep has boards if it has an axis of rules and one of attacks (see
`groups.py`) and more to show than ASR: `attack_free` in its file, or runs with `DetectionMetrics` or `BackdoorLifespan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fl_lightning.experiments.final import Final
from fl_lightning.experiments.groups import ATTACKS, RULES, Group, groups
from fl_lightning.experiments.paper_figures import EQUAL_CONTRAST, SHADES, luminance, value_map
from fl_lightning.experiments.results import Results, records
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.tables import number

NO_ATTACK = "no attack"
"""The state of a lifespan in runs that nobody attacked."""


@dataclass(frozen=True)
class Measure:
    """What a board shows.

    Args:
        name: in file names.
        title: above the board.
        text: what a value is.
        low: whether a low value is the attackers', as of AUROC.
    """

    name: str
    title: str
    text: str
    low: bool = False


ASR = Measure("asr", "ASR", "Attack success rate; right after the last attack where attacks end before the run does.")
ACC_LOST = Measure(
    "acc_lost",
    "Acc lost",
    "Accuracy of the same rule and seed without attack, less that under attack, at the same round.",
)
AUROC = Measure(
    "auroc",
    "AUROC of detection",
    "Probability that the rule's verdict on a malicious client is lower than on a benign one of the same round; .5 is chance.",
    low=True,
)
LIFESPAN = Measure(
    "lifespan",
    "Lifespan",
    "Rounds after the last attack before ASR first fell to the threshold, of the middle seed, and of two the longer one; 0 "
    "where the back door was never open.",
)


@dataclass(frozen=True)
class Entry:
    """A cell of a board.

    Args:
        value: what it is sorted and shaded by; NaN where nothing was measured.
        text: what it shows.
        by_seed: the same of each seed.
        cell: its position in the sweep; None where the sweep leaves it out.
    """

    value: float
    text: str
    by_seed: str
    cell: int | None


@dataclass(frozen=True)
class Board:
    """Rules by attacks in one measure.

    Args:
        measure: which.
        group: the cells.
        entries: a row per rule, an entry per attack.
    """

    measure: Measure
    group: Group
    entries: list[list[Entry]]

    @cached_property
    def values(self) -> np.ndarray:
        """(rules, attacks), NaN where nothing was measured."""
        return np.array([[entry.value for entry in row] for row in self.entries])

    @property
    def most(self) -> float:
        """The value that is darkest: 1 of shares, the longest of lifespans."""
        return max(1.0, float(np.nanmax(self.values))) if self.measure is LIFESPAN else 1.0

    def shades(self, value: float) -> str:
        """CSS of a cell: background, and black or white on it."""
        if math.isnan(value):
            return "background: #ededed; color: #000000"
        color = mpl.colormaps[SHADES](min(1.0, max(0.0, value / self.most)))
        return f"background: {mpl.colors.to_hex(color)}; color: {'#ffffff' if luminance(color) < EQUAL_CONTRAST else '#000000'}"

    @property
    def rows(self) -> list[tuple[str, list[Entry], Entry, Entry]]:
        """Rule, its entries, their mean and the one that is best for attackers, each over the attacks that were measured."""
        return [
            (label, row, self.over(row, np.mean), self.over(row, np.min if self.measure.low else np.max))
            for label, row in zip(self.group.row_labels, self.entries, strict=True)
        ]

    def over(self, row: list[Entry], function: Callable[[list[float]], Any]) -> Entry:
        """A number of a row's measured entries."""
        known = [entry.value for entry in row if not math.isnan(entry.value)]
        value = float(function(known)) if known else math.nan
        return Entry(value, f"{value:.1f}" if known and self.measure is LIFESPAN else number(value), "", None)

    def picture(self) -> Figure:
        """The board as a heat map for a paper."""
        rows, columns = (self.group.rows, self.group.row_labels), (self.group.columns, self.group.column_labels)
        texts = [[entry.text for entry in row] for row in self.entries]
        return value_map(self.values, rows, columns, self.measure.title, most=self.most, texts=texts)


def boards(results: Results, final: Final) -> Iterator[Board]:
    """The boards of a sweep, all measures of a group of cells one after the other; none where there is ASR alone to show."""
    runs = results.runs
    seeds = len(results.seeds)
    last = attacked(results, final)
    found: dict[Measure, Callable[[int], list[tuple[float, str]]]] = {}
    if results.attack_free:
        lost = acc_lost(results, final)
        found[ACC_LOST] = lambda cell: shares(lost[cell * seeds : (cell + 1) * seeds])
    if "detection_auroc" in runs:
        found[AUROC] = lambda cell: shares(runs["detection_auroc"].iloc[cell * seeds : (cell + 1) * seeds])
    if "lifespan" in runs:
        lives = [lived(run) for run in records(runs)]
        found[LIFESPAN] = lambda cell: lives[cell * seeds : (cell + 1) * seeds]
    if not found:
        return
    found = {ASR: lambda cell: shares(last.iloc[cell * seeds : (cell + 1) * seeds]), **found}
    for group in groups(results, two_axes=True):
        if group.rows.lower() not in RULES or group.columns.lower() not in ATTACKS:
            continue
        for measure, by_seed in found.items():
            board = Board(measure, group, entries(group, measure, by_seed))
            if not np.isnan(board.values).all():
                yield board


def entries(group: Group, measure: Measure, by_seed: Callable[[int], list[tuple[float, str]]]) -> list[list[Entry]]:
    """The entries of a board, row by row."""

    def entry(cell: int | None) -> Entry:
        if cell is None:
            return Entry(math.nan, "-", "left out of the sweep", None)
        seeds = by_seed(cell)
        known = sorted((seed for seed in seeds if not math.isnan(seed[0])), key=lambda seed: (seed[0], seed[1]))
        told = " / ".join(text for _, text in seeds)
        if not known:
            return Entry(math.nan, "-", told, cell)
        if measure is LIFESPAN:
            return Entry(*known[len(known) // 2], told, cell)
        value = sum(value for value, _ in known) / len(known)
        return Entry(value, number(value), told, cell)

    return [[entry(group.cells.get((row, column))) for column in group.column_labels] for row in group.row_labels]


def shares(values: Any) -> list[tuple[float, str]]:
    """Values with their texts.

    >>> shares([0.5, float("nan")])
    [(0.5, '.500'), (nan, '-')]
    """
    return [(float(value), number(float(value))) for value in values]


def lived(run: dict[str, Any]) -> tuple[float, str]:
    """A run's lifespan, at least, and its text.

    >>> lived({"lifespan": "measured", "lifespan_first_fall": 5.0, "lifespan_first_fall_most": float("nan")})
    (5.0, '>= 5')
    """
    state, least = run["lifespan"], run["lifespan_first_fall"]
    if not isinstance(state, str) or state == NO_ATTACK or math.isnan(least):
        return math.nan, "-"
    return least, f">= {least:.0f}" if math.isnan(run["lifespan_first_fall_most"]) else f"{least:.0f}"


def attacked(results: Results, final: Final) -> pd.Series[float]:
    """ASR of every run right after the last attack where attacks end before the run does, else at its end."""
    asr = results.runs[final.column("asr")]
    return results.runs["lifespan_asr_end"].fillna(asr) if "lifespan_asr_end" in results.runs else asr


def acc_lost(results: Results, final: Final) -> list[float]:
    """By run, Acc of the run without attack that has the same seed and else the same labels, less its own; NaN where unknown.

    Both are taken right after the last attack, where attacks end before the run does, else as `final` says.
    """
    whole = results.part_of or results
    at = {
        (tuple(str(row[axis]) for axis in results.axes), row["seed"]): (row, folder)
        for row, folder in zip(records(whole.runs), whole.folders, strict=True)
    }
    found = []
    for row, folder in zip(records(results.runs), results.folders, strict=True):
        labels = {**{axis: str(row[axis]) for axis in results.axes}, **results.attack_free}
        free = at.get((tuple(labels[axis] for axis in results.axes), row["seed"]))
        kept = folder.record.get("lifespan")
        over = kept.get("attack_over") if isinstance(kept, dict) and kept.get("asr_end") is not None else None
        found.append((math.nan if free is None else acc(*free, over, final)) - acc(row, folder, over, final))
    return found


def acc(run: dict[str, Any], folder: RunFolder, over: int | None, final: Final) -> float:
    """Acc of a finished run after that many rounds, or as `final` says where None is given."""
    if over is None or math.isnan(run["acc"]):
        return float(run[final.column("acc")])
    by_round = {entry["round"]: entry.get("acc") for entry in folder.metrics}
    value = by_round.get(over)
    return math.nan if value is None else float(value)
