"""A sweep whose runs lie on several machines' disks: which one counts, what contradicts what, and which machine it was."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fl_lightning import ConfigurationError
from fl_lightning.cli import main
from fl_lightning.experiments import curves, runs
from fl_lightning.experiments.merging import merged
from fl_lightning.experiments.planned import Cell, Run
from fl_lightning.experiments.pools import read_pools
from fl_lightning.experiments.ran_on import by_cell, by_run
from fl_lightning.experiments.results import write_index
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.sweep import Sweep

CPU = {"device": "cpu", "name": "EPYC", "processors": 2}
GPU = {"device": "cuda", "name": "H200", "processors": 16}


def run(folder: Path, rounds: int, state: str = "finished", hardware: Any = CPU, digest: str = "a", **more: Any) -> None:
    """A run's folder as it is after so many of 4 rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "state": state,
        "finished": state == "finished",
        "rounds": rounds,
        "hardware": hardware,
        "versions": {"torch": "2"},
    }
    record |= {"acc": 0.5, "asr": 0.25, "world_size": 1, "weights_sha256": digest * 64 if state == "finished" else None}
    (folder / "run.json").write_text(json.dumps({**record, "config_hash": "f" * 64, **more}))
    lines = [json.dumps({"round": t, "acc": t / 8, "asr": 0.25}) for t in range(1, rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def index(root: Path, rules: str = "xy", seeds: tuple[int, ...] = (0, 1)) -> Path:
    """The folder of a sweep that plans a cell per rule."""
    sweep = Sweep("some", "Some", [Cell({"rule": rule}, []) for rule in rules], list(seeds))
    planned = [
        Run(cell, seed, {}, RunFolder(root / "pool" / f"{cell.name}{seed}")) for cell in sweep.cells for seed in sweep.seeds
    ]
    write_index(root / "sweeps" / "some", sweep, planned)
    (root / "pool").mkdir(exist_ok=True)
    return root / "sweeps" / "some"


def states(folder: Path, *roots: Path) -> list[str]:
    return read_pools(folder, roots)[0].runs["state"].tolist()


@pytest.mark.parametrize(
    ("a", "b", "taken"),
    [
        ((4, "finished"), (2, "interrupted"), "A"),
        ((2, "interrupted"), (4, "finished"), "B"),
        ((3, "failed"), (2, "interrupted"), "A"),
        ((2, "stopped"), (3, "failed"), "B"),
        ((2, "interrupted"), (2, "failed"), "A"),  # equals: the first named
        ((4, "finished"), (4, "finished"), "A"),
        ((0, "failed"), None, "A"),
        (None, (0, "failed"), "B"),
        ((0, "interrupted"), (0, "interrupted"), "A"),
        (None, None, "A"),
    ],
)
def test_the_finished_run_counts_and_else_the_furthest(tmp_path, a, b, taken):
    for name, made in (("A", a), ("B", b)):
        if made:
            run(tmp_path / name, *made)
    found, note = merged([tmp_path / "A", tmp_path / "B"])
    assert (found.path.name, note) == (taken, "")


def test_a_run_that_was_killed_is_as_far_as_its_evaluations(tmp_path):
    run(tmp_path / "A", 1, "interrupted")
    run(tmp_path / "B", 3, "running")
    (tmp_path / "B" / "run.json").write_text(json.dumps({"state": "running", "finished": False, "rounds": 0}))
    assert merged([tmp_path / "A", tmp_path / "B"])[0].path.name == "B"


DETERMINISTIC = {"config": {"trainer": {"deterministic": True}}}


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ({}, {}),
        ({"hardware": GPU, **DETERMINISTIC}, {"hardware": GPU, **DETERMINISTIC}),
    ],
)
def test_other_weights_where_the_same_were_due_are_refused(tmp_path, here, there):
    run(tmp_path / "A", 4, **here)
    run(tmp_path / "B", 4, digest="b", **there)
    with pytest.raises(ConfigurationError) as raised:
        merged([tmp_path / "A", tmp_path / "B"])
    said = str(raised.value)
    for expected in (f"{tmp_path}/A (", f"{tmp_path}/B (", "aaaaaaaaaaaa)", "bbbbbbbbbbbb)", "move one of the folders away"):
        assert expected in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("here", "there", "why"),
    [
        ({}, {"hardware": GPU}, "as the machines or versions differ"),
        ({}, {"versions": {"torch": "3"}}, "as the machines or versions differ"),
        ({"hardware": GPU}, {"hardware": GPU}, "as GPUs add up in any order without trainer.deterministic"),
    ],
)
def test_other_weights_for_a_reason_are_told_and_the_first_counts(tmp_path, here, there, why):
    run(tmp_path / "A", 4, **here)
    run(tmp_path / "B", 4, digest="b", **there)
    found, note = merged([tmp_path / "A", tmp_path / "B"])
    assert found.path.name == "A"
    assert why in note
    assert "Acc 0.5000, ASR 0.2500, weights aaaaaaaaaaaa" in note
    assert "weights bbbbbbbbbbbb" in note


