"""Finished runs as one file of data: what is in it, what is made of it, and what is refused."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_sweeps import finished

from fl_lightning import ConfigurationError
from fl_lightning.cli import main
from fl_lightning.experiments import frames
from fl_lightning.experiments.packs import KIND, entries_of, portable, root_of, write_pack
from fl_lightning.experiments.planned import Cell, Run
from fl_lightning.experiments.pools import read_pools, with_results_of
from fl_lightning.experiments.results import write_index
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.sweep import Sweep, read_sweep
from fl_lightning.files.sealed import sealed

CURVE = [(0.1 * t, 0.9 - 0.1 * t) for t in range(1, 6)]
PRIVATE = {"data": {"init_args": {"path": "/home/somebody/mnist"}}, "trainer": {"default_root_dir": "/home/somebody/runs/x0"}}


def run(folder: Path, acc: float = 0.5, **more: Any) -> None:
    """A finished run's folder, with files that only its machine has a use for."""
    folder.mkdir(parents=True)
    record = finished([*CURVE, (acc, 1 / 3)]) | {
        "config": PRIVATE,
        "config_hash": "f" * 64,
        "hardware": {"device": "cpu", "name": "EPYC"},
    }
    record |= {"weights_sha256": "a" * 64, "versions": {}, "world_size": 1, "seconds": {"local_training": 1.5}}
    (folder / "run.json").write_text(json.dumps(sealed({**record, **more})))
    lines = [json.dumps({"round": t, "acc": a, "asr": b}) for t, (a, b) in enumerate([*CURVE, (acc, 1 / 3)], 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "last.ckpt").write_bytes(b"weights")
    RunFolder(folder).write_status(State.FINISHED)


def planned(root: Path) -> tuple[Sweep, list[Run]]:
    sweep = Sweep("some", "Some", [Cell({"rule": rule}, []) for rule in "xy"], [0, 1])
    runs = [
        Run(cell, seed, {}, RunFolder(root / "pool" / f"{cell.name}{seed}")) for cell in sweep.cells for seed in sweep.seeds
    ]
    return sweep, runs


def made(root: Path, *names: str) -> Path:
    """A folder of all runs in which these are finished, of a sweep of four."""
    sweep, runs = planned(root)
    write_index(root / "sweeps" / "some", sweep, runs)
    (root / "pool").mkdir()
    for place, name in enumerate(names):
        run(root / "pool" / name, acc=0.5 + place / 8)
    return root


def test_a_report_of_a_pack_is_that_of_the_folder(tmp_path):
    root = made(tmp_path / "runs", "x0", "x1", "y1")
    assert write_pack(tmp_path / "some.jsonl.gz", [root]) == (3, 1, [])
    Path("some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    for place, output in ((str(root), "a"), ("some.jsonl.gz", "b")):
        main(["report", "some.yaml", "--runs", place, "--output", output])
    written = [path.relative_to("a") for path in sorted(Path("a").rglob("*")) if path.is_file() and path.name != "report.html"]
    assert {Path("table.md"), Path("cells.csv"), Path("runs.csv"), Path("times.csv"), Path("curves/000.svg")} <= set(written)
    assert all((Path("a") / name).read_bytes() == (Path("b") / name).read_bytes() for name in written)


def test_a_report_is_written_beside_the_runs_and_not_into_the_pack(tmp_path):
    write_pack(tmp_path / "some.jsonl.gz", [made(tmp_path / "A", "x0")])
    Path("some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    sweep = tmp_path / "some.yaml"
    assert read_pools(sweep, [Path("some.jsonl.gz")])[1] == Path("runs/sweeps/some")
    made(tmp_path / "B", "y0")
    results, folder = read_pools(sweep, [Path("some.jsonl.gz"), Path("B")])
    assert folder == Path("B/sweeps/some")
    assert results.runs["state"].tolist() == ["finished", "pending", "finished", "pending"]


def test_the_same_runs_are_the_same_bytes_without_weights_and_paths(tmp_path):
    root = made(tmp_path / "A", "x0", "y0")
    write_pack(tmp_path / "a.jsonl.gz", [root])
    shutil.copytree(root, tmp_path / "elsewhere" / "B")
    write_pack(tmp_path / "b.jsonl.gz", [tmp_path / "elsewhere" / "B"])
    write_pack(tmp_path / "c.jsonl.gz", [tmp_path / "b.jsonl.gz"])
    content = (tmp_path / "a.jsonl.gz").read_bytes()
    assert content == (tmp_path / "b.jsonl.gz").read_bytes() == (tmp_path / "c.jsonl.gz").read_bytes()
    text = gzip.decompress(content).decode()
    assert "somebody" not in text
    assert str(tmp_path) not in text
    assert '"path": "mnist"' in text
    there = root_of(tmp_path / "a.jsonl.gz")
    assert sorted(path.name for path in (there / "pool" / "x0").iterdir()) == ["config.yaml", "metrics.jsonl", "run.json"]
    before, after = RunFolder(root / "pool" / "x0"), RunFolder(there / "pool" / "x0")
    assert (after.record, after.metrics, after.damage) == (portable(before.record), before.metrics, "")
    after.check_config()


def test_runs_of_several_machines_in_one_file(tmp_path):
    a, b = made(tmp_path / "A", "x0", "x1"), made(tmp_path / "B", "y0")
    write_pack(tmp_path / "b.jsonl.gz", [b])
    assert write_pack(tmp_path / "all.jsonl.gz", [a, tmp_path / "b.jsonl.gz"], ["some"]) == (3, 1, [])
    assert [entry["place"] for entry in entries_of(tmp_path / "all.jsonl.gz")] == [
        "sweeps/some",
        "pool/x0",
        "pool/x1",
        "pool/y0",
    ]
    with pytest.raises(ConfigurationError, match="--sweep other: there is no such sweep in"):
        write_pack(tmp_path / "all.jsonl.gz", [a], ["other"])


def fewer_cells(root: Path) -> Path:
    """The same folder, from before the sweep got its second cell."""
    sweep, runs = planned(root)
    write_index(
        root / "sweeps" / "some", replace(sweep, cells=sweep.cells[:1]), [run for run in runs if run.cell == sweep.cells[0]]
    )
    return root


@pytest.mark.parametrize("first", [0, 1])
def test_cells_that_a_sweep_has_got_since_are_in_its_tables(tmp_path, first):
    """In whatever order the places are given."""
    few, more = fewer_cells(made(tmp_path / "few", "x0", "x1")), made(tmp_path / "more", "x0", "x1", "y1")
    roots = [few, more] if first == 0 else [more, few]
    assert write_pack(tmp_path / "some.jsonl.gz", roots) == (3, 1, [])
    (index,) = [entry["index"] for entry in entries_of(tmp_path / "some.jsonl.gz") if "index" in entry]
    assert [cell["labels"]["rule"] for cell in index["cells"]] == ["x", "y"]


def test_a_sweep_whose_cells_have_become_others_is_told(tmp_path):
    one, other = made(tmp_path / "one", "x0", "x1", "y1"), fewer_cells(made(tmp_path / "other", "x0", "x1"))
    file = other / "sweeps" / "some" / "sweep.json"
    content = json.loads(file.read_text())
    content["cells"][0]["runs"]["0"] = "z0"
    file.write_text(json.dumps(sealed({key: value for key, value in content.items() if key != "sha256"})))
    _, _, (note,) = write_pack(tmp_path / "some.jsonl.gz", [other, one])
    assert note == f"some: 1 of its runs in {other} are in no cell of it in {one}, whose file was changed; that is shown"


def test_what_is_finished_elsewhere_is_not_run_again(tmp_path):
    write_pack(tmp_path / "some.jsonl.gz", [made(tmp_path / "A", "x0", "y1")])
    mine = made(tmp_path / "B", "x1")
    found, notes = with_results_of(planned(mine)[1], [tmp_path / "some.jsonl.gz"])
    assert ([run.id for run in found if not run.folder.finished], notes) == (["y0"], [])
    assert [run.id for run in found if run.folder.path.parent == mine / "pool"] == ["x1", "y0"]
    assert not (mine / "pool" / "x0").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"weights_sha256": "b" * 64},
            "are the same run, finished on the same hardware with the same versions, and their weights",
        ),
        ({"config_hash": "e" * 64}, "are not the same experiment: config_hash is"),
    ],
)
def test_contradictions_are_refused_and_name_the_file(tmp_path, other, message):
    pack = tmp_path / "some.jsonl.gz"
    write_pack(pack, [made(tmp_path / "A", "x0")])
    mine = made(tmp_path / "B")
    run(mine / "pool" / "x0", **other)
    for read in (
        lambda: with_results_of(planned(mine)[1], [pack]),
        lambda: read_pools(mine / "sweeps" / "some", [pack]),
        lambda: write_pack(tmp_path / "all.jsonl.gz", [mine, pack]),
    ):
        with pytest.raises(ConfigurationError, match=message) as raised:
            read()
        assert f"{pack}/pool/x0" in str(raised.value)


