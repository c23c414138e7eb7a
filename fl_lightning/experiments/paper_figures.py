"""Figures for a paper: rules over each other by round, bars by rule, and one axis against another.

Colours: M. Okabe and K. Ito, "Color Universal Design", 2008, without the yellow, which is pale on white. No
two of 28 lines have the same colour and dashes, and in grey print no two of 20 have the same dashes and marker.
"""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fl_lightning.experiments.figures import COLORS, NAMES, by_round
from fl_lightning.experiments.final import Final, mean, why
from fl_lightning.experiments.groups import Group
from fl_lightning.experiments.lifespans import shade_window
from fl_lightning.experiments.plain_text import one_line
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.tables import number

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v")

WIDTH = 6.8
"""Inches: the text of a page in two columns; in one column it is printed at half the size."""

LONGEST = 40
"""Characters of a label that a picture shows."""

SHADES = "Blues"
"""Of heat maps: one hue, from light to dark, which grey print and colour-blind readers take for the same order."""


EQUAL_CONTRAST = 0.179
"""Luminance on which black and white text are read equally well, by a ratio of 4.6."""


def style(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of a line; their numbers have no common divisor, so that they go round at different times."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "linestyle": DASHES[index % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.4,
    }


def shortened(label: str) -> str:
    """
    >>> shortened("two\\nlines"), len(shortened("x" * 100))
    ('two lines', 40)
    """
    text = one_line(label)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026"


def overlay(results: Results, group: Group) -> Figure:
    """Acc and ASR by round, a line per label of the rows: means over seeds, and bands from the smallest to the largest.

    Runs that are not finished are shown as far as they go; a label without any evaluation stands in the legend and says so.
    """
    labels = group.row_labels
    columns = legend_columns(labels)
    figure = Figure(figsize=(WIDTH, 2.6 + 0.19 * math.ceil(len(labels) / columns)), layout="constrained")
    panels = figure.subplots(1, len(NAMES), sharex=True, sharey=True)
    drawn = set()
    for panel, (measure, name) in zip(panels, NAMES.items(), strict=True):
        for index, cell in enumerate(group.cells.values()):
            rounds, values = by_round(results.group(cell), measure)  # (T,), (T, seeds)
            if len(rounds):
                line(panel, rounds, values, index, len(labels))
                drawn.add(index)
        shade_window(panel, [run for cell in group.cells.values() for run in results.group(cell)])
        panel.set(title=name, xlabel="round", ylim=(-0.03, 1.03))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        panel.grid(alpha=0.3)
        if not panel.lines:
            panel.text(0.5, 0.5, "no evaluation yet", ha="center", transform=panel.transAxes)
    handles = [
        Line2D([], [], label=shortened(label) + ("" if index in drawn else " (no evaluation)"), **style(index))
        for index, label in enumerate(labels)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small", frameon=False, handlelength=3.2)
    return figure


def line(panel: Axes, rounds: np.ndarray, values: np.ndarray, index: int, lines: int) -> None:
    """A line, its band, and some six markers, which lie elsewhere on each line."""
    step = max(1, len(rounds) // 6)
    panel.plot(rounds, np.nanmean(values, axis=1), markevery=(index * step // lines, step), **style(index))
    if values.shape[1] > 1:
        low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
        panel.fill_between(rounds, low, high, color=style(index)["color"], alpha=0.15, linewidth=0)


def legend_columns(labels: list[str]) -> int:
    """How many labels of a legend fit beside each other, five at most: some 100 characters, 10 of each for the line."""
    longest = max(len(shortened(label)) for label in labels)
    return max(1, min(5, len(labels), 100 // (longest + 10)))


def bars(results: Results, group: Group, final: Final) -> Figure:
    """Acc and ASR at the end, a bar per label of the rows; error bars are sample standard deviations over seeds."""
    labels = group.row_labels
    figure = Figure(figsize=(WIDTH, 0.8 + 0.26 * len(labels)), layout="constrained")
    panels = figure.subplots(1, len(NAMES), sharey=True)
    for panel, (measure, name) in zip(panels, NAMES.items(), strict=True):
        for place, cell in enumerate(group.cells.values()):
            value, deviation = mean(results, cell, measure, final)
            if math.isnan(value):
                panel.text(0.01, place, why(results, cell, measure, final), va="center", fontsize="small", color="0.35")
                continue
            error = None if math.isnan(deviation) else deviation
            panel.barh(place, value, height=0.7, color=COLORS[measure], alpha=0.75, xerr=error, capsize=2.5, ecolor="black")
        panel.set(title=name, xlim=(0, 1.05), ylim=(len(labels) - 0.4, -0.6))
        panel.grid(alpha=0.3, axis="x")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(labels)), [shortened(label) for label in labels])
    return figure


def heat_map(results: Results, group: Group, measure: str, final: Final) -> Figure:
    """Acc or ASR at the end, rows against columns, from light (0) to dark (1), a value in every cell, or a dash."""
    rows, columns = group.row_labels, group.column_labels
    values = np.array([[mean(results, group.cells.get((r, c)), measure, final)[0] for c in columns] for r in rows])
    return value_map(values, (group.rows, rows), (group.columns, columns), NAMES[measure])


def value_map(
    values: np.ndarray,
    rows: tuple[str, list[str]],
    columns: tuple[str, list[str]],
    title: str,
    *,
    most: float = 1.0,
    texts: list[list[str]] | None = None,
) -> Figure:
    """Values, (len(rows), len(columns)) in [0, most] or NaN, as a heat map; each axis has a name and labels.

    Values beyond that have the shade of the nearer end. `texts` is what stands in the cells: by default the values, as shares.
    """
    names = [[shortened(label) for label in labels] for _, labels in (rows, columns)]
    slanted = max(map(len, names[1])) > 8
    width = 0.9 + 0.075 * max(map(len, names[0])) + 0.62 * len(names[1])
    height = 0.75 + 0.28 * len(names[0]) + (0.055 * max(map(len, names[1])) if slanted else 0)
    figure = Figure(figsize=(max(2.4, width), height), layout="constrained")
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=SHADES, vmin=0, vmax=most, edgecolors="white", linewidth=1)
    axes.set_facecolor("0.93")
    for (row, column), value in np.ndenumerate(values):
        dark = not math.isnan(value) and luminance(mesh.to_rgba(value)) < EQUAL_CONTRAST
        text = (number(float(value)) if texts is None else texts[row][column]).replace("-", "\u2013").replace(">=", "\u2265")
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if dark else "black", fontsize="small")
    axes.set(xlabel=columns[0], ylabel=rows[0], title=title, ylim=(len(names[0]), 0))
    axes.set_xticks(np.arange(len(names[1])) + 0.5, names[1])
    for text in axes.get_xticklabels() if slanted else ():
        text.set(rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(names[0])) + 0.5, names[0])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def luminance(color: Any) -> float:
    """How light a colour is, in [0, 1]: relative luminance as WCAG 2 has it."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(color)]
    return float(np.dot((0.2126, 0.7152, 0.0722), parts))
