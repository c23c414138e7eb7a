"""Each rule at the setting that is best under its worst attack, reported on seeds by which nothing was chosen.

A rule that is shown at the setting that did best against each attack has been told the attack. So a setting is chosen once per
rule, by the attack that hurts it most, on some of the seeds; what is reported comes from the others. The benchmark ByzFL (arXiv
2505.24802) compares rules so by the accuracy that they lose; here it is by ASR.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fl_lightning.errors import ConfigurationError, nearest
from fl_lightning.experiments.worst_case_plan import MAX_LOSS, WorstCasePlan, check_labels, check_seeds


@dataclass(frozen=True)
class WorstCase:
    """What was chosen, and what came of it.

    Attributes:
        chosen: a row per rule (and per label of each further axis): `rule`, `setting`, `worst_attack` (the one by which it was
            chosen), `within_loss` (whether any setting keeps to `max_loss`; else the one with the lowest ASR is taken all the
            same), and on the reported seeds `acc`, `asr` under the attack that is worst there, `reported_worst_attack`, `n`.
        reported: a row per rule and attack, at the chosen setting: `acc`, `asr` (means over the reported seeds), `acc_sd`,
            `asr_sd`, `n`.
    """

    chosen: pd.DataFrame
    reported: pd.DataFrame


def worst_case(
    runs: pd.DataFrame | str | os.PathLike[str],
    *,
    rule: str = "rule",
    attack: str = "attack",
    choose_on: Sequence[int],
    settings: Mapping[str, Sequence[str]] | None = None,
    max_loss: float = MAX_LOSS,
) -> WorstCase:
    """Choose for each rule the setting that is best under its worst attack, and report it on the other seeds.

    On the seeds of `choose_on` a setting's ASR under an attack is the mean over those seeds, its worst attack the one with the
    highest, and the rule's setting the one whose highest is lowest; ties go to the higher Acc under that attack, then to the
    label that comes first. A setting of which a cell is missing on those seeds is not chosen. Axes other than rule, attack and
    seed, which are the columns before `seed`, make a problem each.

    Args:
        runs: a row per run, as a report's `runs.csv` has them: a column per axis, `seed`, `acc` and `asr`, NaN where a run is
            not finished; or the path of that file, or of the sweep's folder with it.
        rule, attack, choose_on, settings, max_loss: see `WorstCasePlan`.

    Raises:
        ConfigurationError: no such column or seed, no seed left to report, nothing to choose from, or several runs of one cell.

    Example:
        >>> runs = pd.DataFrame({
        ...     "rule": ["Krum f=1", "Krum f=2"] * 4, "attack": ["DBA", "DBA", "PGD", "PGD"] * 2, "seed": [0] * 4 + [1] * 4,
        ...     "acc": [0.9] * 8, "asr": [0.1, 0.3, 0.8, 0.4] * 2,
        ... })
        >>> found = worst_case(runs, settings={"Krum": ["Krum f=1", "Krum f=2"]}, choose_on=[0])
        >>> found.chosen[["rule", "setting", "worst_attack", "asr"]].to_numpy().tolist()
        [['Krum', 'Krum f=2', 'PGD', 0.4]]
    """
    plan = WorstCasePlan(rule, attack, choose_on, settings or {}, max_loss)
    return solve_plan(runs if isinstance(runs, pd.DataFrame) else read_runs(Path(runs)), plan)


def solve_plan(frame: pd.DataFrame, plan: WorstCasePlan) -> WorstCase:
    """`worst_case` with its arguments checked."""
    check(frame, plan)
    others = [column for column in further_axes(frame, plan) if frame[column].nunique() > 1]
    chosen, reported = [], []
    for labels, problem in frame.groupby(others, sort=False) if others else [((), frame)]:
        at = dict(zip(others, labels, strict=True))
        best, rows = solve(problem, plan)
        chosen += [{**at, **row} for row in best]
        reported += [{**at, **row} for row in rows]
    return WorstCase(pd.DataFrame(chosen), pd.DataFrame(reported))


def read_runs(path: Path) -> pd.DataFrame:
    """The `runs.csv` of a report."""
    file = path / "runs.csv" if path.is_dir() else path
    if not file.is_file():
        raise ConfigurationError(f"there is no {file}; `fl-lightning report` writes a sweep's runs.csv into its folder")
    try:
        return pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read as CSV ({error}); give a report's runs.csv") from error


def further_axes(frame: pd.DataFrame, plan: WorstCasePlan) -> list[str]:
    """The axes beside rule, attack and seed: in a report's order they stand before the seed."""
    columns = [str(column) for column in frame.columns]
    return [column for column in columns[: columns.index("seed")] if column not in (plan.rule, plan.attack)]