def test_the_same_weights_or_none_that_are_known_contradict_nothing(tmp_path):
    run(tmp_path / "A", 4)
    run(tmp_path / "B", 4, hardware=GPU)
    run(tmp_path / "C", 4, weights_sha256=None)  # of an earlier version
    assert merged([tmp_path / name for name in "ABC"]) == (RunFolder(tmp_path / "A"), "")


def test_every_two_are_compared_also_where_a_third_counts(tmp_path):
    run(tmp_path / "A", 4, hardware=GPU)
    run(tmp_path / "B", 4, digest="b")
    run(tmp_path / "C", 4, digest="b")
    _, note = merged([tmp_path / name for name in "ABC"])
    assert [f"{tmp_path / name} (" in note for name in "ABC"] == [True] * 3
    run(tmp_path / "C", 4, digest="c")
    with pytest.raises(ConfigurationError, match="finished on the same hardware"):
        merged([tmp_path / name for name in "ABC"])


def test_an_unfinished_run_contradicts_nothing(tmp_path):
    run(tmp_path / "A", 4)
    run(tmp_path / "B", 3, "interrupted", weights_sha256="c" * 64)
    assert merged([tmp_path / "A", tmp_path / "B"])[1] == ""


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_another_experiment_under_the_same_name_is_refused(tmp_path, state):
    run(tmp_path / "A", 2, "interrupted")
    run(tmp_path / "B", 4, state, config_hash="e" * 64)
    with pytest.raises(ConfigurationError, match=r"are not the same experiment: config_hash is f{12} in the one .* e{12} in"):
        merged([tmp_path / "A", tmp_path / "B"])


