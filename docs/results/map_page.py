"""Draw the map's pictures and write its tables into map.md, from map.csv alone.

python docs/results/map_page.py

Blocks of map.md between `<!-- from map.csv: NAME -->` and `<!-- end -->` are written by this script, the rest by hand. A test
compares the two.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blocks
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fl_lightning.aggregators.votes import trim_count
from fl_lightning.experiments.figures import same_bytes, svg
from fl_lightning.experiments.paper_figures import EQUAL_CONTRAST, SHADES, luminance
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.experiments.tables import markdown, number

HERE = Path(__file__).parent
SWEEPS = HERE.parents[1] / "configs" / "sweeps" / "map"
TASKS = {"phishing": "stand-in", "digits": "digits", "mendeley": "Tan's table", "uci": "UCI's table", "cifar10": "CIFAR-10"}
GRIDS = {
    "tau_share": "tau by share of malicious clients",
    "momentum_share": "momentum by share of malicious clients",
    "skew_epochs": "label skew by local epochs",
    "trigger": "trigger by share of poisoned samples",
    "alpha_clients": "alpha by clients per round",
}
CONDITION = [
    *("task", "share", "clients", "participation", "epochs", "skew", "momentum", "decay", "trigger", "poisoned", "per_batch"),
]
"""What two rules have in common where they are compared."""

STRICTNESS = ["tau", "alpha", "inclusive", "ignore_zeros"]
RECORDED = ["kept", "flip", "direction"]
LEAST = 0.02
"""Differences of ASR below this are none, whatever the seeds' spread."""

OPEN = 0.5
"""A back door is open from this ASR on."""


def runs() -> pd.DataFrame:
    """The table, a row per run."""
    return pd.read_csv(HERE / "map.csv", keep_default_na=True)


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["state"] == "finished"]


# ---- heat maps -------------------------------------------------------------------------------------------------------


def row_label(run: dict[str, Any], grid: str) -> str:
    """A rule with what the grid varies of it."""
    label = str(run["rule"])
    if grid == "tau_share" and not math.isnan(run["tau"]):
        label += f", tau {run['tau']:g}"
    if grid == "alpha_clients" and not math.isnan(run["alpha"]):
        label += f", alpha {run['alpha']:g}"
    return label + (", inclusive" if run["inclusive"] else "") + (", zeros ignored" if run["ignore_zeros"] else "")


def column_label(run: dict[str, Any], grid: str) -> str:
    """The grid's other axis."""
    if grid == "tau_share":
        return f"{run['share']:g}"
    if grid == "alpha_clients":
        return f"N = {run['clients']:g}"
    if grid == "momentum_share":
        return f"m {run['momentum']:g}, share {run['share']:g}"
    if grid == "skew_epochs":
        return f"{run['skew']}, {run['epochs']:g} ep."
    return f"{run['trigger']:g}, {run['poisoned']:g}"


def of_grid(frame: pd.DataFrame, task: str, grid: str) -> pd.DataFrame:
    """The finished runs of a task's grid, with the labels of their rows and columns."""
    part = finished(frame)
    part = part[(part["task"] == task) & part["grids"].str.split().map(lambda names: grid in names)]
    rows = [{str(key): value for key, value in run.items()} for run in part.to_dict("records")]
    part = part.assign(row=[row_label(run, grid) for run in rows], column=[column_label(run, grid) for run in rows])
    rule = pd.Categorical(part["rule"], ["FedAvg", "TrimmedMean", "Invariant", "AndMask"], ordered=True)
    axes = ["share", "clients", "momentum", "skew", "epochs", "trigger", "poisoned", "decay", "per_batch", "participation"]
    first = [axis for axis in ("momentum", "skew", "trigger") if axis.split("_")[0] in grid] + axes
    return part.assign(order=rule).sort_values(["order", *STRICTNESS, *dict.fromkeys(first), "seed"])


def heat_maps(frame: pd.DataFrame) -> Iterator[tuple[str, str, Figure]]:
    """Task, grid and picture, as far as three runs of the grid are finished."""
    for grid in GRIDS:
        for task in TASKS:
            part = of_grid(frame, task, grid)
            if len(part) >= 3:
                yield task, grid, heat_map(part)


