"""Which runs of a sweep come first."""

import io
import json
import random
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fl_lightning import ConfigurationError
from fl_lightning.experiments import command, scheduler
from fl_lightning.experiments.planned import Cell, Fork, Run
from fl_lightning.experiments.priority import in_order, with_prefixes
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.scheduler import run_all
from fl_lightning.experiments.sweep import read_sweep

AXES = "base: {BASE}\naxes: {rule: {a: null, b: null, c: null}, tau: {setting: x, values: [0.1, 0.25]}, seed: [0, 1]}\n"


def planned(root: Path, rules: str = "abc", seeds: tuple[int, ...] = (0, 1), prefix: str = "") -> list[Run]:
    """Runs of a cell per rule; those of rule r begin with a prefix that `prefix` has at the same place, if any."""
    runs = []
    for rule, shared in zip(rules, prefix or " " * len(rules), strict=True):
        cell = Cell({"rule": rule}, [])
        for seed in seeds:
            before = Run(Cell({"prefix": "p"}, []), seed, {"trainer": {}}, RunFolder(root / "prefixes" / f"{shared}{seed}"))
            fork = None if shared == " " else Fork(before, 1, True, None)
            runs.append(Run(cell, seed, {"trainer": {}}, RunFolder(root / "pool" / f"{rule}{seed}"), fork))
    return runs


def names(runs: list[Run]) -> str:
    return " ".join(run.id for run in runs)


@pytest.mark.parametrize(
    ("priority", "order"),
    [
        ([], "a0 a1 b0 b1 c0 c1"),
        ([{"rule": "c"}], "c0 c1 a0 a1 b0 b1"),
        ([{"seed": "1"}], "a1 b1 c1 a0 b0 c0"),
        ([{"rule": "b", "seed": "1"}, {"seed": "0"}], "b1 a0 b0 c0 a1 c1"),
        ([{"seed": "0"}, {"rule": "b", "seed": "0"}], "a0 b0 c0 a1 b1 c1"),  # the first entry that names a run counts
    ],
)
def test_entries_come_in_their_order_and_what_none_names_last(tmp_path, priority, order):
    assert names(in_order(planned(tmp_path), priority)) == order


def test_any_order_is_that_of_the_first_matching_entry(tmp_path):
    """Against the definition, read run by run."""
    draws = random.Random(0)
    runs = planned(tmp_path, "abcd", (0, 1, 2))
    values = {"rule": "abcd", "seed": "012"}
    for _ in range(50):
        named_axes = [[axis for axis in values if draws.random() < 0.6] for _ in range(draws.randrange(5))]
        priority = [{axis: draws.choice(values[axis]) for axis in axes} for axes in named_axes if axes]
        left, expected = list(runs), []
        for entry in priority:
            named = [run for run in left if {"rule": run.cell.labels["rule"], "seed": str(run.seed)}.items() >= entry.items()]
            expected += named
            left = [run for run in left if run not in named]
        assert in_order(runs, priority) == [*expected, *left]


@pytest.mark.parametrize(
    ("priority", "order"),
    [
        ([], "p0 p1 q0 q1 a0 a1 b0 b1 c0 c1"),  # prefixes first, as all wait for them
        ([{"seed": "1"}], "p1 q1 a1 b1 c1 p0 q0 a0 b0 c0"),
        ([{"rule": "c"}], "q0 q1 c0 c1 p0 p1 a0 a1 b0 b1"),
        ([{"rule": "b", "seed": "1"}, {"rule": "c", "seed": "0"}], "p1 b1 q0 c0 p0 q1 a0 a1 b0 c1"),
    ],
)
def test_a_prefix_is_as_urgent_as_its_most_urgent_run(tmp_path, priority, order):
    assert names(with_prefixes(in_order(planned(tmp_path, prefix="ppq"), priority), priority)) == order


def test_a_prefix_is_not_urgent_for_the_sake_of_a_run_that_has_begun(tmp_path):
    runs = planned(tmp_path, prefix="ppq", seeds=(0,))
    priority = [{"rule": "a"}, {"rule": "c"}]
    assert names(with_prefixes(in_order(runs, priority), priority)) == "p0 a0 q0 c0 b0"
    runs[0].folder.path.mkdir(parents=True)
    (runs[0].folder.path / "last.ckpt").touch()
    assert names(with_prefixes(in_order(runs, priority), priority)) == "a0 q0 c0 p0 b0"