def test_a_sweep_lists_what_a_file_has_as_done(tmp_path, capsys):
    base = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    Path("some.yaml").write_text(f"base: {base}\naxes: {{seed: [0, 1]}}\n")
    done, _ = read_sweep(Path("some.yaml")).runs(tmp_path / "A" / "pool")
    run(done.folder.path)
    write_pack(tmp_path / "some.jsonl.gz", [tmp_path / "A"])
    for place in ("some.jsonl.gz", "A"):
        main(["sweep", "some.yaml", "--runs", "mine", "--have", place, "--dry-run"])
        assert "1 finished, 1 pending" in capsys.readouterr().out
    assert not Path("mine").exists()
    with pytest.raises(SystemExit):
        main(["sweep", "some.yaml", "--have", "gone", "--dry-run"])
    assert capsys.readouterr().err.startswith("error: --have gone: it has no folder pool; give")


def cut(content: bytes) -> bytes:
    return content[:-20]


def flipped(content: bytes) -> bytes:
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


def edited(content: bytes) -> bytes:
    return gzip.compress(gzip.decompress(content).replace(b'"rounds": 6', b'"rounds": 7'))


def shorter(content: bytes) -> bytes:
    return gzip.compress(b"".join(gzip.decompress(content).splitlines(keepends=True)[:-1]))


