"""What a sweep has planned: cells, their runs, and the runs that others begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_lightning.experiments.prefix import FOLDER, rule_of, same_rounds
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.settings import Layer, run_id, with_seed

POOL = "pool"
"""In the folder of all runs, with one folder per run; shared by all sweeps."""

SWEEPS = "sweeps"
"""Beside it, with one folder per sweep."""

UNVARIED = "base"
"""What the only cell of a sweep is called whose seeds alone vary."""


@dataclass(frozen=True)
class Cell:
    """A combination of all axes but the seed.

    Args:
        labels: axis -> label.
        layers: what its configuration is read from, in order.
        paper: the paper's values by measure; empty where it has none.
    """

    labels: dict[str, str]
    layers: list[Layer]
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return ", ".join(self.labels.values()) or UNVARIED


@dataclass(frozen=True)
class Run:
    """A cell with a seed: one `fit`.

    Args:
        cell: the cell.
        seed: the experiment's seed.
        config: all settings.
        folder: where it runs; named by `run_id`.
        fork: what it begins with; None for a run from its start.
    """

    cell: Cell
    seed: int
    config: dict[str, Any]
    folder: RunFolder
    fork: Fork | None = None

    @property
    def id(self) -> str:
        return self.folder.path.name

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"


@dataclass(frozen=True)
class Fork:
    """What a run begins with: the rounds of another one.

    Args:
        run: the prefix; its cell has a name and no labels of axes.
        round: how many rounds that are.
        exact: whether the run is the same as from its start.
        rule: the class of the prefix's rule, where the run has another one.
    """

    run: Run
    round: int
    exact: bool
    rule: str | None


class Forks:
    """What the runs of a cell begin with, each prefix planned once for all cells that have it.

    Args:
        root: the folder that holds all runs.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root.absolute().parent / FOLDER
        self._prefixes: dict[tuple[str, int], Run] = {}

    def of(self, config: Mapping[str, Any], clean: Mapping[str, Any], seeds: Sequence[int]) -> list[Fork]:
        """What a cell's runs begin with, by seed.

        Args:
            config: the cell's settings, with any seed.
            clean: those of its prefix, with the same one.
            seeds: of the runs.
        """
        rule = rule_of(clean) if config["model"]["aggregator"] != clean["model"]["aggregator"] else None
        exact, text = same_rounds(config, clean), repr(clean)
        return [Fork(self.prefix(clean, text, seed), clean["trainer"]["max_epochs"], exact, rule) for seed in seeds]

    def prefix(self, clean: Mapping[str, Any], text: str, seed: int) -> Run:
        """A prefix's run; `text` is what its settings are known by."""
        if (text, seed) not in self._prefixes:
            config = with_seed(clean, seed)
            name = run_id(config)
            folder = self.folder / name
            cell = Cell({"prefix": f"prefix {name}"}, [])
            self._prefixes[text, seed] = Run(cell, seed, placed(config, folder), RunFolder(folder))
        return self._prefixes[text, seed]


def placed(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A run's settings with its folder among them."""
    return {**config, "trainer": {**config["trainer"], "default_root_dir": str(folder)}}


def prefixes(runs: Iterable[Run]) -> list[Run]:
    """The prefixes of runs, each once, in the order of the runs."""
    return list({run.fork.run.id: run.fork.run for run in runs if run.fork is not None}.values())


def missing_prefixes(runs: Iterable[Run]) -> list[Run]:
    """The prefixes that have yet to come to their end, for the sake of runs that have not begun."""
    return [prefix for prefix in prefixes(filter(waits, runs)) if not prefix.folder.finished]


def waits(run: Run) -> bool:
    """Whether a run has yet to begin."""
    return not run.folder.finished and not run.folder.begun