def check(frame: pd.DataFrame, plan: WorstCasePlan) -> None:
    """Raise unless the runs have what the plan names."""
    columns = [str(column) for column in frame.columns]
    for column in (plan.rule, plan.attack, "seed", "acc", "asr"):
        if column not in columns:
            raise ConfigurationError(f"worst_case: the runs have no column {column}; {nearest(column, columns)}")
    check_seeds(plan, set(frame["seed"]))
    check_labels(plan, dict.fromkeys(map(str, frame[plan.rule])))
    check_cells(frame, [plan.rule, plan.attack, *further_axes(frame, plan), "seed"])


def check_cells(frame: pd.DataFrame, axes: Sequence[str]) -> None:
    """Raise where runs are alike in all axes: their mean would hide what they differ in."""
    twice = frame.duplicated(list(axes))
    if twice.any():
        cell = ", ".join(f"{axis} = {value}" for axis, value in frame.loc[twice, list(axes)].iloc[0].items())
        raise ConfigurationError(
            f"worst_case: several runs have {cell}; leave one, or put the column in which they differ before seed, where it "
            "counts as an axis"
        )


def solve(frame: pd.DataFrame, plan: WorstCasePlan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of `WorstCase.chosen` and of `WorstCase.reported`, of runs that differ in rule, attack and seed alone."""
    choosing = frame["seed"].isin(list(plan.choose_on))
    by, told = means(frame[choosing], plan), means(frame[~choosing], plan)
    attacks = [str(name) for name in dict.fromkeys(frame[plan.attack])]
    labels = [str(name) for name in dict.fromkeys(frame[plan.rule])]
    best_acc = {
        name: max((by[label, name]["acc"] for label in labels if (label, name) in by), default=math.nan) for name in attacks
    }

    def judged(label: str) -> tuple[bool, float, float, str] | None:
        """Whether it falls behind, its highest ASR, minus its Acc there, and that attack: the least is the best."""
        if not all((label, name) in by for name in attacks):
            return None
        worst = max(attacks, key=lambda name: by[label, name]["asr"])
        behind = any(by[label, name]["acc"] < best_acc[name] - plan.max_loss for name in attacks)
        return behind, by[label, worst]["asr"], -by[label, worst]["acc"], worst

    chosen, reported = [], []
    for owner in dict.fromkeys(map(plan.owner, labels)):
        found = [
            (judgement[:3], label, judgement[3])
            for label in labels
            if plan.owner(label) == owner and (judgement := judged(label))
        ]
        if not found:
            chosen.append({"rule": owner, "setting": "", "worst_attack": "", "within_loss": False, **NOTHING})
            continue
        (behind, *_), setting, worst = min(found, key=lambda entry: entry[0])
        rows = [{"rule": owner, "attack": name, "setting": setting, **told.get((setting, name), EMPTY)} for name in attacks]
        reported += rows
        there = [row for row in rows if row["n"]]
        hit = max(there, key=lambda row: row["asr"]) if there else None
        outcome = (
            NOTHING if hit is None else {"reported_worst_attack": hit["attack"], **{k: hit[k] for k in ("acc", "asr", "n")}}
        )
        chosen.append({"rule": owner, "setting": setting, "worst_attack": worst, "within_loss": not behind, **outcome})
    return chosen, reported


EMPTY: dict[str, Any] = {"acc": math.nan, "acc_sd": math.nan, "asr": math.nan, "asr_sd": math.nan, "n": 0}
NOTHING: dict[str, Any] = {"reported_worst_attack": "", "acc": math.nan, "asr": math.nan, "n": 0}


def means(frame: pd.DataFrame, plan: WorstCasePlan) -> dict[tuple[str, str], dict[str, Any]]:
    """(label, attack) -> means over seeds, of finished runs with both measures."""
    found = {}
    for (label, name), group in frame.dropna(subset=["acc", "asr"]).groupby([plan.rule, plan.attack], sort=False):
        row: dict[str, Any] = {"n": len(group)}
        for measure in ("acc", "asr"):
            row |= {measure: group[measure].mean(), f"{measure}_sd": group[measure].std(ddof=1)}
        found[str(label), str(name)] = row
    return found
