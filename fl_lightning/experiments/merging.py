"""One run that lies in several folders, as machines that shared a sweep's work have left it: which one counts.

The one that is finished, else the one that is furthest; of equals, the one whose folder was named first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.run_folder import RunFolder, State, reached

SHOWN_LETTERS = 12
"""Of a digest in a message."""


def merged(places: Sequence[Path]) -> tuple[RunFolder, str]:
    """The folder of a run that counts, and what is to be said of the others; empty where they do not contradict it.

    Args:
        places: the run's folders, at least one; not all of them need be there.

    Raises:
        ConfigurationError: it is another experiment in one of them, or two ended with different weights where the same were
            due: on the same hardware with the same versions, on CPUs or with `trainer.deterministic`.
    """
    found = [RunFolder(place) for place in places]
    if len(found) == 1:
        return found[0], ""
    records = {run.path: run.record for run in found}
    check_same_experiment(records)
    best = max(found, key=lambda run: progress(run, records[run.path]))  # the first of equals
    others = [run for run in found if run is not best and run.finished]
    pairs = [(one, difference(one.path, other.path, records)) for one, other in combinations([best, *others], 2)]
    return best, "; ".join(said for one, said in pairs if said and one is best)


def progress(run: RunFolder, record: Mapping[str, Any]) -> tuple[bool, int, bool]:
    """By which folders of a run are compared: finished, rounds done, whether it was ever started."""
    return run.finished, reached(run, dict(record)), run.state is not State.PENDING


def check_same_experiment(records: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise where folders of one name are of different experiments, as a run that began with other weights is."""
    digests = {path: record["config_hash"] for path, record in records.items() if record.get("config_hash")}
    for path, digest in digests.items():
        first = next(iter(digests))
        if digest != digests[first]:
            raise ConfigurationError(
                f"{first} and {path} are not the same experiment: config_hash is {digests[first]:.{SHOWN_LETTERS}} in the one "
                f"run.json and {digest:.{SHOWN_LETTERS}} in the other; leave one of the two folders out"
            )


def difference(one: Path, other: Path, records: Mapping[Path, Mapping[str, Any]]) -> str:
    """What is to be said of two finished runs with different weights; empty where those are the same, or not known."""
    here, there = records[one], records[other]
    digests = [record.get("weights_sha256") for record in (here, there)]
    if None in digests or digests[0] == digests[1]:
        return ""
    where = [f"{path} ({', '.join(told(record))})" for path, record in ((one, here), (other, there))]
    alike = all(here.get(name) == there.get(name) for name in ("hardware", "versions"))
    if alike and repeatable(here) and repeatable(there):
        raise ConfigurationError(
            f"{where[0]} and {where[1]} are the same run, finished on the same hardware with the same versions, and their "
            "weights differ: one of them is not what was computed there; move one of the folders away, or run it again"
        )
    why = "GPUs add up in any order without trainer.deterministic" if alike else "the machines or versions differ"
    return f"{where[0]} and {where[1]} are the same run with different weights, as {why}; the first is shown"


def told(record: Mapping[str, Any]) -> list[str]:
    """A finished run in few words."""
    measures = [f"{name} {record[key]:.4f}" for name, key in (("Acc", "acc"), ("ASR", "asr")) if is_number(record.get(key))]
    name = (record.get("hardware") or {}).get("name", "an unknown machine")
    return [str(name), *measures, f"weights {record['weights_sha256']:.{SHOWN_LETTERS}}"]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def repeatable(record: Mapping[str, Any]) -> bool:
    """Whether the same run on the same machine ends with the same bits."""
    trainer = (record.get("config") or {}).get("trainer") or {}
    return (record.get("hardware") or {}).get("device") == "cpu" or trainer.get("deterministic") is True
