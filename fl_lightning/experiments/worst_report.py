"""What a report shows of rules at the setting that is best under their worst attack: a heat map and a table."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fl_lightning.experiments.figures import NAMES
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.groups import Group
from fl_lightning.experiments.league import attacked
from fl_lightning.experiments.paper_figures import value_map
from fl_lightning.experiments.results import Results, records
from fl_lightning.experiments.tables import number
from fl_lightning.experiments.worst_attack import WorstCase, solve_plan

SHOWN = {
    "setting": "setting",
    "worst_attack": "chosen by its worst attack",
    "reported_worst_attack": "worst attack reported",
    "acc": "Acc",
    "asr": "ASR",
    "n": "n",
}
"""Columns of the table and what they are called, after the axes and the rule."""


def worst_cases(results: Results, final: Final) -> WorstCase | None:
    """What the sweep's plan chooses; None where it has no plan. ASR is that right after the last attack, see `attacked`."""
    if results.worst_case is None:
        return None
    measured = results.runs.assign(acc=results.runs[final.column("acc")], asr=attacked(results, final))
    return solve_plan(measured, results.worst_case)


def maps(results: Results, final: Final) -> Iterator[tuple[Group, str, Figure, str]]:
    """For each combination of further axes and each measure: group, measure, heat map of rules by attacks, and caption."""
    found, plan = worst_cases(results, final), results.worst_case
    if found is None or plan is None or found.reported.empty:
        return
    further = [column for column in found.reported.columns if column in results.axes and column not in (plan.rule, plan.attack)]
    parts = found.reported.groupby(further, sort=False) if further else [((), found.reported)]
    seeds = [seed for seed in results.seeds if seed not in plan.choose_on]
    for labels, part in parts:
        rules, attacks = (list(dict.fromkeys(part[name])) for name in ("rule", "attack"))
        settings = dict(zip(part["rule"], part["setting"], strict=True))
        names = [rule if settings[rule] == rule else f"{rule} ({settings[rule]})" for rule in rules]
        group = Group(plan.rule, plan.attack, {axis: str(label) for axis, label in zip(further, labels, strict=True)}, {})
        for measure, title in NAMES.items():
            at = {(row["rule"], row["attack"]): row[measure] for row in records(part)}
            values = np.array([[at[rule, attack] for attack in attacks] for rule in rules])
            text = (
                f"{title} by {plan.rule} and {plan.attack}, each rule at the setting whose ASR under its worst attack is "
                f"lowest on {listed(plan.choose_on)}; means over {listed(seeds)}."
            )
            yield group, measure, value_map(values, (plan.rule, names), (plan.attack, attacks), title), text


def listed(seeds: Any) -> str:
    """
    >>> listed([0, 1]), listed([2])
    ('seeds 0, 1', 'seed 2')
    """
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def rows(found: WorstCase, axes: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table, as text; `axes` are the sweep's."""
    columns = [*(column for column in found.chosen.columns if column in axes and column != "rule"), "rule", *SHOWN]
    heads = [SHOWN.get(column, column) for column in columns]
    return heads, [[row_text(row, column) for column in columns] for row in records(found.chosen)]


def row_text(row: dict[str, Any], column: str) -> str:
    """A value of a row, as text."""
    if column == "setting" and not row["setting"]:
        return "none is finished"
    if column == "setting" and not row["within_loss"]:
        return f"{row['setting']} (loses too much Acc, as all of its settings do)"
    return number(float(row[column])) if column in NAMES else str(row[column])