def test_pools_of_two_machines_make_one_report(tmp_path, capsys):
    a, b = tmp_path / "A", tmp_path / "B"
    for root in (a, b):
        index(root)
    run(a / "pool" / "x0", 4)
    run(a / "pool" / "x1", 2, "interrupted")
    run(a / "pool" / "y0", 1, "interrupted")
    run(b / "pool" / "x1", 4, hardware=GPU)
    run(b / "pool" / "y0", 2, "interrupted", hardware=GPU)  # unfinished in both
    (tmp_path / "some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    main(["report", "some.yaml", "--runs", "A", "--runs", "B", "--output", "out"])
    cells, rows = pd.read_csv("out/cells.csv"), pd.read_csv("out/runs.csv")
    assert rows["state"].tolist() == ["finished", "finished", "interrupted", "pending"]
    assert rows["rounds"].tolist() == [4, 4, 2, 0]
    assert rows["ran_on"].fillna("").tolist() == ["EPYC", "H200", "H200", ""]
    assert cells["n"].tolist() == [2, 0]
    assert cells["ran_on"].fillna("").tolist() == ["EPYC: 1; H200: 1", ""]
    page = Path("out/report.html").read_text()
    assert "<td>EPYC: 1; H200: 1</td>" in page
    assert "Ran on: the machines" in page
    assert "| ran on |" in Path("out/table.md").read_text()
    assert "note:" not in capsys.readouterr().out
    # A sweep's folder has a pool of its own, which is the first.
    assert states(a / "sweeps" / "some", b) == rows["state"].tolist()
    assert states(a / "sweeps" / "some") == ["finished", "interrupted", "interrupted", "pending"]
    assert states(a / "sweeps" / "some", a) == ["finished", "interrupted", "interrupted", "pending"]  # no second pool


def test_the_pool_of_one_machine_is_reported_as_ever(tmp_path):
    folder = index(tmp_path / "A")
    run(tmp_path / "A" / "pool" / "x0", 4)
    main(["report", str(folder)])
    written = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    main(["report", str(folder), "--runs", str(tmp_path / "A"), "--runs", str(tmp_path / "A" / ".." / "A")])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written
    for name in ("report.html", "runs.csv", "cells.csv", "table.md"):
        assert b"ran" + b" on" not in (folder / name).read_bytes().lower().replace(b"1 run on 1 rank", b"")
        assert b"ran_on" not in (folder / name).read_bytes()


def test_what_contradicts_is_said_in_the_report(tmp_path, capsys):
    a, b = tmp_path / "A", tmp_path / "B"
    folder = index(a)
    run(a / "pool" / "x0", 4)
    run(b / "pool" / "x0", 4, hardware=GPU, digest="b")
    main(["report", str(folder), "--runs", str(b)])
    said = "are the same run with different weights, as the machines or versions differ; the first is shown"
    assert said in capsys.readouterr().out
    assert said in (folder / "report.html").read_text()
    assert said in (folder / "table.md").read_text()
    run(b / "pool" / "x0", 4, digest="b")
    with pytest.raises(SystemExit) as left:
        main(["report", str(folder), "--runs", str(b)])
    assert left.value.code == 2
    assert "finished on the same hardware" in capsys.readouterr().err


def test_prefixes_are_merged_too(tmp_path):
    a, b = tmp_path / "A", tmp_path / "B"
    folder = index(a)
    content = json.loads((folder / "sweep.json").read_text())
    content.pop("sha256", None)
    shared = {"id": "p", "seed": 0, "rule": "FedAvg", "shared": 2}
    (folder / "sweep.json").write_text(json.dumps({**content, "prefixes": [shared]}))
    (b / "pool").mkdir(parents=True)
    run(a / "prefixes" / "p", 1, "interrupted")
    run(b / "prefixes" / "p", 2)
    assert read_pools(folder, [b])[0].prefixes["state"].tolist() == ["finished"]


def test_the_sweep_may_be_planned_on_one_machine_alone_and_differently_on_another(tmp_path):
    a, b, c = (tmp_path / name for name in "ABC")
    (a / "pool").mkdir(parents=True)
    index(b)
    index(c, rules="xyz")
    run(a / "pool" / "x0", 4)
    (tmp_path / "some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    results, folder = read_pools(tmp_path / "some.yaml", [a, b, c])
    assert folder == b / "sweeps" / "some"
    assert results.runs["state"].tolist() == ["finished", *["pending"] * 3]
    (note,) = results.notes
    assert note.startswith(f"{c / 'sweeps' / 'some'} lists 2 runs that {folder} does not, and which are left out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--runs", "A", "--runs", "gone"], "--runs gone: it has no folder pool; give a folder as `sweep --runs` fills it"),
        (["--runs", "A", "--runs", "A/pool"], "--runs A/pool: it has no folder pool"),
        (["--runs", "A", "--runs", "some.yaml"], "--runs some.yaml: it has no folder pool"),
        (["--runs", "C", "--runs", "D"], "C/sweeps/some is not the folder of a sweep: there is no sweep.json in it"),
    ],
)
def test_a_folder_that_is_none_of_runs_is_named(tmp_path, capsys, given, message):
    index(tmp_path / "A")
    for name in "CD":
        (tmp_path / name / "pool").mkdir(parents=True)
    (tmp_path / "some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    with pytest.raises(SystemExit) as left:
        main(["report", "some.yaml", *given])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_machines_of_one_name_are_told_apart_by_what_differs(tmp_path):
    folder = index(tmp_path)
    run(tmp_path / "pool" / "x0", 4)
    run(tmp_path / "pool" / "x1", 4, hardware={**CPU, "processors": 64})
    run(tmp_path / "pool" / "y0", 4, hardware=GPU)
    results, _ = read_pools(folder, [])
    assert by_run(results) == ["EPYC, processors 2", "EPYC, processors 64", "H200", ""]
    assert by_cell(results) == ["EPYC, processors 2: 1; EPYC, processors 64: 1", "H200"]


def test_data_frames_of_several_folders(tmp_path, caplog):
    run(tmp_path / "A" / "x", 4)
    run(tmp_path / "A" / "y", 1, "interrupted")
    run(tmp_path / "B" / "y", 2, "interrupted")
    run(tmp_path / "B" / "z", 4, hardware=GPU)
    both = [tmp_path / "A", str(tmp_path / "B")]
    assert runs(both)[["run", "state", "rounds"]].to_numpy().tolist() == [
        ["x", "finished", 4],
        ["y", State.INTERRUPTED, 2],
        ["z", "finished", 4],
    ]
    assert curves(both)["run"].tolist() == ["x"] * 4 + ["y"] * 2 + ["z"] * 4
    pd.testing.assert_frame_equal(runs([tmp_path / "A"]), runs(tmp_path / "A"))
    assert runs([tmp_path / "A" / "x", tmp_path / "B" / "z"])["run"].tolist() == ["x", "z"]  # each of them a run
    assert not caplog.records
    run(tmp_path / "B" / "x", 4, hardware=GPU, digest="b")
    assert runs(both)["run"].tolist() == ["x", "y", "z"]
    assert "are the same run with different weights" in caplog.text
    with pytest.raises(ConfigurationError, match=r"no folder is given"):
        runs([])
    with pytest.raises(ConfigurationError, match=r"there is no folder .*gone"):
        runs([tmp_path / "A", tmp_path / "gone"])