def test_runs_are_started_in_that_order(tmp_path, monkeypatch):
    runs = planned(tmp_path, prefix=" pq", seeds=(0,))
    finish = (
        "import json, sys; open('order', 'a').write(sys.argv[1] + ' ');"
        "open(sys.argv[2] + '/run.json', 'w').write(json.dumps({'finished': True, 'rounds': 1}))"
    )
    monkeypatch.setattr(
        scheduler, "fit_command", lambda folder, ranks: [sys.executable, "-c", finish, folder.path.name, str(folder.path)]
    )
    monkeypatch.setattr(scheduler.forks, "fork", lambda *_: "")
    priority = [{"rule": "c"}, {"rule": "a"}]
    run_all(in_order(runs, priority), jobs=1, ranks=None, console=Console(file=io.StringIO()), priority=priority)
    assert Path("order").read_text().split() == ["q0", "c0", "a0", "p0", "b0"]


def test_arrays_of_slurm_have_that_order(tmp_path, monkeypatch):
    submitted: list[list[str]] = []

    def submit(folders, *_):
        submitted.append([folder.name for folder in folders])
        return ["1"]

    monkeypatch.setattr(command, "submit", submit)
    options, _ = command.parse_sweep_command(["some.yaml", "--slurm"])
    command.send(in_order(planned(tmp_path, prefix="ppq"), [{"seed": "1"}]), tmp_path, options, Console(file=io.StringIO()))
    assert submitted == [["p1", "q1", "p0", "q0"], ["a1", "b1", "c1", "a0", "b0", "c0"]]


def test_a_sweeps_file_says_it(tmp_path):
    (tmp_path / "some.yaml").write_text(AXES + "priority: [{rule: b, tau: 0.25}, {seed: 1}]\n")
    assert read_sweep(tmp_path / "some.yaml").priority == [{"rule": "b", "tau": "0.25"}, {"seed": "1"}]


def test_the_index_stays_in_the_files_order(tmp_path, monkeypatch):
    """So that a report is the same, in whatever order runs were."""
    monkeypatch.setattr(command, "run_all", lambda runs, **_: command.Counter(run.folder.state for run in runs))
    base = Path(__file__).parents[2] / "configs" / "digits" / "pixel_trigger.yaml"
    found = []
    for priority in ("[]", "[{seed: 1}]"):
        (tmp_path / "some.yaml").write_text(f"base: {base}\naxes: {{rule: {{a: null}}, seed: [0, 1]}}\npriority: {priority}\n")
        with pytest.raises(SystemExit):
            command.sweep(["some.yaml"])
        found.append(json.loads((tmp_path / "runs" / "sweeps" / "some" / "sweep.json").read_text()))
    assert found[0] == found[1]
    assert list(found[0]["cells"][0]["runs"]) == ["0", "1"]


@pytest.mark.parametrize(
    ("priority", "message"),
    [
        ("{rule: a}", r"priority must be a list of mappings, got \{'rule': 'a'\}"),
        ("[a]", r"priority must be a list of mappings, got \['a'\]"),
        ("null", "priority must be a list of mappings, got None"),
        ("[{rules: a}]", r"priority: there is no axis rules; did you mean rule\?"),
        ("[{sead: 0}]", r"priority: there is no axis sead; did you mean seed\?"),
        ("[{rule: A}]", "priority: axis rule has no A; "),
        ("[{rule: [a, b]}]", r"priority: axis rule has no \['a', 'b'\]"),
        ("[{seed: 7}]", "priority: axis seed has no 7; "),
        ("[{seed: true}]", "priority: axis seed has no True; "),
        ("[{acc: 0.5}]", "priority: there is no axis acc; "),
        ("[{tau: 0.3}]", r"priority: axis tau has no 0\.3; "),
        ("[{rule: a}, {}]", "priority has an entry that names no axis; leave it out"),
    ],
)
def test_a_mistake_is_named(tmp_path, priority, message):
    (tmp_path / "some.yaml").write_text(f"{AXES}priority: {priority}\n")
    with pytest.raises(ConfigurationError, match=message) as raised:
        read_sweep(tmp_path / "some.yaml")
    assert "some.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)
