"""The script that fills the paper's tables on a GPU, with a stand-in for the python that it calls."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from fl_lightning.experiments.command import chosen, parse_sweep_command
from fl_lightning.experiments.planned import Run
from fl_lightning.experiments.priority import in_order
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.sweep import read_sweep

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "paper_gpu.sh"
SWEEPS = ROOT / "configs" / "sweeps"

PYTHON = """#!/bin/bash
case $1 in
-c) [[ -z "$NO_TORCH" ]] && echo "$GPU" ;;
*)
    printf '%s ' "${@:3}" >>calls
    echo >>calls
    [[ $3 == report ]] && exit "${REPORT:-0}"
    exit "$(sed -n "$(grep -c ^sweep calls)p" statuses)"
    ;;
esac
"""
"""Knows a GPU, or none; writes down its calls, and leaves with the next status of a list."""


def call(folder: Path, *args: str, statuses: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").write_text(PYTHON)
    (folder / "bin" / "python").chmod(0o755)
    (folder / "statuses").write_text("".join(f"{status}\n" for status in [*statuses.split(), *["0"] * 100]))
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(SCRIPT), *args],
        cwd=folder,
        env={"GPU": "Tesla", "NO_TORCH": "", **environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
    )


def tables(lines: list[str], command: str) -> list[str]:
    """Task, table and seed of calls."""
    words = [shlex.split(line) for line in lines]
    places = [line.index(command) + 1 for line in words if command in line]
    found = [line for line in words if command in line]
    seeds = [f" {line[line.index('--only') + 1]}" if "--only" in line else "" for line in found]
    return [f"{Path(line[i]).relative_to(SWEEPS)}{seed}" for line, i, seed in zip(found, places, seeds, strict=True)]


def runs_of(line: str) -> list[tuple[str, str, int]]:
    """Table, label and seed of the runs that a command would begin, in its order."""
    options, _ = parse_sweep_command(shlex.split(line)[4:])
    sweep = read_sweep(options.file)
    planned = [Run(cell, seed, {}, RunFolder(Path("none"))) for cell in sweep.cells for seed in sweep.seeds]
    table = options.file.stem.removeprefix("table")
    return [(table, run.cell.name, run.seed) for run in in_order(chosen(planned, options.only), sweep.priority)]


def called(folder: Path, command: str = "sweep") -> list[str]:
    return tables((folder / "calls").read_text().splitlines(), command)


def test_a_dry_run_prints_all_commands_in_order_and_needs_no_gpu(tmp_path):
    done = call(
        tmp_path, "--dry-run", "--runs", "my runs", "--southwest", "south west", "--jobs", "3", "--budget", "1h", GPU=""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "calls").exists()
    lines = done.stdout.splitlines()
    shown = tables(lines, "sweep")
    first = ("cifar10/table1", "cifar10/table4", "twitter/table1", "twitter/table4")
    assert shown[:4] == [f"{name}.yaml seed=0" for name in first]
    files = [path for task in ("cifar10", "twitter") for path in (SWEEPS / task).glob("table*.yaml")]
    planned = {f"{path.relative_to(SWEEPS)}" for path in files if not path.stem.endswith("_cpu")}
    assert set(shown) == {f"{table} seed={seed}" for table in planned for seed in (0, 1, 2)}
    assert sorted(tables(lines, "report")) == sorted(planned)
    for line in lines[: len(shown)]:  # options that the command takes
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "fl_lightning", "sweep"]
        options, _ = parse_sweep_command(words[4:])
        assert (options.runs, options.jobs) == (Path("my runs"), 3)
        south = "cifar10" in line and "table9" not in line
        assert options.settings == ([("Southwest.path", "south west")] if south else [])


def test_what_settles_most_comes_first_and_nothing_is_left_out(tmp_path):
    done = call(tmp_path, "--dry-run", "--tasks", "cifar10")
    lines = [line for line in done.stdout.splitlines() if " sweep " in line]
    order = list(dict.fromkeys(run for line in lines for run in runs_of(line)))  # a run that is finished is not run again
    telling = ("no attack", "FedAvg", "Invariant", "Trimmed-Mean")
    settling = [run for seed in (0, 1, 2) for run in [*(("1", rule, seed) for rule in telling), ("4", "AND-mask", seed)]]
    assert order[:15] == settling
    rest = order[15:]
    others = [run for run in rest if run[0] == "1"]
    assert rest[: len(others)] == others  # Table 1 is full before any other table is
    assert [seed for _, _, seed in others] == [0] * 11 + [1] * 11 + [2] * 11
    later = rest[len(others) :]
    assert list(dict.fromkeys(table for table, _, _ in later)) == ["5", "4", "6", "7", "8", "10", "9"]
    assert [seed for _, _, seed in later] == sorted(seed for _, _, seed in later)
    files = [SWEEPS / "cifar10" / f"table{table}.yaml" for table in ("1", *map(str, range(4, 11)))]
    assert len(order) == sum(len(sweep.cells) * len(sweep.seeds) for sweep in map(read_sweep, files))


@pytest.mark.parametrize("task", ["cifar10", "twitter", "phishing"])
def test_table_1_begins_by_itself_with_what_settles_most(task):
    order = runs_of(f"python -m fl_lightning sweep {SWEEPS / task / 'table1.yaml'}")
    telling = ("no attack", "FedAvg", "Invariant", "Trimmed-Mean")
    assert order[:12] == [("1", rule, seed) for seed in (0, 1, 2) for rule in telling]


def test_data_are_given_to_the_tasks_that_have_them(tmp_path):
    given = [word for name in ("cifar10", "southwest", "twitter", "directors", "glove") for word in (f"--{name}", name)]
    done = call(tmp_path, "--dry-run", "--tables", "1", "--tasks", "cifar10 twitter phishing", *given)
    with_ = [dict(parse_sweep_command(shlex.split(line)[4:])[0].settings) for line in done.stdout.splitlines()[:3]]
    assert with_ == [
        {"CIFAR10.path": "cifar10", "Southwest.path": "southwest"},
        {
            "Twitter.path": "twitter",
            "DirectorTweets.path": "directors",
            "Twitter.glove.path": "glove",
            "DirectorTweets.glove.path": "glove",
        },
        {},
    ]


def test_it_ends_when_the_time_is_spent_and_reports_what_was_begun(tmp_path):
    done = call(tmp_path, "--tables", "1 4", statuses="0 0 75")
    assert done.returncode == 75
    assert called(tmp_path) == ["cifar10/table1.yaml seed=0", "cifar10/table4.yaml seed=0", "twitter/table1.yaml seed=0"]
    assert called(tmp_path, "report") == ["cifar10/table1.yaml", "cifar10/table4.yaml", "twitter/table1.yaml"]
    assert "The time is spent; the same command goes on." in done.stdout
    assert "Tesla, 25m" in done.stdout


def test_full_tables_are_a_success_and_each_is_reported_once(tmp_path):
    done = call(tmp_path, "--tables", "1", "--tasks", "twitter")
    assert done.returncode == 0, done.stderr
    assert called(tmp_path) == 2 * [f"twitter/table1.yaml seed={seed}" for seed in (0, 1, 2)]
    assert called(tmp_path, "report") == ["twitter/table1.yaml"]


@pytest.mark.parametrize(
    ("statuses", "report", "status", "sweeps"),
    [
        ("1", "0", 1, 3),  # the others go on
        ("2 75", "0", 1, 2),
        ("0 0 0", "1", 1, 3),
        ("0 130", "0", 130, 2),  # Ctrl-C
    ],
)
def test_a_failure_is_told_from_time_that_is_missing(tmp_path, statuses, report, status, sweeps):
    done = call(tmp_path, "--tables", "9", "--tasks", "cifar10", statuses=statuses, REPORT=report)
    assert done.returncode == status
    assert len(called(tmp_path)) == sweeps
    assert len(called(tmp_path, "report")) == (status != 130)


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        ([], {"GPU": ""}, "error: PyTorch sees no GPU on this machine"),
        ([], {"NO_TORCH": "yes"}, "error: python cannot import torch; activate the environment"),
        (["--budget", "25"], {}, "--budget '25' is no span of time; give whole hours"),
        (["--budget", "0m"], {}, "--budget '0m' must be at least 1s"),
        (["--budget", "08x"], {}, "--budget '08x' is no span"),
        (["--budget"], {}, "--budget needs a value"),
        (["--bugdet", "1h"], {}, "there is no option '--bugdet'"),
        (["--jobs", "0"], {}, "--jobs must be a number of at least 1, got '0'"),
        (["--tasks", "cifar"], {}, "--tasks: there is no task 'cifar'; known: cifar10, twitter, phishing"),
        (["--tables", "1 2"], {}, "--tables: there is no Table '2'; known: 1, 4, 5"),
        (["--cifar10", "gone"], {}, "there is no file or folder gone"),
    ],
)
def test_a_mistake_is_named_and_nothing_runs(tmp_path, args, environment, message):
    done = call(tmp_path, *args, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(("given", "seconds"), [("90s", 90), ("08m", 480), ("2h", 7200), ("1h30m", 5400)])
def test_spans_of_time_are_those_of_the_command(tmp_path, given, seconds):
    done = call(tmp_path, "--dry-run", "--budget", given)
    left = parse_sweep_command(shlex.split(done.stdout.splitlines()[0])[4:])[0].budget
    assert seconds - 5 <= left <= seconds  # what is left a moment later
