"""`fl-lightning sweep` and `report` as a user meets them."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fl_lightning.cli import main
from fl_lightning.experiments import scheduler
from fl_lightning.experiments.planned import Cell, Run
from fl_lightning.experiments.report import FILES
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.scheduler import environments, fit_command

ROOT = Path(__file__).parents[2]
SWEEP = f"""
title: Small
base: {ROOT}/configs/quickstart.yaml
axes:
  rule:
    FedAvg: {{model: {{aggregator: {{class_path: FedAvg}}}}}}
    Broken: {{data: {{init_args: {{partition: {{init_args: {{num_clients: 30000}}}}}}}}}}
    Invariant: null
  seed: [0]
"""
LESS = ["--with", "Phishing.num_train=2000", "--with", "Phishing.num_test=300", "--", "--trainer.max_epochs", "3"]


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "small.yaml").write_text(SWEEP)
    return ["sweep", "small.yaml", *LESS]


def start(args: list[str], folder: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "MASTER_PORT": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "fl_lightning", *args]
    with (folder / "out.txt").open("a") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)


def swept(folder: Path, *options: str) -> object:
    """The status of a sweep in this process."""
    os.chdir(folder)
    with pytest.raises(SystemExit) as left:
        main(["sweep", "small.yaml", *options, *LESS])
    return left.value.code


def report(folder: Path) -> dict[str, bytes]:
    """The report's files, but for those of times; folders stand in configurations."""
    main(["report", str(folder / "runs" / "sweeps" / "small")])
    files = [folder / "runs" / "sweeps" / "small" / name for name in FILES if name != "times.csv"]
    return {path.name: path.read_bytes().replace(str(folder).encode(), b"FOLDER") for path in files}


def folders(where: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted((where / "runs" / "pool").glob("*"))]


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_ends_as_one_that_was_not(tmp_path, sweep, capsys, monkeypatch):
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "small.yaml").write_text(SWEEP)
    monkeypatch.setenv("MASTER_PORT", "1")
    assert swept(tmp_path / "calm", "--jobs", "2") == 1  # the broken runs failed, the others did not mind
    states = [folder.state for folder in folders(tmp_path / "calm")]
    assert (states.count(State.FINISHED), states.count(State.FAILED)) == (2, 1)
    failed = next(folder for folder in folders(tmp_path / "calm") if folder.state is State.FAILED)
    assert "30000" in failed.message

    where = tmp_path / "killed"
    first = start(["sweep", "small.yaml", "--jobs", "1", *LESS], where)
    deadline = time.monotonic() + 240
    while not any(folder.state is State.FINISHED for folder in folders(where)):
        assert time.monotonic() < deadline, (where / "out.txt").read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for folder in folders(where):
        if folder.state is State.RUNNING:  # it outlived the sweep, and is killed as well
            os.killpg(folder.status["child"], signal.SIGKILL)
    (done,) = [folder for folder in folders(where) if folder.state is State.FINISHED]
    written = (done.path / "run.json").stat().st_mtime_ns
    assert swept(where, "--jobs", "2") == 1
    assert (done.path / "run.json").stat().st_mtime_ns == written
    assert done.status["attempt"] == 1
    digests = [[folder.record.get("weights_sha256") for folder in folders(tmp_path / name)] for name in ("calm", "killed")]
    assert digests[0] == digests[1]
    assert report(tmp_path / "calm") == report(where)
    shown = capsys.readouterr().out
    assert "report.html" in shown
    assert "0 of 1" in shown

    os.chdir(where)
    main([*sweep[:2], "--status", *LESS])
    assert "2 finished, 1 failed" in capsys.readouterr().out


