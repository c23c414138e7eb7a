"""Two nodes with a network stack each: namespaces joined by a cable, which know their own name by 127.0.1.1."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ranks import on_ranks

from fl_lightning.cli import main

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch" / "torchrun.sh"
ADDRESSES = "10.213.0.1", "10.213.0.2"
HOSTS = "127.0.0.1 localhost\n127.0.1.1 {own}\n10.213.0.1 node0\n10.213.0.2 node1\n"
"""As Debian writes it, in /etc/hosts: the first name of a node's own that is found is of no use to others."""
TIMEOUT_SECONDS = 300

FIT = """
seed_everything: 3
trainer: {accelerator: cpu, max_epochs: 6, check_val_every_n_epoch: 3, default_root_dir: run, logger: false}
model:
  client: {class_path: MLP, init_args: {sizes: [64, 8, 10]}}
  aggregator: {class_path: Invariant}
  attacks: [{class_path: SignFlip}]
  cohort: {clients_per_round: 5, malicious_fraction: 0.2}
  local: {epochs: 1, batch_size: 32}
data: {class_path: Digits, init_args: {partition: {class_path: IID, init_args: {num_clients: 10}}}}
"""
NODE_DIES = """
import os, signal
import lightning as L

class NodeDies(L.Callback):
    def on_aggregate(self, federation, shard, aggregate):
        if federation.global_step == 3 and os.environ["GROUP_RANK"] == "1":
            os.kill(os.getppid(), signal.SIGKILL)  # torchrun
            os.kill(os.getpid(), signal.SIGKILL)
"""


class Node:
    """A namespace with a working folder of its own."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number, self.folder = number, folder
        self.name = f"h{os.getpid()}n{number}"
        self.etc = Path("/etc/netns", self.name)

    def run(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`launch/torchrun.sh` there, one rank on each of two nodes."""
        set_elsewhere = ("SLURM", "MASTER", "GLOO", "NCCL", "TORCHELASTIC")
        here = {name: value for name, value in os.environ.items() if not name.startswith(set_elsewhere)}
        here |= {"PATH": f"{Path(sys.executable).parent}:{here['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        here |= {"NPROC": "1", "NNODES": "2", "NODE_RANK": str(self.number), "MASTER_ADDR": "node0", **environment}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, "bash", str(LAUNCH), *arguments],
            cwd=self.folder,
            env=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def begin(self) -> None:
        self.folder.mkdir()
        (self.folder / "fit.yaml").write_text(FIT)
        (self.folder / "dies.py").write_text(NODE_DIES)
        self.etc.mkdir(parents=True)
        # The host's own name is the machine's, as a namespace of networks has none.
        (self.etc / "hosts").write_text(HOSTS.format(own=f"{os.uname().nodename} node{self.number}"))
        (self.etc / "resolv.conf").write_text("")
        ip("netns", "add", self.name)
        ip("-n", self.name, "link", "set", "lo", "up")

    def plug_in(self) -> None:
        ip("-n", self.name, "address", "add", f"{ADDRESSES[self.number]}/24", "dev", "cable")
        ip("-n", self.name, "link", "set", "cable", "up")
        ip("-n", self.name, "route", "add", "default", "dev", "cable")

    def end(self) -> None:
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)  # its end of the cable goes with it
        shutil.rmtree(self.etc, ignore_errors=True)


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("only root can make network namespaces" if os.geteuid() else "there is no command ip (iproute2)")
    nodes = [Node(number, tmp_path / f"node{number}") for number in (0, 1)]
    try:
        for node in nodes:
            node.begin()
        first, second = (node.name for node in nodes)
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for node in nodes:
            node.plug_in()
        yield nodes
    finally:
        for node in nodes:
            node.end()


def outputs(runs: list[subprocess.Popen[str]]) -> list[str]:
    return [run.communicate(timeout=TIMEOUT_SECONDS)[0] for run in runs]


def trains(folder: str, *more: str) -> None:
    os.chdir(folder)
    main(["fit", "--config", "fit.yaml", *more])


def weights(folder: Path) -> str:
    record = json.loads((folder / "run" / "run.json").read_text())
    assert record["finished"]
    return record["weights_sha256"]


@pytest.mark.slow
def test_what_a_node_that_dies_leaves_ends_with_the_bits_of_one_node(nodes: list[Node], tmp_path: Path) -> None:
    first, second = nodes
    dying = ["fit", "--config", "fit.yaml", "--trainer.callbacks+", "dies.NodeDies"]
    runs = [node.run(*dying) for node in nodes]
    said, _ = outputs(runs)
    assert runs[1].returncode == -signal.SIGKILL
    assert runs[0].returncode == 1, said
    assert "error: another rank has ended: by an error, which it printed, or killed" in said
    assert "go on with --ckpt_path last" in said

    # All files are node 0's.
    assert (first.folder / "run" / "last.ckpt").exists()
    assert not (second.folder / "run").exists()
    on_ranks(2, trains, str(first.folder), "--ckpt_path", "last")

    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "fit.yaml").write_text(FIT)
    on_ranks(1, trains, str(alone))
    assert weights(first.folder) == weights(alone)
    metrics = [(folder / "run" / "metrics.jsonl").read_bytes() for folder in (first.folder, alone)]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"MASTER_ADDR": "node7"}, "error: MASTER_ADDR is node7, which is no address, and no name that this node knows"),
        ({"MASTER_PORT": "4"}, "error: nobody listens at node0, port 4, after 1 s: start node 0 there"),
        ({"MASTER_ADDR": "10.213.0.9"}, "error: nobody listens at 10.213.0.9, port 29500, after 1 s: start node 0 there"),
    ],
    ids=["unknown name", "closed port", "nobody's address"],
)
def test_a_node_that_finds_no_first_one_says_so_in_a_line(nodes: list[Node], environment: dict[str, str], error: str) -> None:
    run = nodes[1].run("fit", MASTER_TIMEOUT="1", **environment)
    (said,) = outputs([run])
    assert run.returncode
    assert said.startswith(error)
    assert said.count("\n") == 1
