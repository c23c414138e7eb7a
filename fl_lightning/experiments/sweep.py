"""From a sweep's file to its runs.

    title: Rules under the value trigger
    base: ../phishing/invariant.yaml       # one configuration or several, read in order; paths are relative to this file
    axes:
      rule:                                # a label, and what is read on top of the base
        FedAvg: {model: {aggregator: {class_path: FedAvg}}}
        Krum: ../phishing/krum.yaml
        no attack: [../phishing/fedavg.yaml, {model: {cohort: {malicious_fraction: 0}}}]
      alpha: {setting: model.aggregator.init_args.alpha, values: [0.1, 0.25]}
      seed: [0, 1, 2]
    exclude:
      - {rule: FedAvg, alpha: 0.1}         # combinations that are left out
    paper:
      - {rule: Krum, acc: 0.999, asr: 0.999}
    baseline: {rule: FedAvg}               # what the report compares ASR with
    attack_free: {rule: no attack}         # the ASR that there is without attack
    worst_case: {rule: rule, attack: attack, choose_on: [0]}    # settings by their worst attack: see `worst_attack.py`
    priority: [{rule: Krum, seed: 0}]      # what is run first: see `priority.py`
    prefix:                                # the first rounds, run once for all runs that have them in common
      rounds: 100
      settings: {model: {aggregator: {class_path: FedAvg}}}      # read on top of the run's own, for these rounds alone

A cell is a combination of all axes but `seed`; a run is a cell with a seed. With `center: {alpha: 0.25, tau: 0.6}` one axis is
varied at a time: only combinations that differ from the centre in at most one of the axes it names are run. A sweep has 100,000
runs at most. `prefix.settings` is a file, settings, or a list of these, and may be left out; see `prefix.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_lightning.errors import ConfigurationError, enumerated, nearest
from fl_lightning.experiments.kept_cells import KeptCells
from fl_lightning.experiments.planned import Cell, Forks, Run, placed
from fl_lightning.experiments.prefix import Prefix
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.settings import Layer, run_id, with_seed
from fl_lightning.experiments.worst_case_plan import WorstCasePlan, read_plan
from fl_lightning.files.yaml_files import load_yaml
from fl_lightning.options.class_settings import check_classes

if TYPE_CHECKING:
    from fl_lightning.experiments.reading import CellReader

KEYS = (
    *("name", "title", "base", "axes", "exclude", "center", "paper", "baseline", "attack_free", "worst_case", "prefix"),
    "priority",
)
"""What a sweep's file may say; docs/reference/sweep_file.md explains each."""

SETTING_KEYS = ("setting", "values")
"""Of an axis that is not given by labels."""

PREFIX_KEYS = ("rounds", "settings", "exclude")

MEASURES = ("acc", "asr")
"""What the paper's tables give for a cell."""

MOST_RUNS = 100_000
"""In a sweep, before `exclude`; their settings alone take hours to read."""