def twice(content: bytes) -> bytes:
    lines = gzip.decompress(content).splitlines(keepends=True)
    return gzip.compress(b"".join([*lines[:-1], lines[-2]]))


def outside(content: bytes) -> bytes:
    entry = {"place": "pool/../../x", "record": {}, "lines": {}}
    head, *lines = gzip.decompress(content).splitlines(keepends=True)
    return gzip.compress(b"".join([head, *lines[:-1], json.dumps(sealed(entry)).encode() + b"\n"]))


def without_lines(content: bytes) -> bytes:
    *lines, last = gzip.decompress(content).splitlines(keepends=True)
    entry = {name: part for name, part in json.loads(last).items() if name in ("place", "record")}
    return gzip.compress(b"".join([*lines, json.dumps(sealed(entry)).encode() + b"\n"]))


def test_a_sweep_that_is_damaged_within_a_file_goes_by_the_files_name(tmp_path):
    pack = tmp_path / "some.jsonl.gz"
    head, index = ({"kind": KIND, "version": 1, "entries": 1}, {"place": "sweeps/some", "index": {"cells": []}})
    pack.write_bytes(gzip.compress("".join(f"{json.dumps(sealed(line))}\n" for line in (head, index)).encode()))
    with pytest.raises(ConfigurationError, match="is damaged") as raised:
        write_pack(tmp_path / "all.jsonl.gz", [pack])
    assert str(raised.value).startswith(f"{pack}/sweeps/some")


