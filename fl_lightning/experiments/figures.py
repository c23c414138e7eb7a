"""Pictures of a sweep: Acc and ASR by round with bands over seeds, and by the value of an axis."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_lightning.experiments.lifespans import shade_window
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.run_folder import RunFolder

COLORS = {"acc": "#1f6fb4", "asr": "#c8402f"}
NAMES = {"acc": "Acc", "asr": "ASR"}


def curves(folders: Sequence[RunFolder], title: str) -> Figure:
    """Acc and ASR of a cell by round: the mean over seeds, and a band from the smallest to the largest.

    Where an attack begins late or ends, its rounds are shaded.
    """
    figure = Figure(figsize=(3.4, 2.3), layout="constrained")
    axes = figure.add_subplot()
    for measure, color in COLORS.items():
        rounds, values = by_round(folders, measure)  # (T,), (T, seeds)
        if len(rounds):
            axes.plot(
                rounds, np.nanmean(values, axis=1), color=color, label=NAMES[measure], marker="." if len(rounds) == 1 else ""
            )
            axes.fill_between(rounds, np.nanmin(values, axis=1), np.nanmax(values, axis=1), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shade_window(axes, folders)
    finish(axes, title, "round")
    return figure


def by_round(folders: Sequence[RunFolder], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds (T,) in which any of the runs was evaluated, and the measure there (T, runs), NaN where a run has none."""
    found = [{e["round"]: e[measure] for e in folder.metrics if e.get(measure) is not None} for folder in folders]
    rounds = sorted(set().union(*found))
    return np.array(rounds), np.array([[run.get(t, np.nan) for run in found] for t in rounds], dtype=float)


def numeric_axes(results: Results) -> list[str]:
    """Axes whose labels are all finite numbers, three at least."""

    def numeric(labels: set[str]) -> bool:
        try:
            numbers = {float(label) for label in labels}
            return len(numbers) >= 3 and all(map(math.isfinite, numbers))
        except ValueError:
            return False

    return [axis for axis in results.axes if numeric(set(results.runs[axis]))]


def sensitivity(results: Results, axis: str) -> Figure:
    """Acc and ASR by the value of an axis; see `draw_sensitivity`."""
    figure = Figure(figsize=(3.4, 2.6), layout="constrained")
    draw_sensitivity(figure.add_subplot(), results, axis)
    return figure


def draw_sensitivity(axes: Axes, results: Results, axis: str) -> None:
    """Acc and ASR by the value of an axis, means with sample standard deviations over seeds.

    There is a line per combination of the other axes; where the sweep varies one axis at a time, the others are at the centre.
    """
    cells = results.cells
    for other, label in results.center.items():
        if other != axis:
            cells = cells[cells[other] == label]
    others = [name for name in results.axes if name != axis and name not in results.center]
    groups = list(cells.groupby(others, sort=False)) if others else [((), cells)]
    for index, (labels, group) in enumerate(groups):
        points = group.assign(value=group[axis].astype(float)).sort_values("value")
        for measure, color in COLORS.items():
            name = ", ".join([NAMES[measure], *map(str, labels)])
            style = {"color": color, "linestyle": ("-", "--", ":", "-.")[index % 4], "marker": "o", "markersize": 3}
            axes.errorbar(
                points["value"], points[measure], yerr=points[f"{measure}_sd"].fillna(0.0), label=name, capsize=2, **style
            )
    finish(axes, "", axis)


def finish(axes: Axes, title: str, label: str) -> None:
    """What all pictures share: shares from 0 to 1, a light grid, a small legend."""
    axes.set(title=title, xlabel=label, ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", framealpha=0.7)
    else:
        axes.text(0.5, 0.5, "no evaluation yet", ha="center", transform=axes.transAxes)


@contextmanager
def same_bytes() -> Iterator[None]:
    """The same picture is the same bytes: no date, and names inside that do not depend on chance.

    Text is text in SVG and in PDF, there in TrueType fonts, as publishers refuse those of type 3. Dollars are dollars.
    """
    fonts = {"svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9, "text.parse_math": False}
    with mpl.rc_context({"svg.hashsalt": "fl_lightning", **fonts}):
        yield


def svg(figure: Figure) -> str:
    """A picture as an `<svg>` element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
