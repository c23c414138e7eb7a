"""Collect the runs of settings that the paper leaves open, and write the tables of choices.md.

python docs/results/choices_page.py RUNS [RUNS ...]   # of `sweep --runs`, or files of `pack`: choices.csv anew, too
python docs/results/choices_page.py                   # the page alone, from choices.csv

Blocks of choices.md between `<!-- from choices.csv: NAME -->` and `<!-- end -->` are written by this script, the rest by hand.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blocks
import pandas as pd
import tables_page

from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.sweep import Sweep, read_sweep
from fl_lightning.experiments.tables import markdown, number, pair

HERE = Path(__file__).parent
SWEEPS = HERE.parents[1] / "configs" / "sweeps" / "choices"
SHIPPED = "as shipped"
KEYS = ["grid", "rule", "choice", "seed"]
COLUMNS = [*KEYS, "acc", "asr", "acc_last10", "asr_last10", "seconds", "run"]
LEAST = 0.02
"""Differences below this are none, whatever the seeds' spread."""


def grids() -> list[str]:
    """The names of the sweeps' files."""
    return sorted(file.stem for file in SWEEPS.glob("*.yaml"))


def collect(roots: list[Path]) -> pd.DataFrame:
    """A row per finished run."""
    found = []
    for root in roots:
        for file in sorted(root.glob("sweeps/choices-*/sweep.json")):
            results = read_results(file.parent, root / "pool")
            seconds = [sum(run.record.get("seconds", {}).values()) for run in results.folders]
            grid = results.name.removeprefix("choices-")
            found.append(results.runs.assign(grid=grid, seconds=seconds, run=results.runs["id"]))
    frame = pd.concat(found, ignore_index=True).drop_duplicates(KEYS)
    return frame[frame["state"] == "finished"][COLUMNS].sort_values(KEYS)


def runs() -> pd.DataFrame:
    """The table, a row per finished run."""
    return pd.read_csv(HERE / "choices.csv")


# ---- tables ----------------------------------------------------------------------------------------------------------


def means(frame: pd.DataFrame) -> pd.DataFrame:
    """Means and sample standard deviations over the seeds that are finished, by grid, rule and choice."""
    groups = frame.groupby(["grid", "rule", "choice"])[["acc", "asr"]]
    told = groups.mean().join(groups.std(ddof=1).add_suffix("_sd"))
    return told.assign(n=groups.size()).reset_index()


def shown(cell: "pd.Series[Any]", planned: int) -> str:
    """Acc and ASR, and how many seeds they are of where some are missing."""
    seeds = "" if cell["n"] == planned else f" ({cell['n']} of {planned})"
    return pair(number(cell["acc"]), number(cell["asr"])) + seeds


def board(frame: pd.DataFrame, grid: str) -> str:
    """Choices by rules, in the order of the sweep's file."""
    sweep, part = read_sweep(SWEEPS / f"{grid}.yaml"), means(frame[frame["grid"] == grid])
    if part.empty:
        return "Not run."
    rules, choices = (list(dict.fromkeys(cell.labels[axis] for cell in sweep.cells)) for axis in ("rule", "choice"))
    cells = {(cell["rule"], cell["choice"]): shown(cell, len(sweep.seeds)) for _, cell in part.iterrows()}
    lines = [[choice, *(cells.get((rule, choice), "-") for rule in rules)] for choice in choices]
    return markdown(pd.DataFrame(lines, columns=["choice", *rules]))