TAKEN = (
    *("seed", "id", "state", "rounds", "excluded_updates", "message", "n", "planned", *MEASURES),
    *("lifespan", "asr_reduction", "excess_reduction", "Acc", "ASR", "difference", "of the excess", "ran on", "ran_on"),
)
"""What no axis may be called, as columns of the results are."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says.

    Args:
        name: of its folder; the file's name without extension, unless the file gives one.
        title: of its report.
        cells: in the order of the axes.
        seeds: one run per cell and seed.
        center: axis -> label, where one axis is varied at a time.
        baseline: labels of the cell that ASR is compared with, empty if there is none.
        attack_free: labels of the cell without attack, empty if there is none.
        worst_case: how settings are chosen by their worst attack, None if they are not.
        prefix: the first rounds that runs share, if they do.
        priority: labels and seeds of the runs that come first, the most urgent first.
    """

    name: str
    title: str
    cells: list[Cell]
    seeds: list[int]
    center: dict[str, str] = field(default_factory=dict)
    baseline: dict[str, str] = field(default_factory=dict)
    attack_free: dict[str, str] = field(default_factory=dict)
    worst_case: WorstCasePlan | None = None
    prefix: Prefix | None = None
    priority: list[dict[str, str]] = field(default_factory=list)

    def runs(self, root: Path, given: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> list[Run]:
        """All runs, their settings read and checked, without touching a file.

        Args:
            root: the folder that holds all runs of all sweeps, `<root>/<id>` each.
            given: settings by `<Class>.<setting>`, for that class wherever a configuration names it.
            overrides: further arguments of every `fit`, such as `["--trainer.max_epochs", "5"]`.

        Raises:
            ConfigurationError: a cell's configuration has a mistake; the message names the cell.
        """
        given, known, root = dict(given or {}), set(), root.absolute()
        about = [self.seeds[0], given, list(overrides)]
        whole, forked = KeptCells([*about, None]), KeptCells([*about, self.prefix and [self.prefix.rounds, self.prefix.layers]])
        forks, reader = Forks(root), None
        runs = []
        for cell in self.cells:
            try:
                prefix = self.prefix_of(cell)
                cells = whole if prefix is None else forked
                settled = cells.find(cell.layers)
                if settled is None:
                    reader = reader or cell_reader(self.seeds[0], given, overrides)
                    settled = reader.settle(cell.layers, prefix)
                    cells.add(cell.layers, settled)
                known.update(settled.classes)
                config, clean = settled.config, settled.clean
                of_seeds = [None] * len(self.seeds) if clean is None else forks.of(config, clean, self.seeds)
                for seed, fork in zip(self.seeds, of_seeds, strict=True):
                    seeded = with_seed(config, seed)
                    folder = root / run_id(seeded, fork.run.id if fork is not None and not fork.exact else None)
                    runs.append(Run(cell, seed, placed(seeded, folder), RunFolder(folder), fork))
            except ConfigurationError as error:
                raise ConfigurationError(f"{cell.name}: {error}") from error
        whole.keep()
        forked.keep()
        check_classes(given, known)
        check_distinct(runs)
        return runs

    def prefix_of(self, cell: Cell) -> Prefix | None:
        """What a cell begins with; None where it is run from its start."""
        whole = self.prefix is None or any(matches(condition, cell.labels) for condition in self.prefix.exclude)
        return None if whole else self.prefix


def cell_reader(seed: int, given: Mapping[str, Any], overrides: Sequence[str]) -> CellReader:
    """What reads cells that are not known yet."""
    # With torch and Lightning, which a sweep whose cells are known does without.
    from fl_lightning.experiments.reading import CellReader

    return CellReader(seed, given, overrides)


# ---- reading the file ------------------------------------------------------------------------------------------------


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        ConfigurationError: it is not there, is not YAML, or says something that a sweep cannot mean.
    """
    content = load_yaml(path, f"the sweep {path}")
    try:
        return parse_sweep(content, path)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def check_name(name: str) -> None:
    """Raise unless a sweep's folder may be called so."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigurationError(f"name must consist of letters, digits, '.', '_' and '-', as it names a folder; got {name!r}")


def parse_sweep(content: Any, path: Path) -> Sweep:
    """The sweep that a file's content stands for; `path` is where the file lies, for its name and for relative paths."""
    if not isinstance(content, dict) or not isinstance(content.get("axes"), dict) or not content["axes"]:
        raise ConfigurationError("a sweep needs `axes`, a mapping with at least one entry")
    for key in content:
        if key not in KEYS:
            raise ConfigurationError(f"unknown key {key}; {nearest(str(key), KEYS)}")
    axes = {str(name): axis for name, axis in content["axes"].items()}
    for axis in axes:
        if not re.fullmatch(r"\w[\w .-]*", axis) or axis in set(TAKEN) - {"seed"}:
            raise ConfigurationError(f"axes.{axis}: an axis is named by letters and digits, and not {', '.join(TAKEN[1:])}")
    seeds = axes.pop("seed", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
        raise ConfigurationError(f"axes.seed must be a list of whole numbers in [0, 2**32), got {seeds}")
    if len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"axes.seed has a seed twice: {seeds}")
    values = {name: parse_axis(name, axis, path) for name, axis in axes.items()}
    excluded = conditions(content.get("exclude", []), "exclude", values)
    (center,) = conditions([content.get("center", {})], "center", values)
    (baseline,) = conditions([content.get("baseline", {})], "baseline", values)
    (attack_free,) = conditions([content.get("attack_free", {})], "attack_free", values)
    paper = conditions(content.get("paper", []), "paper", values, MEASURES)
    priority = conditions(content.get("priority", []), "priority", {**values, "seed": {str(seed): seed for seed in seeds}})
    if {} in priority:
        raise ConfigurationError("priority has an entry that names no axis; leave it out, as runs that none names come last")
    base = parse_layers(content.get("base", []), "base", path)
    prefix = parse_prefix(content["prefix"], values, path) if content.get("prefix") is not None else None
    check_number(values, seeds, center)
    cells = []
    for cell in combinations(values, center):
        if any(matches(condition, cell) for condition in excluded):
            continue
        layers = [layer for name, label in cell.items() for layer in values[name][label]]
        printed = {m: v for condition in paper if matches(condition, cell) for m, v in condition.items() if m in MEASURES}
        cells.append(Cell(cell, [*base, *layers], printed))
    if not cells:
        raise ConfigurationError("exclude leaves no cell of the sweep")
    name = str(content.get("name", path.stem))
    check_name(name)
    title = " ".join(str(content.get("title", name)).split())
    plan = read_plan(content["worst_case"], values, seeds) if "worst_case" in content else None
    sweep = Sweep(name, title, cells, seeds, center, baseline, attack_free, plan, prefix, priority)
    if prefix is not None and all(sweep.prefix_of(cell) is None for cell in cells):
        raise ConfigurationError("prefix.exclude leaves no cell that begins with it; leave prefix out, or exclude fewer")
    return sweep


def parse_prefix(entry: Any, values: Mapping[str, Mapping[str, Any]], file: Path) -> Prefix:
    """What stands under `prefix`; `values` are the axes with their labels, `file` is the sweep's."""
    if not isinstance(entry, dict) or "rounds" not in entry:
        raise ConfigurationError(f"prefix must have `rounds` and may have `settings` and `exclude`, got {entry}")
    for key in entry:
        if key not in PREFIX_KEYS:
            raise ConfigurationError(f"prefix: unknown key {key}; {nearest(str(key), PREFIX_KEYS)}")
    rounds = entry["rounds"]
    if type(rounds) is not int or rounds < 1:
        raise ConfigurationError(f"prefix.rounds must be a whole number of at least 1, got {rounds!r}")
    exclude = conditions(entry.get("exclude", []), "prefix.exclude", values)
    return Prefix(rounds, parse_layers(entry.get("settings"), "prefix.settings", file), exclude)


def check_number(values: Mapping[str, Mapping[str, Any]], seeds: Sequence[int], center: Mapping[str, str]) -> None:
    """Raise for a sweep of more runs than anybody can mean, before they are listed."""
    off_center = 1 + sum(len(values[axis]) - 1 for axis in center)
    number = off_center * math.prod(len(labels) for axis, labels in values.items() if axis not in center) * len(seeds)
    if number > MOST_RUNS:
        sizes = ", ".join(f"{axis} {len(labels):,}" for axis, labels in [*values.items(), ("seed", seeds)])
        raise ConfigurationError(
            f"axes: {number:,} runs, and a sweep has at most {MOST_RUNS:,}; sizes of the axes: {sizes}. Leave labels out, "
            "vary one axis at a time by `center`, or make several sweeps"
        )


def combinations(values: Mapping[str, Mapping[str, Any]], center: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The labels of each cell, the last axis varying first; those that are off the center in two axes are never made."""

    def further(axes: Sequence[str], off_center: bool) -> Iterator[tuple[str, ...]]:
        if not axes:
            yield ()
            return
        for label in values[axes[0]]:
            off = axes[0] in center and label != center[axes[0]]
            if not (off and off_center):
                yield from ((label, *rest) for rest in further(axes[1:], off or off_center))

    return (dict(zip(values, labels, strict=True)) for labels in further(list(values), False))


def parse_axis(name: str, axis: Any, path: Path) -> dict[str, list[Layer]]:
    """Label -> layers, of an axis given by labels, or by a setting and its values."""
    if isinstance(axis, dict) and set(axis) == set(SETTING_KEYS):
        if not isinstance(axis["setting"], str):
            raise ConfigurationError(f"axes.{name}.setting must be a setting's dotted name, got {axis['setting']}")
        if not isinstance(axis["values"], list) or not axis["values"]:
            raise ConfigurationError(f"axes.{name}.values must be a list with at least one value, got {axis['values']}")
        return unique(name, [(value, [nested(str(axis["setting"]), value)]) for value in axis["values"]])
    if not isinstance(axis, dict) or not axis:
        raise ConfigurationError(f"axes.{name} must map labels to settings, or have `setting` and `values`; got {axis}")
    setting = axis.get("setting")
    if isinstance(setting, str) and not setting.endswith((".yaml", ".yml")):  # no label's file
        others = [key for key in axis if key != "setting"]
        raise ConfigurationError(
            f"axes.{name} has `setting`, beside which `values` must stand, and only that; got {enumerated(others) or 'nothing'}"
        )
    for label in axis:
        if label is None or isinstance(label, bool):
            raise ConfigurationError(f"axes.{name}: the label {label!r} is no text to YAML; put it in quotes")
    return unique(name, [(label, parse_layers(layers, f"axes.{name}.{label}", path)) for label, layers in axis.items()])


def unique(name: str, labelled: Sequence[tuple[Any, list[Layer]]]) -> dict[str, list[Layer]]:
    """The layers by label, after seeing that no two labels look the same."""
    found: dict[str, list[Layer]] = {}
    for label, layers in labelled:
        if not str(label).strip():
            raise ConfigurationError(f"axes.{name} has a label that is empty; give it a text, by which tables call its cells")
        if str(label) in found:
            raise ConfigurationError(f"axes.{name} has {label} twice")
        found[str(label)] = layers
    return found


def parse_layers(layers: Any, name: str, path: Path) -> list[Layer]:
    """Files, with paths made absolute, and settings, in order; None stands for nothing. `path` is the sweep's own."""
    found: list[Layer] = []
    for layer in layers if isinstance(layers, list) else [] if layers is None else [layers]:
        if isinstance(layer, dict):
            found.append(layer)
        elif isinstance(layer, str):
            file = (path.parent / layer).resolve()
            if file == path.resolve():
                raise ConfigurationError(f"{name}: {layer} is this very sweep; give the configuration of a run")
            if not file.is_file():
                raise ConfigurationError(f"{name}: there is no file {file}")
            found.append(str(file))
        else:
            raise ConfigurationError(f"{name} must be a file, settings, or a list of these; got {layer!r}")
    return found


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """
    >>> nested("model.local.epochs", 2)
    {'model': {'local': {'epochs': 2}}}
    """
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


def conditions(
    entries: Any, name: str, values: Mapping[str, Mapping[str, Any]], measures: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Entries as those of `exclude`, with labels as text, after seeing that every axis and label in them exists."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(f"{name} must be a list of mappings, got {entries}")
    found = []
    for entry in entries:
        condition: dict[str, Any] = {}
        for key, value in entry.items():
            if key in measures:
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    raise ConfigurationError(f"{name}: {key} must be a number, got {value!r}")
                if not 0 <= value <= 1:
                    raise ConfigurationError(f"{name}: {key} is a share and lies in [0, 1], got {value!r}")
                condition[key] = float(value)
            elif key not in values:
                raise ConfigurationError(f"{name}: there is no axis {key}; {nearest(str(key), [*values, *measures])}")
            elif str(value) not in values[key]:
                raise ConfigurationError(f"{name}: axis {key} has no {value}; {nearest(str(value), values[key])}")
            else:
                condition[key] = str(value)
        found.append(condition)
    return found


def matches(condition: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a cell has all the labels that a condition names."""
    return all(labels[axis] == label for axis, label in condition.items() if axis in labels)


def check_distinct(runs: Sequence[Run]) -> None:
    """Raise if two runs are the same: an axis that changes nothing."""
    seen: dict[str, Run] = {}
    for run in runs:
        if run.id in seen:
            raise ConfigurationError(f"{seen[run.id].name!r} and {run.name!r} are the same run; their settings are equal")
        seen[run.id] = run
