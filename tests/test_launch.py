"""Scripts for clusters, with stand-ins for what they call."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands: a scontrol that knows nothing, and a python that writes down what it is called with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("scontrol", "exit 1"), ("python", 'printf "%s\\n" "$@"')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    "change",
    [lambda text: text, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text, lambda text: text.rstrip("\n")],
    ids=["plain", "carriage returns", "byte order mark", "no end"],
)
@pytest.mark.parametrize("task", [0, 1])
def test_a_list_of_runs_may_come_from_windows(tmp_path: Path, commands: Path, change, task: int) -> None:
    runs = [str(tmp_path / "first run"), str(tmp_path / "second")]
    (tmp_path / "list.txt").write_bytes(change("".join(f"{run}\n" for run in runs)).encode())
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "FL_LIGHTNING_LAUNCH": str(LAUNCH),
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": str(task),
    }
    script = [str(LAUNCH / "slurm_array.sbatch"), "list.txt"]
    done = subprocess.run(["bash", *script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert runs[task] in done.stdout.splitlines()  # an argument of its own
    assert f"{runs[task]}/config.yaml" in done.stdout.splitlines()


def test_a_list_without_the_line_is_named(tmp_path: Path, commands: Path) -> None:
    (tmp_path / "list.txt").write_text("\ufeff\r\n")
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "FL_LIGHTNING_LAUNCH": str(LAUNCH), "SLURM_JOB_ID": "7"}
    script = ["bash", str(LAUNCH / "slurm_array.sbatch"), "list.txt"]
    done = subprocess.run(
        script, cwd=tmp_path, env={**environment, "SLURM_ARRAY_TASK_ID": "0"}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "list.txt has no line 1 for task 0" in done.stderr
