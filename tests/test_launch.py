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


@pytest.fixture
def network(commands: Path) -> Path:
    """Stand-ins for what tells of a node's network, and a torchrun that says which interface it was given."""
    for name, text in (
        ("getent", 'case "$2" in node0) echo "$NODE0 STREAM node0";; 127.*) echo "$2 STREAM";; *) exit 2;; esac'),
        (
            "ip",
            """case "$*" in
            "route get 10.0.0.1") echo "10.0.0.1 dev eth1 src 10.0.0.2 uid 0";;
            "route get 127."*) echo "local $3 dev lo src 127.0.0.1 uid 0";;
            "route show default") echo "default via 10.0.0.254 dev eth0 proto dhcp";;
            "-o address show to 10.0.0.2") echo "3: eth1    inet 10.0.0.2/24 scope global eth1";;
            *) exit 1;;
            esac""",
        ),
        ("timeout", "exit 0"),  # somebody listens at node 0
        ("torchrun", 'echo "${GLOO_SOCKET_IFNAME-none}"'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    return commands


@pytest.mark.parametrize(
    ("environment", "interface"),
    [
        ({"NODE_RANK": "1", "NODE0": "10.0.0.1"}, "eth1"),
        ({"NODE_RANK": "0", "NODE0": "127.0.1.1"}, "eth0"),
        ({"NODE_RANK": "1", "NODE0": "127.0.1.1"}, "none"),
        ({"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "none"),
        ({"NODE_RANK": "1", "NODE0": "10.0.0.9"}, "none"),
        ({"NODE_RANK": "1", "NODE0": "10.0.0.1", "GLOO_SOCKET_IFNAME": "ib0"}, "ib0"),
    ],
    ids=["towards node 0", "of the default route", "one machine by name", "one machine", "no route", "chosen by the user"],
)
def test_nodes_use_the_interface_by_which_they_reach_node_0(network: Path, environment: dict[str, str], interface: str) -> None:
    here = {"PATH": f"{network}:{os.environ['PATH']}", "NNODES": "2", "NPROC": "1", "MASTER_ADDR": "node0", **environment}
    done = subprocess.run(["bash", str(LAUNCH / "torchrun.sh"), "fit"], env=here, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, interface), done.stderr