def heat_map(part: pd.DataFrame) -> Figure:
    """ASR, Acc and kept fraction beside each other: means over the seeds that are finished."""
    rows, columns = list(dict.fromkeys(part["row"])), list(dict.fromkeys(part["column"]))
    figure = Figure(figsize=(2.2 + 3 * 0.46 * len(columns), 0.9 + 0.24 * len(rows) + 0.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for panel, (column, title) in zip(panels, {"asr": "ASR", "acc": "Acc", "kept": "kept fraction"}.items(), strict=True):
        table = part.pivot_table(index="row", columns="column", values=column, aggfunc="mean").reindex(rows)[columns]
        values = table.to_numpy(float)
        mesh = panel.pcolormesh(np.ma.masked_invalid(values), cmap=SHADES, vmin=0, vmax=1, edgecolors="white", linewidth=1)
        panel.set_facecolor("0.93")
        for (i, j), value in np.ndenumerate(values):
            dark = not math.isnan(value) and luminance(mesh.to_rgba(value)) < EQUAL_CONTRAST
            color = "white" if dark else "black"
            panel.text(j + 0.5, i + 0.5, short(value), ha="center", va="center", color=color, fontsize="x-small")
        panel.set(title=title, ylim=(len(rows), 0))
        panel.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize="x-small", rotation=40, ha="right")
        panel.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize="small")
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    return figure


def short(value: float) -> str:
    """Two digits.

    >>> short(0.254), short(1.0), short(float("nan"))
    ('.25', '1.0', '-')
    """
    return "-" if math.isnan(value) else f"{value:.2f}".replace("0.", ".", 1) if value < 0.995 else "1.0"


# ---- who wins --------------------------------------------------------------------------------------------------------


def duels(frame: pd.DataFrame, other: str) -> pd.DataFrame:
    """A row per attacked cell of `Invariant` for which the other rule was run too, at equal alpha where it has one.

    `gain` is the other's ASR less that of `Invariant`, the mean over common seeds; `spread` the larger of the two sample
    standard deviations; `verdict` tells whether the gain exceeds the spread, and `acc_lost` how much Acc `Invariant` has less.
    """
    done = finished(frame)
    done = done[done["share"] > 0]
    keys = [*CONDITION, *(["alpha"] if other == "TrimmedMean" else []), "seed"]
    mine = done[done["rule"] == "Invariant"]
    theirs = done[done["rule"] == other][[*keys, "asr", "acc"]]
    both = mine.merge(theirs, on=keys, suffixes=("", "_other"))
    rows = []
    for labels, cell in both.groupby([*CONDITION, *STRICTNESS], sort=False):
        if len(cell) < 3:
            continue
        gain, spread = float((cell["asr_other"] - cell["asr"]).mean()), float(cell[["asr", "asr_other"]].std(ddof=1).max())
        verdict = "even" if abs(gain) <= max(spread, LEAST) else "wins" if gain > 0 else "loses"
        row = dict(zip([*CONDITION, *STRICTNESS], labels, strict=True))
        row |= {"grids": cell["grids"].iloc[0], "asr": cell["asr"].mean(), "asr_other": cell["asr_other"].mean()}
        row |= {"gain": gain, "spread": spread, "verdict": verdict, "acc_lost": float((cell["acc_other"] - cell["acc"]).mean())}
        row |= {name: cell[name].mean() for name in (*RECORDED, "p_plus", "norm_benign", "norm_malicious")}
        rows.append(row)
    columns = [*CONDITION, *STRICTNESS, "grids", "asr", "asr_other", "gain", "spread", "verdict", "acc_lost", *RECORDED]
    return pd.DataFrame(rows, columns=[*columns, "p_plus", "norm_benign", "norm_malicious"])