@pytest.mark.parametrize(
    "damage",
    [
        without_lines,
        cut,
        flipped,
        edited,
        shorter,
        twice,
        outside,
        gzip.decompress,
        lambda _: b"",
        lambda _: gzip.compress(b"[1]\n"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, capsys, damage):
    pack = tmp_path / "some.jsonl.gz"
    write_pack(pack, [made(tmp_path / "A", "x0", "y0")])
    pack.write_bytes(damage(pack.read_bytes()))
    Path("some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    with pytest.raises(SystemExit) as left:
        main(["report", "some.yaml", "--runs", "some.jsonl.gz"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "some.jsonl.gz is damaged, or no file of `fl-lightning pack`; put a copy of it back" in line


WRONG: list[tuple[tuple[Any, ...], Any, str]] = [
    (("record", "acc"), "high", r"line 3 \(pool/x0\): record\.acc must be a number or null, got 'high'"),
    (("record", "acc_last10_rounds"), 3, r"record\.acc_last10_rounds must be a list or null, got 3"),
    (("record", "rounds"), [6], r"record\.rounds must be a whole number or null, got \[6\]"),
    (("record", "seconds"), 3.5, r"record\.seconds must be a mapping, got 3\.5"),
    (("record", "hardware"), "EPYC", r"record\.hardware must be a mapping, got 'EPYC'"),
    (("record", "config"), [1], r"record\.config must be a mapping, got \[1\]"),
    (("record", "config_hash"), 7, r"record\.config_hash must be a text or null, got 7"),
    (("record", "lifespan"), {"state": "alive"}, r"record\.lifespan has no asr_end"),
    (("record", "world_size"), None, r"record\.world_size must be a whole number, got None"),
    (("lines", "metrics.jsonl", 1), 4, r"lines\.metrics\.jsonl\[1\] must be a mapping, got 4"),
    (("lines", "metrics.jsonl", 1), {"acc": 0.5}, r"lines\.metrics\.jsonl\[1\] has no round"),
    (("lines", "metrics.jsonl", 0, "asr"), "low", r"lines\.metrics\.jsonl\[0\]\.asr must be a number or null, got 'low'"),
    (("index", "seeds", 1), "1", r"line 2 \(sweeps/some\): index\.seeds\[1\] must be a whole number, got '1'"),
    (("index", "cells", 0, "labels", "rule"), 5, r"index\.cells\[0\]\.labels\.rule must be a text, got 5"),
    (("index", "worst_case"), {"rule": "rule"}, r"index\.worst_case has no attack"),
]


@pytest.mark.parametrize(("keys", "value", "message"), WRONG, ids=[".".join(map(str, keys)) for keys, _, _ in WRONG])
def test_what_no_run_wrote_is_refused_by_line_and_key(tmp_path, capsys, keys, value, message):
    write_pack(tmp_path / "some.jsonl.gz", [made(tmp_path / "A", "x0")])
    entries = [json.loads(line) for line in gzip.decompress((tmp_path / "some.jsonl.gz").read_bytes()).splitlines()]
    part = next(entry for entry in entries if keys[0] in entry)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    lines = [json.dumps(sealed({key: of for key, of in entry.items() if key != "sha256"})) for entry in entries]
    (tmp_path / "some.jsonl.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    Path("some.yaml").write_text("axes: {rule: {x: null, y: null}, seed: [0, 1]}\n")
    with pytest.raises(SystemExit) as left:
        main(["report", "some.yaml", "--runs", "some.jsonl.gz"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    refused = rf"some\.jsonl\.gz, .*{message}; no run wrote this: pack the runs again"
    assert re.search(refused, line)
    with pytest.raises(ConfigurationError, match=refused):
        with_results_of(planned(tmp_path / "B")[1], [tmp_path / "some.jsonl.gz"])


def test_another_version_is_named(tmp_path):
    head = sealed({"kind": "finished runs of fl_lightning", "version": 2, "entries": 0})
    (tmp_path / "some.jsonl.gz").write_bytes(gzip.compress(json.dumps(head).encode() + b"\n"))
    with pytest.raises(ConfigurationError, match="is a pack of version 2, and this package reads version 1"):
        root_of(tmp_path / "some.jsonl.gz")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["pack", "A", "some.json"], "some.json: a pack's name ends in .jsonl.gz"),
        (
            ["pack", "gone", "some.jsonl.gz"],
            "error: RUNS gone: it has no folder pool; give a folder as `sweep --runs` fills it, or a file",
        ),
        (["pack", "A"], "the following arguments are required: FILE"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, capsys, command, message):
    made(tmp_path / "A", "x0")
    with pytest.raises(SystemExit):
        main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("some.jsonl.gz").exists()


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    made(tmp_path / "A", "x0", "y1")
    main(["pack", "A", "some.jsonl.gz", "--sweep", "some"])
    assert capsys.readouterr().out == "some.jsonl.gz: 2 runs, 1 kB; 2 that are not finished are left out\n"


def test_data_frames_are_those_of_the_folders(tmp_path):
    for name, acc in (("a0", 0.25), ("b0", 0.75)):
        run(tmp_path / "runs" / "pool" / name, acc, seed=0)
    pack = tmp_path / "some.jsonl.gz"
    write_pack(pack, [tmp_path / "runs"])
    of_folders, of_pack = (frames.runs(place) for place in (tmp_path / "runs", pack))
    assert of_pack["run"].tolist() == ["pool/a0", "pool/b0"]
    pd.testing.assert_frame_equal(of_pack, of_folders)
    pd.testing.assert_frame_equal(frames.curves(pack), frames.curves(tmp_path / "runs"))
    pd.testing.assert_frame_equal(frames.runs([pack, tmp_path / "runs"]), of_folders)  # each counts once
    shutil.rmtree(tmp_path / "runs" / "pool" / "a0")
    run(tmp_path / "runs" / "pool" / "a0", 0.25, seed=0, config_hash="0" * 64)
    with pytest.raises(ConfigurationError, match=r"some\.jsonl\.gz/pool/a0 and .*runs/pool/a0 are not the same experiment"):
        frames.runs([pack, tmp_path / "runs"])
    with pytest.raises(ConfigurationError, match=r"no folder .*other.jsonl.gz; give that of a run, .* or a file of `pack`"):
        frames.runs(tmp_path / "other.jsonl.gz")
    with pytest.raises(ConfigurationError, match="rows of clients"):
        frames.clients(pack)
