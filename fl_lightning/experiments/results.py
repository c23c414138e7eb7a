"""What came out of a sweep: one row per run, one row per cell."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from fl_lightning.callbacks.history import FEWEST, LAST
from fl_lightning.callbacks.lifespan import columns
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.labels import having
from fl_lightning.experiments.merging import merged
from fl_lightning.experiments.planned import POOL, SWEEPS, UNVARIED, Run, prefixes
from fl_lightning.experiments.prefix import FOLDER, rule_of
from fl_lightning.experiments.run_folder import AsItStands, RunFolder, State, count, reached
from fl_lightning.experiments.sweep import MEASURES, Sweep, read_sweep
from fl_lightning.experiments.worst_case_plan import WorstCasePlan
from fl_lightning.files.run_files import own_file, read_json, write_whole
from fl_lightning.files.sealed import DamagedError, sealed, unsealed

INDEX = "sweep.json"
"""The file in a sweep's folder that tells which runs belong to which cell."""

AVERAGES = tuple(f"{measure}_last10" for measure in MEASURES)
"""Means over a run's last evaluations, ten at most and three at least."""

AVERAGED = ("last10_evaluations", "last10_first_round", "last10_last_round")
"""How many evaluations those are of, and of which rounds."""


@dataclass(frozen=True)
class Results:
    """A sweep as it stands.

    Args:
        name: of the sweep.
        title: of its report.
        axes: names of the axes, without the seed.
        seeds: of every cell.
        center: axis -> label, where one axis is varied at a time.
        baseline: labels of the cell that ASR is compared with.
        attack_free: labels of the cell without attack.
        worst_case: how settings are chosen by their worst attack, None if they are not.
        paper: the paper's values, one entry per cell, empty where it has none.
        folders: of all runs, cell by cell, in the order of `runs`.
        runs: one row per run: the axes, `seed`, `id`, `state`, `acc`, `asr`, `acc_last10`, `asr_last10`, `last10_evaluations`,
            `last10_first_round`, `last10_last_round`, `rounds`, `excluded_updates`, `lifespan` and what begins so (of
            `BackdoorLifespan`, where any run has it), `detection_tpr`, `detection_fpr`, `detection_auroc` (of
            `DetectionMetrics`, likewise), `message` (why it failed or stopped);
            measures are NaN unless the run is finished, and means and what they are of where it has too few evaluations.
        prefixes: one row per prefix that runs begin with, which is no cell: `id`, `seed`, `rule`, `shared` (by how many runs),
            and the columns of a run from `state` on.
        notes: what is to be said of runs that lie in several pools; see `merged`.
        part_of: the sweep that these are some cells of; None for all of them.
    """

    name: str
    title: str
    axes: list[str]
    seeds: list[int]
    center: dict[str, str]
    baseline: dict[str, str]
    attack_free: dict[str, str]
    worst_case: WorstCasePlan | None
    paper: list[dict[str, float]]
    folders: list[RunFolder]
    runs: pd.DataFrame
    prefixes: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    part_of: "Results | None" = None

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, in the sweep's order.

        Columns: the axes; per measure `<measure>` (mean over seeds), `_sd` (sample standard deviation), `_se` (standard error),
        `_paper`, `_difference` (mean less the paper's value); `last10_evaluations` (the fewest of any run),
        `last10_first_round`, `last10_last_round` (of all runs); `n` finished runs of `planned`; `asr_reduction` (the baseline's
        ASR less the cell's) and `excess_reduction` (that as a share of what the baseline has beyond the attack-free ASR),
        NaN where the sweep names no such cells.
        """
        rows = []
        for index, start in enumerate(range(0, len(self.runs), len(self.seeds))):
            group = self.runs.iloc[start : start + len(self.seeds)]
            row: dict[str, Any] = {axis: group[axis].iloc[0] for axis in self.axes}
            row |= {"n": int((group["state"] == State.FINISHED).sum()), "planned": len(group)}
            for measure in (*MEASURES, *AVERAGES):
                values = group[measure].dropna()
                row[measure] = values.mean() if len(values) else math.nan
                row[f"{measure}_sd"] = values.std(ddof=1) if len(values) > 1 else math.nan
                row[f"{measure}_se"] = row[f"{measure}_sd"] / math.sqrt(len(values)) if len(values) > 1 else math.nan
            row |= {name: group[name].max() if name == "last10_last_round" else group[name].min() for name in AVERAGED}
            for measure in MEASURES:
                row[f"{measure}_paper"] = self.paper[index].get(measure, math.nan)
                row[f"{measure}_difference"] = row[measure] - row[f"{measure}_paper"]
            rows.append(row)
        asr = {tuple(row[axis] for axis in self.axes): row["asr"] for row in rows}

        def beside(row: dict[str, Any], labels: dict[str, str]) -> float:
            """ASR of the cell with these labels, and else with the row's."""
            return asr.get(tuple({**row, **labels}[axis] for axis in self.axes), math.nan) if labels else math.nan

        for row in rows:
            baseline, attack_free = beside(row, self.baseline), beside(row, self.attack_free)
            row["asr_reduction"] = baseline - row["asr"]
            row["excess_reduction"] = row["asr_reduction"] / (baseline - attack_free) if baseline > attack_free else math.nan
        return pd.DataFrame(rows)

    def group(self, cell: int) -> list[RunFolder]:
        """The folders of a cell's runs, by seed."""
        return self.folders[cell * len(self.seeds) : (cell + 1) * len(self.seeds)]

    def only(self, labels: Sequence[tuple[str, str]]) -> "Results":
        """The cells that have one of the labels given for each axis that labels are given for; all without any.

        What they are compared with is the whole sweep's. Worst cases are a matter of all cells, and left out.
        """
        if not labels:
            return self
        kept = having([{axis: str(cell[axis]) for axis in self.axes} for cell in records(self.cells)], labels)
        runs = [run for cell in kept for run in range(cell * len(self.seeds), (cell + 1) * len(self.seeds))]
        part = replace(
            self,
            worst_case=None,
            paper=[self.paper[cell] for cell in kept],
            folders=[self.folders[run] for run in runs],
            runs=self.runs.iloc[runs].reset_index(drop=True),
            part_of=self,
        )
        vars(part)["cells"] = self.cells.iloc[kept].reset_index(drop=True)
        return part

    def label(self, cell: int) -> str:
        """A cell's name."""
        return ", ".join(str(self.runs[axis].iloc[cell * len(self.seeds)]) for axis in self.axes) or UNVARIED


def locate(sweep: Path, runs: Path) -> tuple[Path, Path]:
    """The folder of a sweep, given that or the sweep's file, and the folder of the runs that it names.

    >>> locate(Path("runs/sweeps/some"), Path("runs"))[0]
    PosixPath('runs/sweeps/some')
    """
    folder = runs / SWEEPS / read_sweep(sweep).name if sweep.suffix in (".yaml", ".yml") else sweep
    return folder, folder.absolute().parents[1] / POOL


def write_index(folder: Path, sweep: Sweep, runs: Sequence[Run], given: Sequence[str] = ()) -> None:
    """Write down in a sweep's folder which runs belong to it.

    Args:
        folder: the sweep's.
        sweep: what its file says.
        runs: all of them.
        given: settings that were given on top of the file; the same sweep with others is another one.

    Raises:
        ConfigurationError: the folder is that of the sweep with other settings on top.
    """
    before = read_json(own_file(folder / INDEX))  # one that is damaged is written anew
    if isinstance(before.get("given"), list) and before["given"] != list(given):
        raise ConfigurationError(
            f"{folder} is the folder of this sweep with {' '.join(map(str, before['given'])) or 'no settings on top'}, not "
            f"with {' '.join(given) or 'none'}; give the other a --name of its own"
        )
    by_cell = [
        {"labels": cell.labels, "paper": cell.paper, "runs": {run.seed: run.id for run in runs if run.cell is cell}}
        for cell in sweep.cells
    ]
    index: dict[str, Any] = {
        "name": sweep.name,
        "given": list(given),
        "title": sweep.title,
        "seeds": sweep.seeds,
        "center": sweep.center,
        "baseline": sweep.baseline,
        "attack_free": sweep.attack_free,
        "worst_case": None if sweep.worst_case is None else asdict(sweep.worst_case),
        "cells": by_cell,
    }
    shared = prefixes(runs)
    if shared:
        index["prefixes"] = [
            {
                "id": prefix.id,
                "seed": prefix.seed,
                "rule": rule_of(prefix.config),
                "shared": sum(run.fork is not None and run.fork.run.id == prefix.id for run in runs),
            }
            for prefix in shared
        ]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / INDEX, json.dumps(sealed(index), indent=1) + "\n")


def read_results(folder: Path, *pools: Path) -> Results:
    """The results of a sweep as its run folders have them now.

    Args:
        folder: the sweep's folder.
        pools: the folder that holds all runs, or several that hold parts of them, as of several machines.

    Raises:
        ConfigurationError: the folder is not that of a sweep, its index is damaged, or runs in two pools contradict each other.
    """
    index = read_index(folder)
    check_names(index, folder / INDEX)
    rows, folders, notes = [], [], []

    def chosen(places: list[Path]) -> RunFolder:
        run, note = merged(places)
        notes.extend([note] if note else [])
        return AsItStands(run.path)

    for cell in index["cells"]:
        for seed, run_id in cell["runs"].items():
            run = chosen([pool / run_id for pool in pools])
            folders.append(run)
            rows.append({**cell["labels"], "seed": int(seed), "id": run_id, **outcome(run)})
    shared = [
        {**prefix, **outcome(chosen([pool.parent / FOLDER / prefix["id"] for pool in pools]))}
        for prefix in index.get("prefixes", [])
    ]
    return Results(
        name=index["name"],
        title=index["title"],
        axes=list(index["cells"][0]["labels"]),
        seeds=index["seeds"],
        center=index["center"],
        baseline=index["baseline"],
        attack_free=index["attack_free"],
        worst_case=None if index.get("worst_case") is None else WorstCasePlan(**index["worst_case"]),
        paper=[cell["paper"] for cell in index["cells"]],
        folders=folders,
        runs=pd.DataFrame(rows),
        prefixes=pd.DataFrame(shared),
        notes=notes,
    )


def read_index(folder: Path) -> dict[str, Any]:
    """What `write_index` has written, after seeing that it is whole."""
    file = folder / INDEX
    if not own_file(file).exists():
        raise ConfigurationError(f"{folder} is not the folder of a sweep: there is no {INDEX} in it; start one with `sweep`")
    anew = "the sweep's own command writes it anew, and runs no finished run again"
    try:
        index = unsealed(file)
    except DamagedError as error:
        raise ConfigurationError(f"{error}; {anew}") from error
    kinds = {
        "name": str,
        "title": str,
        "seeds": list,
        "cells": list,
        **dict.fromkeys(("center", "baseline", "attack_free"), dict),
    }
    whole = all(isinstance(index.get(key), kind) for key, kind in kinds.items()) and index["cells"] and index["seeds"]
    for cell in index["cells"] if whole else ():
        parts = [cell.get(key) for key in ("labels", "paper", "runs")] if isinstance(cell, dict) else [None]
        whole = whole and all(isinstance(part, dict) for part in parts) and len(cell["runs"]) == len(index["seeds"])
    shared = index.get("prefixes", [])
    whole = whole and isinstance(shared, list) and all(isinstance(p, dict) and isinstance(p.get("id"), str) for p in shared)
    if not whole:
        raise ConfigurationError(f"{file} is damaged; {anew}")
    return index


def number(value: Any) -> float:
    """A value of a record as a number, NaN if it is none."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def check_names(index: dict[str, Any], file: Path) -> None:
    """Raise `ConfigurationError` if an axis or a run, which name files, is called otherwise than a sweep calls it."""
    for kind, names, pattern in (
        ("an axis", index["cells"][0]["labels"], r"\w[\w .-]*"),
        ("a run", [run_id for cell in index["cells"] for run_id in cell["runs"].values()], r"[\w-]+"),
        ("a prefix", [prefix["id"] for prefix in index.get("prefixes", [])], r"[\w-]+"),
    ):
        for name in names:
            if not re.fullmatch(pattern, name):
                raise ConfigurationError(f"{file} calls {kind} {name!r}, which a sweep does not; `sweep` writes the file anew")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame, column by column."""
    return [{str(column): value for column, value in row.items()} for row in frame.to_dict("records")]


def outcome(run: RunFolder) -> dict[str, Any]:
    """A run's columns."""
    record, state = run.record, run.state
    finished = state is State.FINISHED
    rounds = averaged(run, record) if finished else []
    measured = {name: record.get(name) if finished else None for name in MEASURES}
    measured |= {name: record.get(name) if rounds else None for name in AVERAGES}
    measured |= dict(zip(AVERAGED, (len(rounds), rounds[0], rounds[-1]) if rounds else (None, None, None), strict=True))
    return {
        "state": str(state),
        **{name: number(value) for name, value in measured.items()},
        "rounds": reached(run, record),
        "excluded_updates": count(record.get("excluded_updates")),
        **lifespans(record, finished),
        **detections(record, finished),
        "message": run.message if state in (State.FAILED, State.STOPPED) else "",
    }


def lifespans(record: dict[str, Any], finished: bool) -> dict[str, Any]:
    """The columns of a run with `BackdoorLifespan`; other runs have none of them."""
    found = record.get("lifespan")
    if not isinstance(found, dict):
        return {}
    numbers = {name: value if finished else math.nan for name, value in columns(found).items()}
    return {"lifespan": found["state"] if finished else "", **numbers}


def detections(record: dict[str, Any], finished: bool) -> dict[str, float]:
    """The columns of a run with `DetectionMetrics` whose rule judges clients; other runs have none of them."""
    found = record.get("detection")
    if not isinstance(found, dict):
        return {}
    return {f"detection_{name}": number(found.get(name) if finished else None) for name in ("tpr", "fpr", "auroc")}


def averaged(run: RunFolder, record: dict[str, Any]) -> list[int]:
    """The rounds that a finished run's means are of; none where those are too few for a mean.

    Records of earlier versions do not say which rounds they are, nor care how few.
    """
    rounds = record.get("acc_last10_rounds")
    if rounds is None:
        rounds = [entry["round"] for entry in record.get("history") or run.metrics if entry.get("acc") is not None][-LAST:]
    return rounds if len(rounds) >= FEWEST else []