def counts(frame: pd.DataFrame) -> pd.DataFrame:
    """By task and by tau: in how many cells `Invariant` wins, is even, loses."""
    rows = []
    found = {other: duels(frame, other) for other in ("TrimmedMean", "FedAvg")}
    for task, title in TASKS.items():
        for tau in sorted({tau for cells in found.values() for tau in cells[cells["task"] == task]["tau"]}):
            row = {"task": title, "tau": f"{tau:g}"}
            for other, cells in found.items():
                part = cells[(cells["task"] == task) & (cells["tau"] == tau)]
                verdicts = part["verdict"].value_counts()
                row[f"against {other}: cells"] = str(len(part))
                row[f"{other}: wins"], row["even" + " " * (other == "FedAvg")], row["loses" + " " * (other == "FedAvg")] = (
                    str(verdicts.get(name, 0)) for name in ("wins", "even", "loses")
                )
                row["gain" + " " * (other == "FedAvg")] = number(part["gain"].mean(), sign=True) if len(part) else "-"
            rows.append(row)
    return pd.DataFrame(rows)


def extremes(frame: pd.DataFrame, other: str, verdict: str, most: int = 12) -> pd.DataFrame:
    """The cells with the largest gains or losses."""
    cells = duels(frame, other)
    cells = cells[cells["verdict"] == verdict].sort_values("gain", ascending=verdict == "loses", kind="stable").head(most)
    rows = []
    for _, cell in cells.iterrows():
        row = {"task": TASKS[cell["task"]], "tau": f"{cell['tau']:g}", "alpha": f"{cell['alpha']:g}"}
        row |= {"share": f"{cell['share']:g}", "else": unlike(cell)}
        row |= {"ASR": number(cell["asr"]), f"ASR of {other}": number(cell["asr_other"]), "spread": number(cell["spread"])}
        rows.append(
            row | {"Acc less": number(cell["acc_lost"], sign=True), "kept": number(cell["kept"]), "flips": number(cell["flip"])}
        )
    return pd.DataFrame(rows)


USUAL: dict[str, Any] = {"skew": "IID", "momentum": 0.9, "decay": 0.0, "participation": "fixed_share", "per_batch": False}


def unlike(cell: "pd.Series[Any]") -> str:
    """What is unlike in the shipped configuration, of what is not the same for all tasks."""
    told = [f"{name} {cell[name]}" for name, usual in USUAL.items() if cell[name] != usual]
    usual_clients, usual_epochs = (10, 2) if cell["task"] == "digits" else (20, 1 if cell["task"] == "phishing" else 4)
    told += [f"{cell['clients']:g} clients"] * (cell["clients"] != usual_clients)
    told += [f"{cell['epochs']:g} epochs"] * (cell["epochs"] != usual_epochs)
    usual_trigger = {"phishing": 0.2, "digits": 2, "mendeley": 1, "uci": 2}[cell["task"]]
    told += [f"trigger {cell['trigger']:g}"] * (cell["trigger"] != usual_trigger)
    told += [f"{cell['poisoned']:g} poisoned"] * (cell["poisoned"] != 0.2)
    told += ["inclusive"] * bool(cell["inclusive"]) + ["zeros ignored"] * bool(cell["ignore_zeros"])
    return ", ".join(told) or "as shipped"


# ---- what predicts it ------------------------------------------------------------------------------------------------

QUANTITIES: dict[str, tuple[str, Callable[[pd.DataFrame], "pd.Series[float]"]]] = {
    "flip": ("flip rate of benign clients", lambda cells: cells["flip"]),
    "kept": ("kept fraction", lambda cells: cells["kept"]),
    "direction": ("share of kept coordinates that go with most attackers", lambda cells: cells["direction"]),
    "ratio": ("length of malicious by benign updates", lambda cells: cells["norm_malicious"] / cells["norm_benign"]),
    "p_plus": ("Theorem 10's p+ at the mean flip rate", lambda cells: cells["p_plus"]),
    "share": ("share of malicious clients (not recorded: a setting)", lambda cells: cells["share"]),
    "veto": (
        "1 - 2 share - tau: below 0 attackers can freeze all (a setting)",
        lambda cells: 1 - 2 * cells["share"] - cells["tau"],
    ),
}


def splits(cells: pd.DataFrame) -> Iterator[tuple[str, "pd.Series[bool]"]]:
    """Name and which cells are tested, of each way of splitting them: whole tasks, and every other cell."""
    for task, title in TASKS.items():
        held = cells["task"] == task
        if held.sum() >= 5 and (~held).sum() >= 5:
            yield f"fitted elsewhere, tested on {title}", held
    yield "every other cell", pd.Series(np.arange(len(cells)) % 2 == 1, index=cells.index)