def test_dry_run_lists_and_writes_nothing(tmp_path, sweep, capsys):
    main([*sweep[:2], "--dry-run", *LESS])
    shown = capsys.readouterr().out
    assert "3 pending" in shown
    main([*sweep[:2], "--dry-run", "--only", "rule=FedAvg", "--only", "rule=Invariant", "--only", "seed=0", *LESS])
    shown = capsys.readouterr().out
    assert "2 pending" in shown
    assert "Broken" not in shown
    assert "0/3" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sweep"], "the following arguments are required: file"),
        (["sweep", "gone.yaml"], "gone.yaml cannot be read"),
        (["sweep", "small.yaml", "--jobs", "x"], "invalid int value: 'x'"),
        (["sweep", "small.yaml", "--with", "Phishing"], "'Phishing' is not of the form CLASS.SETTING=VALUE"),
        (["sweep", "small.yaml", "--only", "rules=FedAvg"], "--only rules: there is no such axis; did you mean rule?"),
        (["sweep", "small.yaml", "--only", "rule=Fedavg"], "--only rule=Fedavg: there is no such run; did you mean FedAvg?"),
        (["sweep", "small.yaml", "--only", "FedAvg"], "'FedAvg' is not of the form AXIS=LABEL"),
        (["sweep", "small.yaml", "--only", "rule=FedAvg", "--only", "seed=1"], "--only seed=1: there is no such run"),
        (["sweep", "small.yaml", "--with", "Phishing.num_train=["], "the value in 'Phishing.num_train=[' is not YAML"),
        (["sweep", "small.yaml", "--name", "a/b"], "name must consist of letters"),
        (
            ["sweep", "small.yaml", "--", "--seed_everything", "1"],
            "--seed_everything is set for every run of a sweep; use the axis",
        ),
        (["sweep", "small.yaml", "--jobs", "0"], "--jobs must be at least 1 and at most"),
        (["sweep", "small.yaml", "--jobs", "100000000"], "got 100000000"),
        (["sweep", "small.yaml", "--ranks", "100000"], "--ranks must be at least 1 and at most"),
        (["sweep", "small.yaml", "--dry"], "unrecognized arguments: --dry"),
        (["sweep", "small.yaml", "--dry-run", "--", "--trainer.max_epoch", "1"], "did you mean max_epochs?"),
        (["sweep", "small.yaml", "--runs", "small.yaml"], "--runs cannot be made: small.yaml is no folder"),
        (["sweep", "small.yaml", "--runs", "a::b"], "--runs = a::b"),
        (["sweep", "small.yaml", "--runs", "r" * 300], "--runs cannot be made: File name too long"),
        (["sweep", "small.yaml", "--ranks", "0"], "--ranks must be at least 1 and at most"),
        (["sweep", "small.yaml", "--", "--trainer.max_epcohs", "3"], "did you mean max_epochs"),
        (["report", "runs"], "runs is not the folder of a sweep"),
        (["report", "small.yaml", "--measure", "median"], "invalid choice: 'median'"),
        (["report", "small.yaml"], "runs/sweeps/small is not the folder of a sweep"),
    ],
)
def test_a_mistake_ends_in_one_readable_line(sweep, capsys, args, message):
    with pytest.raises(SystemExit) as left:
        main(args)
    assert left.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_slots_do_not_wait_for_what_others_are_at_work_on(tmp_path, monkeypatch):
    """Two sweeps over one pool share the work."""
    runs = []
    for name in "abcd":
        folder = RunFolder(tmp_path / name)
        runs.append(Run(Cell({"rule": name}, []), 0, {"trainer": {}}, folder))
    finish = "import json, sys; open(sys.argv[1] + '/run.json', 'w').write(json.dumps({'finished': True}))"
    monkeypatch.setattr(scheduler, "fit_command", lambda folder, ranks: [sys.executable, "-c", finish, str(folder.path)])
    monkeypatch.setattr(scheduler, "ELSEWHERE_SECONDS", 0.1)
    runs[0].folder.path.mkdir()
    out = io.StringIO()
    with runs[0].folder.lock():
        thread = threading.Thread(
            target=scheduler.run_all, args=(runs,), kwargs={"jobs": 1, "ranks": None, "console": Console(file=out)}
        )
        thread.start()
        deadline = time.monotonic() + 60
        while sum(run.folder.finished for run in runs) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not runs[0].folder.finished
    thread.join(60)
    assert all(run.folder.finished for run in runs)
    assert "4/4 finished: a, seed 0" in out.getvalue()


def test_gpus_are_shared_out_among_slots(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(2)] == ["0,2,4", "1,3"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(7)] == ["0", "1", "2", "3", "4", "0", "1"]
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(1)] == ["0,1,2,3,4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(2)] == ["-1", "-1"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("MASTER_PORT", "43703")  # as Lightning leaves it behind in a process that has trained
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not {"MASTER_PORT", "WORLD_SIZE"} & set(next(iter(environments(2))))
    assert next(iter(environments(1)))["OMP_NUM_THREADS"] == "1"


def test_a_run_is_started_by_torchrun_where_ranks_are_asked_for(tmp_path):
    run = RunFolder(tmp_path)
    assert "torch.distributed.run" not in fit_command(run)
    assert fit_command(run, 2)[2:6] == ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_gpus_are_those_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(scheduler, "DEVICES", tmp_path)
    if sys.platform == "linux":  # where nobody asks torch if there is no GPU
        assert all("CUDA_VISIBLE_DEVICES" not in slot for slot in environments(2))
    (tmp_path / "nvidia0").touch()
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in environments(2)] == ["0", "1"]


def test_help_names_all_commands(capsys):
    for words, expected in (
        (["--help"], "analyse      compute what the paper proves"),
        (["sweep", "--help"], "--array-limit"),
        (["report", "--help"], "--output"),
        (["analyse", "--help"], "figure6"),
    ):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 0
        assert expected in capsys.readouterr().out
