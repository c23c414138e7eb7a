"""Which machine runs are from, where there is more than one."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fl_lightning.experiments.results import Results, records
from fl_lightning.experiments.run_folder import State

COLUMN = "ran on"
"""Of tables; `ran_on` in `runs.csv` and `cells.csv`."""


def by_run(results: Results) -> list[str]:
    """The machine of each run, empty where it has left no record; an empty list where all are of one machine.

    A machine is called by its processor or GPU, and by what else differs where two are called alike.
    """
    found = [folder.record.get("hardware") or {} for folder in results.folders]
    machines = [dict(entries) for entries in dict.fromkeys(tuple(hardware.items()) for hardware in found if hardware)]
    return [name(hardware, machines) for hardware in found] if len(machines) > 1 else []


def name(hardware: Mapping[str, Any], machines: list[dict[str, Any]]) -> str:
    """
    >>> machines = [{"name": "H200"}, {"name": "EPYC", "processors": 2}, {"name": "EPYC", "processors": 4}]
    >>> name(machines[0], machines), name(machines[1], machines)
    ('H200', 'EPYC, processors 2')
    """
    alike = [other for other in machines if other.get("name") == hardware.get("name")]
    differing = [key for key, value in hardware.items() if any(other.get(key) != value for other in alike)]
    return ", ".join([str(hardware.get("name", "")), *(f"{key} {hardware[key]}" for key in differing)])


def by_cell(results: Results) -> list[str]:
    """The machines of each cell's finished runs, with their number where there are several; an empty list as `by_run`."""
    names = by_run(results)
    found = []
    for start in range(0, len(names), len(results.seeds)):
        part = slice(start, start + len(results.seeds))
        states = [run["state"] for run in records(results.runs.iloc[part])]
        counts = Counter(name for name, state in zip(names[part], states, strict=True) if state == State.FINISHED and name)
        found.append("; ".join(f"{name}: {n}" for name, n in counts.items()) if len(counts) > 1 else "".join(counts))
    return found