def stump(values: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    """The threshold and the sign (1: true above it) with the highest balanced accuracy; ties go to the lowest threshold."""
    known = np.unique(values)
    cuts = (known[1:] + known[:-1]) / 2 if len(known) > 1 else known
    tried = [(balanced_accuracy_score(truth, (values > cut) == (sign > 0)), -cut, sign) for cut in cuts for sign in (1, -1)]
    _, cut, sign = max(tried)
    return -cut, sign


def judged(values: pd.DataFrame, truth: "pd.Series[bool]", held: "pd.Series[bool]") -> list[str]:
    """Balanced accuracy where it was fitted and where it was tested, and AUROC on the tested cells."""
    fit, test = ~held, held
    if truth[fit].nunique() < 2 or truth[test].nunique() < 2:
        return ["-", "-", "-"]
    if values.shape[1] == 1:
        column = values.iloc[:, 0].to_numpy(float)
        cut, sign = stump(column[fit], truth[fit].to_numpy())
        guess, score = (column > cut) == (sign > 0), sign * column
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(values[fit], truth[fit])
        score = np.asarray(model.decision_function(values))
        guess = score > 0
    told = [balanced_accuracy_score(truth[part], guess[part.to_numpy()]) for part in (fit, test)]
    return [number(float(value)) for value in (*told, roc_auc_score(truth[test], score[test.to_numpy()]))]


TARGETS: dict[str, Callable[[pd.DataFrame], "pd.Series[bool]"]] = {
    "the back door is open": lambda cells: cells["asr"] >= OPEN,
    "Invariant loses to the trimmed mean": lambda cells: cells["verdict"] == "loses",
}


def predictors(frame: pd.DataFrame) -> pd.DataFrame:
    """Each quantity, alone and the three recorded ones together, against both targets and all splits."""
    cells = duels(frame, "TrimmedMean")
    values = pd.DataFrame({name: of(cells) for name, (_, of) in QUANTITIES.items()})
    cells, values = cells[values.notna().all(axis=1)], values.dropna()
    rows = []
    for target, of in TARGETS.items() if len(cells) >= 10 else ():
        truth = of(cells)
        for split, held in splits(cells):
            for names in [*([name] for name in QUANTITIES), ["flip", "kept", "direction"]]:
                told = QUANTITIES[names[0]][0] if len(names) == 1 else "the first three together (logistic)"
                row = {"target": target, "split": split, "fitted / tested (true)": share_of(truth, held), "by": told}
                accuracy = judged(values[names], truth, held)
                if accuracy[0] == "-":
                    continue
                rows.append(row | dict(zip(("balanced accuracy, fitted", "tested", "AUROC, tested"), accuracy, strict=True)))
    return pd.DataFrame(rows)


def share_of(truth: "pd.Series[bool]", held: "pd.Series[bool]") -> str:
    return f"{(~held).sum()} ({truth[~held].sum()}) / {held.sum()} ({truth[held].sum()})"


# ---- in words --------------------------------------------------------------------------------------------------------


def between(values: "pd.Series[Any]") -> str:
    """
    >>> between(pd.Series([0.2, 0.6])), between(pd.Series([0.5]))
    ('.200 to .600', '.500')
    """
    low, high = number(float(values.min())), number(float(values.max()))
    return low if low == high else f"{low} to {high}"


def findings(frame: pd.DataFrame) -> str:
    """What the table says, in sentences."""
    lines = []
    for other in ("TrimmedMean", "FedAvg"):
        cells = duels(frame, other)
        wins, loses = (cells[cells["verdict"] == name] for name in ("wins", "loses"))
        shut = wins[wins["asr"] < OPEN]
        lines.append(
            f"- Against `{other}`: {len(cells)} attacked cells with three seeds. `Invariant` wins in {len(wins)}, is even in "
            f"{len(cells) - len(wins) - len(loses)} and loses in {len(loses)}; in {len(shut)} of the cells that it wins the "
            f"back door is shut (mean ASR below {number(OPEN)})."
        )
        for name, part in (("won", wins), ("lost", loses)):
            if len(part):
                lines.append(
                    f"  Cells {name}: tau {between(part['tau'])}, share of malicious clients {between(part['share'])}, kept "
                    f"fraction {between(part['kept'])}, ASR {between(part['asr'])} against {between(part['asr_other'])}, Acc "
                    f"less by {between(part['acc_lost'])}."
                )
    held = duels(frame, "TrimmedMean")
    attackers = (held["share"] * held["clients"]).round()
    trimmed = attackers <= [trim_count(int(n), alpha) for n, alpha in zip(held["clients"], held["alpha"], strict=True)]
    for told, part in (("no more", held[trimmed]), ("more", held[~trimmed])):
        verdicts = part["verdict"].value_counts()
        lines.append(
            f"- Where a round has {told} attackers than entries are trimmed from a tail: {len(part)} cells against "
            f"`TrimmedMean`, {verdicts.get('wins', 0)} won and {verdicts.get('loses', 0)} lost, mean gain "
            f"{number(float(part['gain'].mean()), sign=True)}."
        )
    table = predictors(frame)
    for target in TARGETS if len(table) else ():
        tested = table[table["target"] == target]
        if len(tested):
            means = tested.assign(value=tested["AUROC, tested"].astype(float), right=tested["tested"].astype(float))
            best = (
                means.groupby("by", sort=False)[["value", "right"]].mean().sort_values("value", ascending=False, kind="stable")
            )
            order = "; ".join(f"{by} {number(row['value'])} ({number(row['right'])})" for by, row in best.iterrows())
            lines.append(
                f"- What tells on cells that it was not fitted on whether {target}: mean AUROC (and balanced accuracy) over "
                f"{tested['split'].nunique()} splits: {order}."
            )
    return "\n".join(lines)


# ---- the page --------------------------------------------------------------------------------------------------------


def progress(frame: pd.DataFrame) -> str:
    """Cells and runs by grid, planned and finished, and the sum of what ran."""
    rows = []
    for task, title in TASKS.items():
        for grid, told in GRIDS.items():
            file = SWEEPS / f"{task}_{grid}.yaml"
            if not file.is_file():
                continue
            sweep = read_sweep(file)
            planned, part = len(sweep.cells) * len(sweep.seeds), of_grid(frame, task, grid)
            rows.append([title, told, len(sweep.cells), planned, len(part), planned - len(part)])
    table = pd.DataFrame(rows, columns=["task", "grid", "cells", "runs", "finished", "pending"]).astype(str)
    done, failed = finished(frame), int((frame["state"] == "failed").sum())
    hours = f"{done['seconds'].sum() / 3600:.2f}"
    total = f"{len(done)} runs are finished, {failed} failed; finished ones took {hours} hours of one thread."
    return f"{markdown(table)}\n\n{total}"


def pictures_block(frame: pd.DataFrame) -> str:
    told = [f"![{GRIDS[grid]}: {TASKS[task]}](map_{task}_{grid}.svg)" for task, grid, _ in heat_maps(frame)]
    return "\n\n".join(told)


BLOCKS: dict[str, Callable[[pd.DataFrame], str]] = {
    "pictures": pictures_block,
    "findings": findings,
    "progress": progress,
    "counts": lambda frame: markdown(counts(frame)),
    "wins": lambda frame: markdown(extremes(frame, "TrimmedMean", "wins")),
    "losses": lambda frame: markdown(extremes(frame, "TrimmedMean", "loses")),
    "wins over FedAvg": lambda frame: markdown(extremes(frame, "FedAvg", "wins", 8)),
    "predictors": lambda frame: markdown(predictors(frame)),
}


def written(text: str, frame: pd.DataFrame) -> str:
    """A page with its blocks as the table has them."""
    return blocks.written(text, "map.csv", {name: partial(block, frame) for name, block in BLOCKS.items()})


def main() -> None:
    frame = runs()
    with same_bytes():
        for task, grid, figure in heat_maps(frame):
            (HERE / f"map_{task}_{grid}.svg").write_text(svg(figure))
    page = HERE / "map.md"
    page.write_text(written(page.read_text(), frame))


if __name__ == "__main__":
    main()
