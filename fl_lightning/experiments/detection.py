"""A report's part on detection: which clients the rule turned away, round by round, and how often it was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_lightning.callbacks.detections import DETECTION_FILE, Detections, detect
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.figures import same_bytes, svg
from fl_lightning.experiments.frames import client_table
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.files.run_files import own_file, read_lines

THRESHOLD = 0.5
"""`DetectionMetrics`' own, for runs that have a record of clients alone."""

MOST_ROUNDS = 1000
"""Rounds in the page's table."""

LEAST = 1e-6
"""The verdict from which on the map has a color other than that of 0."""

COLORS = {"tpr": "#c8402f", "tpr_below": "#e39a90", "fpr": "#1f6fb4", "fpr_below": "#8fb8dc", "auroc": "#3b3b3b"}
NAMES = {"tpr": "TPR", "tpr_below": "TPR, below", "fpr": "FPR", "fpr_below": "FPR, below", "auroc": "AUROC"}


@dataclass(frozen=True)
class Section:
    """What a report shows of a cell.

    Attributes:
        name: of the cell.
        rates: an `<svg>` of TPR, FPR and AUROC by round; empty where no round has a verdict.
        clients: an `<svg>` of clients by rounds; empty where there is no record of clients with verdicts.
        run: the run that this one is of.
        rounds: of that run, the rounds with clients' numbers: malicious and turned away, benign and turned away, malicious and
            not turned away.
        problem: why files could not be read, if so.
    """

    name: str
    rates: str = ""
    clients: str = ""
    run: str = ""
    rounds: Sequence[tuple[int, str, str, str]] = ()
    problem: str = ""


def sections(results: Results) -> list[Section]:
    """The cells of which a run has a `ClientRecord` with verdicts, or `DetectionMetrics`."""
    found = []
    with same_bytes():
        for cell in range(len(results.cells)):
            name = results.label(cell)
            try:
                section = of_runs(name, results.group(cell))
            except ConfigurationError as error:
                section = Section(name, problem=str(error))
            found += [section] if section.rates or section.clients or section.problem else []
    return found


def of_runs(name: str, folders: Sequence[RunFolder]) -> Section:
    """The section of a cell, from its runs with one seed each; the map is the first one's that has a record.

    Raises:
        ConfigurationError: a file is damaged.
    """
    tables = [verdicts(folder) for folder in folders]
    rates = [rates_by_round(folder, table) for folder, table in zip(folders, tables, strict=True)]
    drawn = svg(draw_rates(rates)) if any(rates) else ""
    shown = next((i for i, table in enumerate(tables) if len(table)), None)
    if shown is None:
        return Section(name, drawn)
    table = tables[shown]
    return Section(name, drawn, svg(draw_clients(table)), folders[shown].path.name, list_rounds(table))


def verdicts(folder: RunFolder) -> pd.DataFrame:
    """The rows of a run's clients that have a verdict; empty where none has."""
    table = client_table(folder)
    return pd.DataFrame() if table is None else table[table["verdict"].notna()]


def rates_by_round(folder: RunFolder, table: pd.DataFrame) -> dict[int, dict[str, float]]:
    """The rates of every round: what `DetectionMetrics` counted, else what a record of clients ((rows, ..)) says."""
    file = own_file(folder.path / DETECTION_FILE)
    names = {field.name for field in fields(Detections)}
    found = {}
    for entry in read_lines(file):
        counts = {key: value for key, value in entry.items() if key in names}
        if len(counts) < len(names) - 1 or not all(isinstance(value, (int, float)) for value in counts.values()):
            raise ConfigurationError(f"{file} is damaged: {entry!r:.80} is no line of DetectionMetrics; delete it")
        found[entry["round"]] = Detections(**counts)
    if not found and len(table):
        for t, rows in table.groupby("round"):
            found[t] = detect(rows["verdict"].to_numpy(), rows["malicious"].to_numpy(bool), THRESHOLD)
    return {t: of_round.rates for t, of_round in found.items()}


def draw_rates(of_runs: Sequence[dict[int, dict[str, float]]]) -> Figure:
    """The rates by round, means over the runs that have them; dots where a line would have no length."""
    figure = Figure(figsize=(3.4, 2.3), layout="constrained")
    axes = figure.add_subplot()
    rounds = sorted(set().union(*of_runs))
    for name, color in COLORS.items():
        of_name = [{t: rates.get(name) for t, rates in run.items()} for run in of_runs]
        means = pd.DataFrame(of_name, columns=rounds, dtype=float).mean()  # over the runs that have it
        if means.notna().any():
            axes.plot(
                rounds, means.to_numpy(), color=color, label=NAMES[name], linewidth=1, marker="." if len(rounds) == 1 else ""
            )
    axes.set(xlabel="round", ylim=(-0.03, 1.03))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", fontsize="x-small", ncols=3)
    return figure


def draw_clients(table: pd.DataFrame) -> Figure:
    """A map of verdicts, clients by rounds: who was ever malicious is above the line; white where one did not take
    part, red where it was turned away."""
    malicious = table.groupby("client")["malicious"].any()
    order = [*malicious.index[malicious], *malicious.index[~malicious]]
    grid = table.pivot_table(index="client", columns="round", values="verdict").reindex(order)
    first, last = int(grid.columns.min()), int(grid.columns.max())
    grid = grid.reindex(columns=range(first, last + 1))
    figure = Figure(figsize=(6.8, min(7.0, 1.0 + 0.12 * len(order))), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        grid.to_numpy(float),
        vmin=LEAST,
        vmax=1,
        cmap=mpl.colormaps["cividis"].with_extremes(under=COLORS["tpr"]),
        aspect="auto",
        interpolation="nearest",
        extent=(first - 0.5, last + 0.5, len(order) - 0.5, -0.5),
    )
    number = int(malicious.sum())
    if 0 < number < len(order):
        axes.axhline(number - 0.5, color="black", linewidth=1.5)
    if len(order) <= 60:
        axes.set_yticks(range(len(order)), [str(client) for client in order], fontsize="x-small")
        for label in axes.get_yticklabels()[:number]:
            label.set_fontweight("bold")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel=f"client; {number} malicious above the line" if number else "client")
    figure.colorbar(image, ax=axes, label="verdict; red: turned away", fraction=0.03, extend="min")
    return figure


def list_rounds(table: pd.DataFrame) -> list[tuple[int, str, str, str]]:
    """The last rounds, each with numbers of clients, see `Section.rounds`."""
    found = []
    for t, rows in table[table["round"] > table["round"].max() - MOST_ROUNDS].groupby("round"):
        away, malicious = rows["verdict"] == 0, rows["malicious"]
        bad, good, passed = (
            ", ".join(map(str, rows["client"][group])) or "-"
            for group in (away & malicious, away & ~malicious, ~away & malicious)
        )
        found.append((int(t), bad, good, passed))
    return found
