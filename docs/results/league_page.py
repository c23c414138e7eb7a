"""Collect the league's runs and write the tables of league.md.

python docs/results/league_page.py RUNS [RUNS ...]      # of `sweep --runs`, or files of `pack`: league.csv anew, too
python docs/results/league_page.py                      # the page alone, from league.csv

Blocks of league.md between `<!-- from league.csv: NAME -->` and `<!-- end -->` are written by this script, the rest by hand.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import blocks
import pandas as pd

from fl_lightning.experiments.final import Final
from fl_lightning.experiments.league import acc_lost, attacked
from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.experiments.tables import markdown, number

HERE = Path(__file__).parent
SWEEPS = HERE.parents[1] / "configs" / "sweeps" / "league"
TASKS = {"phishing": "Phishing, stand-in", "digits": "Digits", "cifar10": "CIFAR-10"}
KEYS = ["task", "rule", "attack", "seed"]
COLUMNS = [*KEYS, "state", "acc", "asr_end", "asr_last", "acc_lost", "auroc", "lived", "lived_most", "seconds", "run"]


def collect(roots: list[Path]) -> pd.DataFrame:
    """A row per finished run of any sweep in these folders whose name ends in `-` and a task, as those of the league do."""
    found = [of_sweep(file.parent, root) for root in roots for file in sorted(root.glob("sweeps/*/sweep.json"))]
    frame = pd.concat(found, ignore_index=True).drop_duplicates(KEYS)
    return frame[frame["state"] == "finished"][COLUMNS].sort_values(KEYS)


def of_sweep(folder: Path, root: Path) -> pd.DataFrame:
    """The runs of a sweep."""
    results = read_results(folder, root / "pool")
    runs = results.runs
    seconds = [sum(run.record.get("seconds", {}).values()) for run in results.folders]
    told = {
        "task": results.name.rpartition("-")[2],
        "asr_end": attacked(results, Final.LAST),
        "asr_last": runs["asr"],
        "acc_lost": acc_lost(results, Final.LAST),
        "auroc": runs.get("detection_auroc", math.nan),
        "lived": runs.get("lifespan_first_fall", math.nan),
        "lived_most": runs.get("lifespan_first_fall_most", math.nan),
        "seconds": seconds,
        "run": runs["id"],
    }
    return runs.assign(**told)


# ---- the page --------------------------------------------------------------------------------------------------------


def board(frame: pd.DataFrame, task: str, column: str) -> str:
    """Means over the seeds that are finished, rules by attacks, in the order of the sweep's file."""
    part = frame[frame["task"] == task]
    if part[column].notna().sum() == 0:
        return "Nothing of it was run."
    cells = read_sweep(SWEEPS / f"{task}.yaml").cells
    rules, attacks = (list(dict.fromkeys(cell.labels[axis] for cell in cells)) for axis in ("rule", "attack"))
    table = part.pivot_table(index="rule", columns="attack", values=column, aggfunc="mean")
    table = table.reindex([rule for rule in rules if rule in table.index])[[name for name in attacks if name in table.columns]]
    shown = table.map(lambda value: "-" if math.isnan(value) else f"{value:.0f}" if column == "lived" else number(value))
    return markdown(shown.reset_index())


def progress(frame: pd.DataFrame) -> str:
    """Planned and finished runs, and what they took."""
    rows = []
    for task, title in TASKS.items():
        sweep = read_sweep(SWEEPS / f"{task}.yaml")
        part = frame[frame["task"] == task]
        rules, attacks = (len({cell.labels[axis] for cell in sweep.cells}) for axis in ("rule", "attack"))
        planned = len(sweep.cells) * len(sweep.seeds)
        rows.append([title, rules, attacks, planned, len(part), planned - len(part), f"{part['seconds'].sum() / 3600:.2f}"])
    names = ["task", "rows of rules", "attacks (with none)", "runs", "finished", "pending", "hours of training"]
    return markdown(pd.DataFrame(rows, columns=names).astype(str))


MEASURES = {"ASR": "asr_end", "Acc lost": "acc_lost", "AUROC": "auroc", "lifespan": "lived"}
BLOCKS: dict[str, Callable[[pd.DataFrame], str]] = {
    f"{title} {task}": (lambda frame, task=task, column=column: board(frame, task, column))
    for task in ("phishing", "digits")
    for title, column in MEASURES.items()
} | {"progress": progress}


def written(text: str, frame: pd.DataFrame) -> str:
    """A page with its blocks as the table has them."""
    return blocks.written(text, "league.csv", {name: partial(block, frame) for name, block in BLOCKS.items()})


def runs() -> pd.DataFrame:
    """The table, a row per finished run."""
    return pd.read_csv(HERE / "league.csv", keep_default_na=False, na_values=[""])  # an attack is called none


def main(*roots: str) -> None:
    if roots:
        collect([root_of(Path(root)) for root in roots]).to_csv(HERE / "league.csv", index=False, float_format="%.5g")
    page = HERE / "league.md"
    page.write_text(written(page.read_text(), runs()))


if __name__ == "__main__":
    main(*sys.argv[1:])
