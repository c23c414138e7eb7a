"""A sweep's results as one long table: a row per cell."""

import math
from typing import Any

import pandas as pd

from fl_lightning.experiments import ran_on
from fl_lightning.experiments.plain_text import markdown_cell
from fl_lightning.experiments.results import AVERAGED, Results, records
from fl_lightning.experiments.run_folder import State


def table(results: Results) -> pd.DataFrame:
    """The table that a report shows, as text: a row per cell.

    Acc and ASR are those of the last evaluation, mean (sample standard deviation) over the finished runs; then the means of the
    last evaluations, ten at most, with how many they are and of which rounds, ASR by seed, and, where the sweep has them, the
    paper's values and the differences from them, and the reductions of ASR; where runs are of several machines, which. What has
    not finished says so.
    """
    rows, machines = [], ran_on.by_cell(results)
    for index, cell in enumerate(records(results.cells)):
        states = results.runs["state"].iloc[index * len(results.seeds) : (index + 1) * len(results.seeds)].tolist()
        asr = results.runs["asr"].iloc[index * len(results.seeds) : (index + 1) * len(results.seeds)].tolist()
        row = {axis: str(cell[axis]) for axis in results.axes}
        row |= {"Acc": spread(cell, "acc"), "ASR": spread(cell, "asr")}
        row |= {"Acc, mean": number(cell["acc_last10"]), "ASR, mean": number(cell["asr_last10"]), "mean of": averaged(cell)}
        row["ASR by seed"] = " / ".join(
            number(value) if state == State.FINISHED else str(state) for value, state in zip(asr, states, strict=True)
        )
        row["n"] = str(cell["n"]) if cell["n"] == cell["planned"] else f"{cell['n']} of {cell['planned']}"
        if any(results.paper):
            row["paper Acc / ASR"] = pair(number(cell["acc_paper"]), number(cell["asr_paper"]))
            row["difference"] = pair(number(cell["acc_difference"], sign=True), number(cell["asr_difference"], sign=True))
        if results.baseline:
            row["ASR reduction"] = number(cell["asr_reduction"], sign=True)
        if results.baseline and results.attack_free:
            row["of the excess"] = "-" if math.isnan(cell["excess_reduction"]) else f"{100 * cell['excess_reduction']:.1f}%"
        if machines:
            row[ran_on.COLUMN] = machines[index] or "-"
        rows.append(row)
    return pd.DataFrame(rows)


def averaged(cell: dict[str, Any]) -> str:
    """What the means of the last evaluations are of.

    >>> averaged({"last10_evaluations": 4.0, "last10_first_round": 5.0, "last10_last_round": 20.0})
    '4, rounds 5 to 20'
    """
    count, first, last = (cell[name] for name in AVERAGED)
    return "-" if math.isnan(count) else f"{count:.0f}, rounds {first:.0f} to {last:.0f}"


def spread(cell: dict[str, Any], measure: str) -> str:
    """A mean with its sample standard deviation, where there is one."""
    deviation = cell[f"{measure}_sd"]
    return number(cell[measure]) + ("" if math.isnan(deviation) else f" ({number(deviation)})")


def number(value: float, *, sign: bool = False) -> str:
    """Three digits as in the paper's tables, without a leading zero.

    >>> number(0.5), number(1.0), number(-0.25, sign=True), number(float("nan"))
    ('.500', '1.000', '-.250', '-')
    """
    if math.isnan(value):
        return "-"
    value = round(float(value), 3) + 0.0  # no -0; NumPy rounds other numbers than Python up
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def pair(first: str, second: str) -> str:
    """Two numbers with a slash between, a dash where there is neither."""
    return "-" if first == second == "-" else f"{first} / {second}"


def markdown(frame: pd.DataFrame) -> str:
    """
    >>> print(markdown(pd.DataFrame({"rule": ["a|b"], "n": ["3"]})))
    | rule | n |
    | --- | --- |
    | a\\|b | 3 |
    """

    def line(values: list[str]) -> str:
        return "| " + " | ".join(markdown_cell(value) for value in values) + " |"

    rows = [[str(value) for value in row] for row in frame.to_numpy().tolist()]
    return "\n".join([line(list(frame.columns)), line(["---"] * len(frame.columns)), *map(line, rows)])
