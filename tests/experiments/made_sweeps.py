"""Sweeps that nobody ran: run folders with the numbers that a test gives them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_lightning.experiments.results import Results, read_results, write_index
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.sweep import Cell, Run, Sweep

Curve = Sequence[tuple[float, float]]
"""Acc and ASR of every round."""


def finished(curve: Curve) -> dict[str, object]:
    """The record of a run that had these evaluations."""
    last = curve[-10:]
    acc, asr = zip(*curve, strict=True)
    return {
        "state": "finished",
        "finished": True,
        "acc": acc[-1],
        "asr": asr[-1],
        "acc_last10": sum(acc[-10:]) / len(last),
        "asr_last10": sum(asr[-10:]) / len(last),
        "acc_last10_rounds": list(range(len(curve) - len(last) + 1, len(curve) + 1)),
        "rounds": len(curve),
    }


def made(
    root: Path,
    cells: Mapping[Any, Sequence[Curve | State]],
    axes: Sequence[str] = ("rule", "attack"),
    title: str = "Made",
    center: Mapping[str, str] | None = None,
    attack_free: Mapping[str, str] | None = None,
) -> Results:
    """A sweep's results.

    Args:
        root: an empty folder.
        cells: labels, a tuple of one per axis -> by seed, the run's curve where it is finished, or the state that it is in.
        axes: their names.
        title: of the sweep.
        center: as in a sweep's file.
        attack_free: as in a sweep's file.
    """
    seeds = list(range(len(next(iter(cells.values())))))
    planned = [Cell(dict(zip(axes, labels, strict=True)), []) for labels in cells]
    sweep = Sweep("made", title, planned, seeds, dict(center or {}), {}, dict(attack_free or {}))
    runs = []
    for place, (cell, outcomes) in enumerate(zip(planned, cells.values(), strict=True)):
        for seed, outcome in enumerate(outcomes):
            folder = RunFolder(root / "pool" / f"{place}-{seed}")
            runs.append(Run(cell, seed, {}, folder))
            if isinstance(outcome, State):
                if outcome is not State.PENDING:
                    folder.path.mkdir(parents=True)
                    folder.write_status(outcome, message="why")
                continue
            folder.path.mkdir(parents=True)
            (folder.path / "run.json").write_text(json.dumps(finished(outcome)))
            lines = [json.dumps({"round": t, "acc": acc, "asr": asr}) for t, (acc, asr) in enumerate(outcome, 1)]
            (folder.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_index(root / "sweeps" / "made", sweep, runs)
    return read_results(root / "sweeps" / "made", root / "pool")
