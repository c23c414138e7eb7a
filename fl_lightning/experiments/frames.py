"""Runs as data frames, of a sweep or not: a row per run, per evaluation, or per client and round; and the trained module.

A number that was changed in a record after the run is not given out: such a run is `failed`, and its measures are NaN.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.merging import merged
from fl_lightning.experiments.packs import ENDING, root_of
from fl_lightning.experiments.packs import named as in_terms_of
from fl_lightning.experiments.results import outcome
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.files.round_tables import read_round_tables
from fl_lightning.files.run_files import CLIENTS, EARLIER
from fl_lightning.files.yaml_files import load_yaml

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

PARTS = {"rule": ("model", "aggregator"), "attacks": ("model", "attacks"), "model": ("model", "client"), "data": ("data",)}
"""Columns that name classes, and where in a configuration they stand."""

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One folder, or several that hold parts of the same runs, as of several machines; any of them may be a file of `pack`."""


def runs(folder: Folders) -> pd.DataFrame:
    """A row per run in a folder, or in folders inside it at any depth, in the order of their names.

    Args:
        folder: of a run, of several, or the pool of a sweep. Runs that were put aside (`earlier/`) are left out. Several
            such folders are read as one: a run that lies in several at the same place counts once, as it is finished or
            furthest; see `merged`. A file of `fl-lightning pack` stands for the folder that `sweep --runs` filled.

    Returns:
        `run` (the folder, relative to the one given), `rule`, `attacks`, `model`, `data` (names of classes), `seed`, `state`,
        `acc` and `asr` (in [0, 1]; NaN unless finished), their means over the last evaluations, `rounds`,
        `excluded_updates`, `message`; where a run has `BackdoorLifespan`, `lifespan` (its state), the ASR at the end of the
        attack, and the bounds of each lifespan in rounds, `lifespan_first_fall` and `lifespan_first_fall_most` for example,
        of which the second is NaN where the backdoor outlived the run; where it has `DetectionMetrics` and a rule that judges
        clients, `detection_tpr`, `detection_fpr` and `detection_auroc`, over all attacked rounds.

    Raises:
        ConfigurationError: there is no such folder, or no run in it; runs at the same place contradict each other.

    Example:
        >>> from fl_lightning.experiments.frames import runs
        >>> runs("runs").groupby("rule")[["acc", "asr"]].mean()  # doctest: +SKIP
    """
    found = list(folders(folder))
    rows = [{"run": name, **classes(run), "seed": run.record.get("seed"), **outcome(run)} for name, run in found]
    return pd.DataFrame(rows)


def curves(folder: Folders) -> pd.DataFrame:
    """A row per evaluation of each of these runs: `run`, `round` and what was measured, such as `acc` and `asr`.

    Raises:
        ConfigurationError: as `runs`.
    """
    rows = [{"run": name, **entry} for name, run in folders(folder) for entry in run.metrics]
    return pd.DataFrame(rows, columns=None if rows else ["run", "round", "acc", "asr"])


def clients(folder: Folders) -> pd.DataFrame:
    """A row per client and round of each of these runs that has a `ClientRecord`, as far as it is written.

    Returns:
        `run`, the columns of `ClientRecord` without `logged`, and instead of that a column `client/<name>` for each name that
        clients logged, such as `client/loss`; NaN where there is nothing. `round` counts from 0: what `curves` has at round
        t + 1 was measured after round t.

    Raises:
        ConfigurationError: as `runs`; no run has such a record; a file of one is damaged.

    Example:
        >>> from fl_lightning.experiments.frames import clients
        >>> clients("runs/x").query("round == 7 and verdict == 0")[["client", "malicious"]]  # doctest: +SKIP
    """
    tables = [(name, client_table(run)) for name, run in folders(folder)]
    found = [table.assign(run=name) for name, table in tables if table is not None]
    if not found:
        raise ConfigurationError(
            f"no run in {' or in '.join(map(str, several(folder)))} has rows of clients, in a folder {CLIENTS}/; add "
            "the callback ClientRecord to trainer.callbacks, and run it again; one with it that was killed writes those of its "
            "last rounds as it goes on (--ckpt_path last)"
        )
    frame = pd.concat(found, ignore_index=True)
    return frame[["run", *(column for column in frame.columns if column != "run")]]


def client_table(run: RunFolder) -> pd.DataFrame | None:
    """The rows of `ClientRecord` that a run has, what was logged in columns of its own; None without any."""
    table = read_round_tables(run.path / CLIENTS)
    if table is None or not table.num_rows:
        return None
    logged = pd.DataFrame([dict(entries) for entries in table["logged"].to_pylist()]).add_prefix("client/")
    return pd.concat([table.drop_columns("logged").to_pandas(), logged], axis=1)


def load_model(run: str | os.PathLike[str]) -> nn.Module:
    """The trained client module of a run, on the CPU and in evaluation mode; as `Federation.load`."""
    from fl_lightning.federation import Federation  # with torch, which tables of numbers do without

    return Federation.load(run)


def folders(folder: Folders) -> Iterator[tuple[str, RunFolder]]:
    """The runs in a folder, or in several, by their names relative to it; one of several that is a run has its own name."""
    given, places = several(folder), dict[Path, list[Path]]()
    roots = [root_of(place) for place in given]
    for root in roots:
        if not root.is_dir():
            raise ConfigurationError(
                f"there is no folder {root}; give that of a run, one with runs in it, or a file of `pack` (*{ENDING})"
            )
        found = [file.parent for file in root.rglob("run.json") if EARLIER not in file.relative_to(root).parts]
        if not found:
            said = f"there is no run in {root}: no run.json there or in a folder inside it"
            raise ConfigurationError(in_terms_of(said, given))
        for path in found:
            name = path.relative_to(root) if path != root or len(roots) == 1 else Path(root.resolve().name)
            places.setdefault(name, []).append(path)
    for name in sorted(places):
        try:
            run, note = merged(places[name])
        except ConfigurationError as error:
            raise ConfigurationError(in_terms_of(str(error), given)) from error
        if note:
            log.warning("%s", in_terms_of(note, given))
        yield str(name), run


def several(folder: Folders) -> list[Path]:
    """The folders that are given, each once."""
    given = [folder] if isinstance(folder, (str, os.PathLike)) else folder
    if not given:
        raise ConfigurationError("no folder is given; give that of a run, or one with runs in it")
    return list({Path(root).resolve(): Path(root) for root in given}.values())


def classes(run: RunFolder) -> dict[str, str]:
    """The names of the classes that a run is made of; empty where its configuration cannot be read."""
    try:
        config = load_yaml(run.config, "the configuration") if run.config.is_file() else {}
    except ConfigurationError:
        config = {}
    return {column: " + ".join(named(config, place)) for column, place in PARTS.items()}


def named(config: Any, place: tuple[str, ...]) -> list[str]:
    """The classes at a place of a configuration."""
    for key in place:
        config = config.get(key) if isinstance(config, Mapping) else None
    entries = config if isinstance(config, list) else [config]
    paths = [entry.get("class_path") if isinstance(entry, Mapping) else entry for entry in entries]
    return [path.rpartition(".")[2] for path in paths if isinstance(path, str)]
