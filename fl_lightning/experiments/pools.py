"""A sweep whose runs lie on several machines' disks, brought together: each machine's `--runs` folder holds a part of them.

Any of these folders may be a file of `fl-lightning pack`; see `packs.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.merging import merged
from fl_lightning.experiments.packs import check_root, is_pack, named, root_of
from fl_lightning.experiments.planned import POOL, SWEEPS, Run
from fl_lightning.experiments.results import INDEX, Results, locate, read_index, read_results


def read_pools(sweep: Path, roots: Sequence[Path]) -> tuple[Results, Path]:
    """The results of a sweep, and its folder.

    Args:
        sweep: its file, or its folder (`<root>/sweeps/<name>`), whose root then counts as the first.
        roots: folders as `sweep --runs` fills them, or files of `pack`; `runs` for a file without any. Of a run that lies in
            several, `merged` says which counts.

    Raises:
        ConfigurationError: one of several is not such a folder, no sweep of this name is there, or runs contradict each other.
    """
    try:
        results, folder = brought_together(sweep, [root_of(root) for root in roots])
    except ConfigurationError as error:
        raise ConfigurationError(named(str(error), roots)) from error
    if any(folder.is_relative_to(root_of(root)) for root in roots if is_pack(root)):  # where nothing is to be written
        folder = next((root for root in roots if not is_pack(root)), Path("runs")) / SWEEPS / folder.name
    return replace(results, notes=[named(note, roots) for note in results.notes]), folder


def brought_together(sweep: Path, roots: Sequence[Path]) -> tuple[Results, Path]:
    """The same of folders alone."""
    folder, pool = locate(sweep, next(iter(roots), Path("runs")))
    if folder == sweep or not roots:
        roots = [pool.parent, *roots]
    every = list({root.resolve(): root for root in roots}.values())
    if len(every) == 1:
        return read_results(folder, pool), folder
    for root in every:
        check_root(root, "--runs")
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


def with_results_of(runs: Sequence[Run], roots: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """A sweep's runs, those that are finished elsewhere in the folders of where they are, and what is to be said of them.

    Args:
        runs: as planned.
        roots: folders of all runs, or files of `pack`, which are read and left as they are.

    Raises:
        ConfigurationError: one is neither, or a run there contradicts this one's own.
    """
    folders, found, notes = [root_of(root) for root in roots], [], []
    for folder in folders:
        check_root(folder, "--have")
    for run in runs:
        try:
            best, note = merged([run.folder.path, *(folder / POOL / run.id for folder in folders)])
        except ConfigurationError as error:
            raise ConfigurationError(named(str(error), roots)) from error
        found.append(replace(run, folder=best) if best.finished else run)
        notes += [named(note, roots)] if note else []
    return found, notes
