"""Which runs of a sweep come first: what its file lists under `priority`, entry by entry.

priority:
  - {rule: Invariant, seed: 0}         # these first,
  - {seed: 0}                          # then the first seed of every cell; all others follow in the file's order
"""

from collections.abc import Mapping, Sequence

from fl_lightning.experiments.planned import Run, missing_prefixes, waits
from fl_lightning.experiments.sweep import matches

Priority = Sequence[Mapping[str, str]]
"""Conditions, each a label by axis and perhaps a `seed`; the most urgent first."""


def place(run: Run, priority: Priority) -> int:
    """The position of the first entry that names a run; behind all of them where none does."""
    labels = {**run.cell.labels, "seed": str(run.seed)}
    return next((i for i, entry in enumerate(priority) if matches(entry, labels)), len(priority))


def in_order(runs: Sequence[Run], priority: Priority) -> list[Run]:
    """The runs, the most urgent first, and as they stood where they are equally urgent."""
    return sorted(runs, key=lambda run: place(run, priority))


def with_prefixes(runs: Sequence[Run], priority: Priority) -> list[Run]:
    """The runs in order, and with them the prefixes that have yet to come to their end.

    A prefix is as urgent as the most urgent of the runs that wait for it, and comes before all that are as urgent as that.
    """
    places = [place(run, priority) for run in runs]
    of_prefixes: dict[str, int] = {}
    for run, urgency in zip(runs, places, strict=True):
        if run.fork is not None and waits(run):
            of_prefixes[run.fork.run.id] = min(urgency, of_prefixes.get(run.fork.run.id, urgency))
    shared = missing_prefixes(runs)
    urgencies = [*(of_prefixes[prefix.id] for prefix in shared), *places]
    every = zip(urgencies, [*shared, *runs], strict=True)  # a sort keeps prefixes before runs of the same urgency
    return [run for _, run in sorted(every, key=lambda entry: entry[0])]
