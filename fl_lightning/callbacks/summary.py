"""The end of a run for a reader."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fl_lightning.callbacks.lifespan import in_words
from fl_lightning.training.stopwatch import ATTACKERS_TRAINING

NAMES = {"acc": "Acc", "asr": "ASR"}


def show(record: dict[str, Any], folder: Path | None) -> None:
    """Print what a run came to.

    Args:
        record: as it stands in `run.json`.
        folder: where that is; None for a trial, which writes nothing.
    """
    table = Table("", f"round {record['evaluated_round'] or '-'}", title=f"{record['rounds']} rounds, seed {record['seed']}")
    means = {measure: record[f"{measure}_last10"] for measure in NAMES}
    if any(mean is not None for mean in means.values()):
        table.add_column(of_rounds(next(record[f"{m}_last10_rounds"] for m in NAMES if means[m] is not None)))
    for measure, name in NAMES.items():
        table.add_row(name, *map(share, (record[measure], means[measure])[: len(table.columns) - 1]))
    console = Console()
    console.print(table)
    seconds_of = {phase: seconds for phase, seconds in record["seconds"].items() if phase != ATTACKERS_TRAINING}
    total = sum(seconds_of.values()) or 1.0
    phases = ", ".join(
        f"{phase.replace('_', ' ')} {seconds:.1f} ({seconds / total:.0%})" for phase, seconds in seconds_of.items()
    )
    rate = record["client_updates_per_second"]
    console.print(f"Seconds: {phases}. {rate:.1f} client updates/s on {record['world_size']} rank(s)." if rate else "")
    if "lifespan" in record:
        console.print(in_words(record["lifespan"]), soft_wrap=True, markup=False, highlight=False)
    if record["excluded_updates"]:
        console.print(f"{record['excluded_updates']} non-finite updates were excluded.")
    if record["refused_rounds"]:
        what = (
            "a step of the server, or an edit that the rule made of the model, was taken back, as it would not have been finite"
        )
        console.print(f"In {record['refused_rounds']} rounds {what}.", soft_wrap=True)
    if record["state"] != "finished":
        kept = folder is not None and (folder / "last.ckpt").exists()
        remedy = "; the same command with --ckpt_path last goes on" if kept else ""
        console.print(f"The run {record['state']}: {record['reason']}{remedy}.", soft_wrap=True, markup=False)
    console.print("A trial: nothing was written." if folder is None else f"Results: {folder / 'run.json'}", soft_wrap=True)


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def of_rounds(rounds: list[int]) -> str:
    """What a mean was taken over.

    >>> of_rounds([5, 10, 12])
    'mean of 3 evaluations, rounds 5 to 12'
    """
    return f"mean of {len(rounds)} evaluations, rounds {rounds[0]} to {rounds[-1]}"