def changes(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What each choice changes of ASR under each rule, beside what is shipped; with three seeds of both alone."""
    told = means(frame)
    told = told[told["n"] >= 3]
    for _, rows in told.groupby("grid", sort=False):
        usual = rows[rows["choice"] == SHIPPED].set_index("rule")
        for _, cell in rows[(rows["choice"] != SHIPPED) & rows["rule"].isin(usual.index)].iterrows():
            before = usual.loc[cell["rule"]]
            spread = max(before["asr_sd"], cell["asr_sd"])
            change = cell["asr"] - before["asr"]
            yield {
                **{name: cell[name] for name in ("grid", "rule", "choice", "acc", "asr")},
                "before": before["asr"],
                "change": change,
                "spread": spread,
                "acc_change": cell["acc"] - before["acc"],
                "counts": abs(change) > max(spread, LEAST),
            }


def largest(frame: pd.DataFrame, most: int = 15) -> str:
    """The changes of ASR that exceed the seeds' spread, the largest first."""
    found = pd.DataFrame(changes(frame))
    if found.empty:
        return "Nothing has three seeds yet."
    found = found[found["counts"]].assign(size=lambda table: table["change"].abs())
    found = found.sort_values(["size", "grid", "rule", "choice"], ascending=[False, True, True, True]).head(most)
    lines = [
        {
            "grid": row["grid"],
            "rule": row["rule"],
            "choice": row["choice"],
            "ASR as shipped": number(row["before"]),
            "ASR": number(row["asr"]),
            "change": number(row["change"], sign=True),
            "spread": number(row["spread"]),
            "Acc": number(row["acc_change"], sign=True),
        }
        for _, row in found.iterrows()
    ]
    return markdown(pd.DataFrame(lines))


def orders(frame: pd.DataFrame) -> str:
    """Under which choices `Invariant` has a lower ASR than `TrimmedMean` and `FedAvg`, by more than the seeds' spread."""
    told, lines = means(frame), []
    told = told[told["n"] >= 3]
    for (grid, choice), rows in told.groupby(["grid", "choice"], sort=False):
        cells = {str(row["rule"]): (float(row["asr"]), float(row["asr_sd"])) for row in rows.to_dict("records")}
        others = [other for other in ("TrimmedMean", "FedAvg") if other in cells]
        if "Invariant" not in cells or not others:
            continue
        mine, line = cells["Invariant"], {"grid": grid, "choice": choice, "Invariant": number(cells["Invariant"][0])}
        for other in ("TrimmedMean", "FedAvg"):
            line[other] = number(cells[other][0]) if other in others else "-"
            line[f"beside {other}"] = verdict(mine, cells[other]) if other in others else "-"
        lines.append(line)
    return markdown(pd.DataFrame(lines)) if lines else "Nothing has three seeds yet."


def verdict(mine: tuple[float, float], theirs: tuple[float, float]) -> str:
    """Lower, higher or even: a mean ASR beside another, each with its standard deviation."""
    if abs(theirs[0] - mine[0]) <= max(mine[1], theirs[1], LEAST):
        return "even"
    return "lower" if mine[0] < theirs[0] else "higher"


def calibration(_: pd.DataFrame) -> str:
    """The rows without attack, on which choices may be calibrated: the paper's and ours."""
    lines = []
    for task, setting, title in (
        ("cifar10", "cifar10, ResNet-18", "CIFAR-10, ResNet-18"),
        ("cifar10", "cifar10, CNN", "CIFAR-10, small CNN, 100 rounds"),
        ("phishing", "phishing", "phishing stand-in"),
    ):
        ours = {row["row"]: row for row in tables_page.rows_of(setting, "1")}.get("no attack")
        lines.append([title, *published(task), "not run" if ours is None else pair(number(ours["acc"]), number(ours["asr"]))])
    last = tables_page.cpu_curves().iloc[-1]
    told = f"{pair(number(last['acc']), number(last['asr']))}, {last['epochs']} epochs a round"
    lines.insert(2, ["CIFAR-10, small CNN, 300 rounds", *published("cifar10"), told])
    last = pd.read_csv(HERE / "twitter_full_text.csv").iloc[-1]
    told = f"{pair(number(last['acc']), number(last['asr']))} after {last['round']:.0f} rounds"
    lines.append(["Twitter, all tweets, 50-d vectors", *published("twitter"), told])
    return markdown(pd.DataFrame(lines, columns=["task", "paper Acc / ASR", "rounds there", "here"]))


def published(task: str) -> tuple[str, str]:
    """Acc and ASR without attack, and rounds, in the paper."""
    paper = tables_page.published(task, "1")["no attack"]
    return pair(number(paper["acc"]), number(paper["asr"])), "20" if task == "phishing" else "300"


def progress(frame: pd.DataFrame) -> str:
    """Planned and finished runs by grid."""
    lines = []
    for grid in grids():
        sweep: Sweep = read_sweep(SWEEPS / f"{grid}.yaml")
        planned, done = len(sweep.cells) * len(sweep.seeds), frame[frame["grid"] == grid]
        seconds = f"{done['seconds'].mean():.1f}" if len(done) else "-"
        lines.append([sweep.title, f"{grid}.yaml", planned, len(done), planned - len(done), seconds])
    names = ["grid", "file", "runs", "finished", "pending", "seconds a run"]
    return markdown(pd.DataFrame(lines, columns=names).astype(str))


BLOCKS: dict[str, Callable[[pd.DataFrame], str]] = {
    "calibration": calibration,
    "largest": largest,
    "orders": orders,
    "progress": progress,
    **{grid: partial(board, grid=grid) for grid in grids() if grid.startswith(("phishing", "digits"))},
}


def written(text: str, frame: pd.DataFrame) -> str:
    """A page with its blocks as the table has them."""
    return blocks.written(text, "choices.csv", {name: partial(block, frame) for name, block in BLOCKS.items()})


def main(*roots: str) -> None:
    if roots:
        collect([root_of(Path(root)) for root in roots]).to_csv(HERE / "choices.csv", index=False, float_format="%.5g")
    page = HERE / "choices.md"
    page.write_text(written(page.read_text(), runs()))


if __name__ == "__main__":
    main(*sys.argv[1:])
