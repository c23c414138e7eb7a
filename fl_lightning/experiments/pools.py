"""A sweep whose runs lie on several machines' disks, brought together: each machine's `--runs` folder holds a part of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.results import INDEX, POOL, SWEEPS, Results, locate, read_index, read_results


def read_pools(sweep: Path, roots: Sequence[Path]) -> tuple[Results, Path]:
    """The results of a sweep, and its folder.

    Args:
        sweep: its file, or its folder (`<root>/sweeps/<name>`), whose root then counts as the first.
        roots: folders as `sweep --runs` fills them; `runs` for a file without any. Of a run that lies in several, `merged` says
            which counts.

    Raises:
        ConfigurationError: one of several is not such a folder, no sweep of this name is there, or runs contradict each other.
    """
    folder, pool = locate(sweep, next(iter(roots), Path("runs")))
    if folder == sweep or not roots:
        roots = [pool.parent, *roots]
    every = list({root.resolve(): root for root in roots}.values())
    if len(every) == 1:
        return read_results(folder, pool), folder
    for root in every:
        if not (root / POOL).is_dir():
            raise ConfigurationError(f"--runs {root}: it has no folder {POOL}; give a folder as `sweep --runs` fills it")
    folders = [root / SWEEPS / folder.name for root in every]
    folders = [each for each in folders if (each / INDEX).exists()] or [folder]
    results = read_results(folders[0], *(root.absolute() / POOL for root in every))
    notes = [note for each in folders[1:] if (note := left_out(folders[0], each))]
    return replace(results, notes=[*results.notes, *notes]), folders[0]


def left_out(first: Path, other: Path) -> str:
    """What is to be said of a sweep's folder that lists runs which the first one of that name does not."""
    known, there = ({run for cell in read_index(folder)["cells"] for run in cell["runs"].values()} for folder in (first, other))
    if not there - known:
        return ""
    return (
        f"{other} lists {len(there - known)} runs that {first} does not, and which are left out: there the sweep was run from "
        "another file, or with other settings on top"
    )
