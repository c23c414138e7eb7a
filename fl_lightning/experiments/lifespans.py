"""Lifespans of backdoors in a sweep's report, and the attack's window in its curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from fl_lightning.callbacks.lifespan import span_text
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.run_folder import RunFolder, reached
from fl_lightning.experiments.tables import number

SHADE = "#8a6d3b"


def found(record: dict[str, Any]) -> dict[str, Any]:
    """What `BackdoorLifespan` has written into a run's record; empty where there was none."""
    kept = record.get("lifespan")
    return kept if isinstance(kept, dict) else {}


def lifespan_table(results: Results) -> pd.DataFrame | None:
    """The report's table, as text, with a row per cell; None where no run has a lifespan.

    Lifespans are not averaged, as some are censored: they stand side by side, in the order of the seeds.
    """
    records = [[found(run.record) if run.finished else {} for run in results.group(i)] for i in range(len(results.cells))]
    if not any(kept for group in records for kept in group):
        return None
    rows = []
    for cell, group in enumerate(records):
        first = results.runs.iloc[cell * len(results.seeds)]
        row = {axis: str(first[axis]) for axis in results.axes}
        ends = [kept["asr_end"] for kept in group if kept.get("asr_end") is not None]
        row["ASR at the end"] = number(sum(ends) / len(ends)) if ends else "-"
        for name, title in TITLES.items():
            row[title] = " / ".join(one(kept, name) for kept in group)
        for k in sorted({int(k) for kept in group for k in kept.get("retention") or {}}):
            shares = [kept["retention"].get(str(k), {}).get("share") for kept in group if kept]
            shares = [share for share in shares if share is not None]
            row[f"left after {k}"] = number(sum(shares) / len(shares)) if shares else "-"
        rows.append(row)
    return pd.DataFrame(rows).fillna("-")


TITLES = {"first_fall": "first fall", "last_above": "last above", "half": "half", "clean": "as without attack"}


def one(kept: dict[str, Any], name: str) -> str:
    """A seed's lifespan."""
    if not kept or kept["state"] in ("unknown", "no attack"):
        return "-"
    return "not injected" if kept["state"] == "not injected" and name in ("first_fall", "last_above") else span_text(kept[name])


def shade_window(axes: Axes, folders: Sequence[RunFolder]) -> None:
    """Shade the rounds of an attack that does not go on from the first round to the last, as the first run has them."""
    for run in folders:
        if record := run.record:
            for first, last in window(record.get("config") or {}, reached(run, record)):
                axes.axvspan(first, last, color=SHADE, alpha=0.15, linewidth=0)
            return


def window(config: Mapping[str, Any], rounds: int) -> list[tuple[int, int]]:
    """Where an attack begins and ends, in rounds done; a pair for each round of `single_shot`, none for an attack throughout.

    >>> window({"model": {"attacks": ["PGD"], "cohort": {"start_round": 20, "end_round": 40}}}, rounds=60)
    [(20, 40)]
    """
    model = config.get("model") or {}
    cohort = model.get("cohort") or {}
    if not model.get("attacks") or cohort.get("malicious_fraction") == 0:
        return []
    if cohort.get("rounds"):
        return [(t, t + 1) for t in sorted(set(cohort["rounds"])) if t < rounds]
    start, end = cohort.get("start_round") or 0, cohort.get("end_round")
    last = rounds if end is None else min(end, rounds)
    return [(start, last)] if start < last and (start, end) != (0, None) else []
