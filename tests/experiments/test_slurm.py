"""Runs under SLURM: on a real one that lives on this machine while the tests run, and with a stand-in for sbatch."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from fl_lightning.cli import main
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.slurm import SlurmOptions, submit
from fl_lightning.files.run_files import locked

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
CLUSTER = ROOT / "tests" / "slurm" / "cluster.sh"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
TIMEOUT_SECONDS = 600
LONG = 30
"""Rounds of the run that is interrupted, and of its twin that is not."""

TOPOLOGIES = [(1, 2), (2, 1)]
"""Nodes, and processes on each."""

LEFT_BEHIND = ("SLURM", "SBATCH", "NPROC", "MASTER_", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")
"""What jobs must not see of the environment in which tests run, or of training within this process."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of two nodes with four CPUs each; SLURM's commands find it by SLURM_CONF."""
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing or os.geteuid():
        pytest.skip(f"needs {', '.join(missing)} (slurm-wlm, munge)" if missing else "only root can start slurmd")
    folder = tempfile.mkdtemp(prefix="slurm-")  # short: a socket lies in it
    started = subprocess.run([CLUSTER, "start", folder], capture_output=True, text=True)
    if started.returncode:
        pytest.fail(started.stderr)
    here = {
        "SLURM_CONF": f"{folder}/slurm.conf",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",  # both nodes are this machine
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(LEFT_BEHIND)]:
            patch.delenv(name)
        for name, value in here.items():
            patch.setenv(name, value)
        yield
    subprocess.run([CLUSTER, "stop", folder], check=True)
    shutil.rmtree(folder)


def make_run(folder: Path, rounds: int, seed: int = 0) -> Path:
    """A folder with the configuration of a small run."""
    config = yaml.safe_load(QUICKSTART.read_text())
    config["seed_everything"] = seed
    config["trainer"].update(max_epochs=rounds, logger=False, default_root_dir=str(folder))
    config["data"]["init_args"].update(num_train=2000, num_test=300)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def log(folder: Path) -> str:
    path = folder / "log.txt"
    return path.read_text(errors="replace") if path.exists() else ""


def queued(*jobs: str) -> list[str]:
    """The tasks of jobs that have not ended."""
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={','.join(jobs)}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def wait_for(what: str, condition: Callable[[], bool], logs: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            said = "\n".join(f"{path}:\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(logs.rglob("*log*")))
            pytest.fail(f"{what}: not in {TIMEOUT_SECONDS} s\n{said}")
        time.sleep(0.2)


def fit(folder: Path) -> list[str]:
    return ["fit", "--config", str(folder / "config.yaml")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Folders of runs in one process without SLURM: one as long as the interrupted run, and one of two rounds."""
    base = tmp_path_factory.mktemp("alone")
    with mock.patch.dict(os.environ):  # Lightning leaves its ranks there
        main(fit(make_run(base / "long", LONG)))
        main(fit(make_run(base / "short", 2)))
    return base


@pytest.fixture(scope="module")
def trained(alone, cluster, tmp_path_factory) -> tuple[Path, str]:
    """All that trains in batch jobs, finished, and the array's number.

    The array has a run that was told that its time is up when it had done some rounds, a short one, and one that was
    finished before. Beside it runs each of `TOPOLOGIES`.
    """
    base = tmp_path_factory.mktemp("trained")
    runs = [make_run(base / "run-0", LONG), make_run(base / "run-1", 2, seed=1)]
    (array,) = submit([*runs, alone / "short"], base / "lists", SlurmOptions(time="10"))
    jobs = [array, *(submit_one(make_run(base / f"{nodes}x{each}", 2), nodes, each) for nodes, each in TOPOLOGIES)]
    wait_for("the interrupted run's second round", lambda: f"round 2/{LONG}" in log(runs[0]), base)
    subprocess.run(["scancel", "--signal=USR1", "--batch", f"{array}_0"], check=True)
    wait_for("the jobs' end", lambda: not queued(*jobs), base)
    return base, array


def submit_one(folder: Path, nodes: int, processes: int) -> str:
    """Submit one run on some nodes, with some processes on each."""
    script = str(ROOT / "launch" / "slurm_multinode.sbatch")
    command = ["sbatch", "--parsable", f"--nodes={nodes}", f"--output={folder / 'log.txt'}", script, *fit(folder)]
    environment = {**os.environ, "NPROC": str(processes)}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_an_array_trains_every_run_of_its_list(trained):
    base, array = trained
    records = [record(base / f"run-{i}") for i in range(2)]
    assert all(each["finished"] for each in records)
    assert [each["seed"] for each in records] == [0, 1]
    assert [each["rounds"] for each in records] == [LONG, 2]
    assert {path.name for path in (base / "lists").iterdir()} == {"array-0.txt", *(f"slurm-{array}_{i}.log" for i in range(3))}


def test_a_task_whose_time_is_up_goes_back_into_the_queue_and_on(trained, alone):
    base, array = trained
    said = [(base / "lists" / f"slurm-{array}_{i}.log").read_text() for i in range(3)]
    assert [f"is about to end job {array}_{i};" in text for i, text in enumerate(said)] == [True] + [False] * 2
    measured = [json.loads(line)["round"] for line in (base / "run-0" / "metrics.jsonl").read_text().splitlines()]
    assert measured == list(range(1, LONG + 1))
    # It went on: at most the round that was under way is there twice. A line can be missing from the log, which srun passes on
    # and which it drops when it is ended before the ranks are.
    shown = [int(found) for found in re.findall(rf"round (\d+)/{LONG}:", log(base / "run-0"))]
    assert shown[:2] == [1, 2]
    assert shown.count(1) == 1
    assert len(shown) <= LONG + 1
    interrupted, undisturbed = record(base / "run-0"), record(alone / "long")
    assert interrupted["weights_sha256"] == undisturbed["weights_sha256"]
    assert interrupted["acc_last10"] == undisturbed["acc_last10"]


def test_a_finished_run_is_left_alone(trained, alone):
    assert not log(alone / "short")


@pytest.mark.parametrize(("nodes", "processes"), TOPOLOGIES)
def test_torchrun_under_srun(trained, alone, nodes, processes):
    folder = trained[0] / f"{nodes}x{processes}"
    assert (folder / "run.json").exists(), log(folder)
    assert record(folder)["world_size"] == nodes * processes
    assert record(folder)["weights_sha256"] == record(alone / "short")["weights_sha256"]


def test_srun_starts_ranks(cluster, alone, tmp_path):
    folder = make_run(tmp_path / "run", 2)
    command = ["srun", "-N1", "-n2", "--kill-on-bad-exit=1", sys.executable, "-m", "fl_lightning", *fit(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert record(folder)["world_size"] == 2
    assert record(folder)["weights_sha256"] == record(alone / "short")["weights_sha256"]


def test_the_clusters_own_limit_of_arrays(cluster, tmp_path):
    """Its MaxArraySize is 8."""
    jobs = submit([tmp_path / f"run-{i}" for i in range(10)], tmp_path, SlurmOptions(extra=["--hold"]))
    try:
        assert [len(queued(job)) for job in jobs] == [8, 2]
    finally:
        subprocess.run(["scancel", *jobs], check=True)


def test_the_clusters_refusal_is_shown(cluster, tmp_path):
    with pytest.raises(ConfigurationError, match=r"sbatch refused .*invalid partition.* --partition=nowhere"):
        submit([tmp_path], tmp_path, SlurmOptions(partition="nowhere"))


# Without a cluster.


@pytest.fixture
def sbatch(tmp_path, monkeypatch) -> Path:
    """Stand-ins: an sbatch that writes its calls down, and refuses from the n-th on, and a scontrol that knows nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    (folder / "sbatch").write_text(
        f"""#!{sys.executable}
import json, os, pathlib, sys
calls = pathlib.Path({str(calls)!r})
earlier = calls.read_text().splitlines() if calls.exists() else []
if len(earlier) >= int(os.environ.get("ACCEPTED", "100")):
    sys.exit("sbatch: error: Batch job submission failed:\\n Job violates accounting policy")
environment = {{k: v for k, v in os.environ.items() if k.startswith(("SLURM", "NPROC", "FL_LIGHTNING"))}}
with calls.open("a") as file:
    file.write(json.dumps([sys.argv[1:], environment]) + "\\n")
print(f"{{100 + len(earlier)}};cluster")
"""
    )
    (folder / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    for path in folder.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("FL_LIGHTNING_LAUNCH", raising=False)
    return calls


def read(calls: Path) -> list[tuple[list[str], dict[str, str]]]:
    return [tuple(json.loads(line)) for line in calls.read_text().splitlines()]


def names(base: Path, indices: Iterable[int]) -> list[Path]:
    return [base / f"run {i}" for i in indices]


def test_runs_are_cut_into_arrays(sbatch, tmp_path):
    lists = tmp_path / "100% lists"
    assert submit(names(tmp_path, range(7)), lists, SlurmOptions(array_limit=3, at_once=2)) == ["100", "101", "102"]
    calls = [arguments for arguments, _ in read(sbatch)]
    script = str(ROOT / "launch" / "slurm_array.sbatch")
    for k, (arguments, array) in enumerate(zip(calls, ["0-2%2", "0-2%2", "0-0%2"], strict=True)):
        assert arguments[:2] == ["--parsable", f"--array={array}"]
        assert f"--output={tmp_path}/100%% lists/slurm-%A_%a.log" in arguments
        assert arguments[-2:] == [script, str(lists / f"array-{k}.txt")]
        assert [a for a in arguments if "dependency" in a] == ([f"--dependency=afterany:{99 + k}"] if k else [])
    written = "".join((lists / f"array-{k}.txt").read_text() for k in range(3)).splitlines()
    assert written == [str(folder) for folder in names(tmp_path, range(7))]


def test_prefixes_are_submitted_before_the_runs_that_begin_with_them(sbatch, tmp_path, capsys):
    (tmp_path / "two.yaml").write_text(
        f"{{base: [{QUICKSTART}, {{model: {{cohort: {{start_round: 2}}}}}}], prefix: {{rounds: 2}}, axes: {{seed: [0, 1]}}}}"
    )
    sweep = ["sweep", "two.yaml", "--slurm", "--array-limit", "1"]
    main([*sweep, "--at-once", "1"])
    calls = [arguments for arguments, _ in read(sbatch)]
    dependencies = [[a.partition("afterany:")[2] for a in arguments if "dependency" in a] for arguments in calls]
    assert dependencies == [[], ["100"], ["100:101"], ["100:101:102"]]
    lists = [Path(Path(arguments[-1]).read_text().strip()) for arguments in calls]
    assert [folder.parent.name for folder in lists] == ["prefixes", "prefixes", "pool", "pool"]
    for prefix, run in zip(lists[:2], lists[2:], strict=True):
        assert json.loads((run / "prefix.json").read_text())["folder"] == f"../../prefixes/{prefix.name}"
        assert (prefix / "config.yaml").exists()
    assert (
        "2 prefixes submitted as job arrays: 100, 101\n2 of 2 runs submitted as job arrays: 102, 103" in capsys.readouterr().out
    )
    (lists[0] / "run.json").write_text('{"finished": true}')
    with locked(lists[1] / "lock"):  # this prefix is at work, on whatever machine
        main(sweep)
    (arguments, _), *more = read(sbatch)[4:]
    assert not more
    assert Path(Path(arguments[-1]).read_text().strip()) == lists[2]
    assert not [a for a in arguments if "dependency" in a]
    assert "1 more begin with prefixes that are at work now" in capsys.readouterr().out


def test_a_later_submission_leaves_earlier_lists_alone(sbatch, tmp_path):
    submit(names(tmp_path, [0, 1]), tmp_path, SlurmOptions())
    submit(names(tmp_path, [2]), tmp_path, SlurmOptions())
    assert (tmp_path / "array-0.txt").read_text() == f"{tmp_path}/run 0\n{tmp_path}/run 1\n"
    assert (tmp_path / "array-1.txt").read_text() == f"{tmp_path}/run 2\n"
    assert submit([], tmp_path, SlurmOptions()) == []
    assert len(read(sbatch)) == 2


def test_options_become_flags_and_environment(sbatch, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of the job in which submit() itself may run
    monkeypatch.setenv("NPROC", "9")
    monkeypatch.setenv("SLURM_CONF", "/etc/there")
    every = SlurmOptions(
        partition="gpu", account="lab", time="4:00:00", gpus_per_node=4, cpus_per_task=16, nodes=2, processes_per_node=3,
        extra=["--qos=long"],
    )  # fmt: skip
    submit([tmp_path], tmp_path, every)
    submit([tmp_path], tmp_path, SlurmOptions(gpus_per_node=2))
    submit([tmp_path], tmp_path, SlurmOptions())
    (arguments, environment), (two, _), (least, bare) = read(sbatch)
    asked = ["--partition=gpu", "--account=lab", "--time=4:00:00", "--gpus-per-node=4", "--nodes=2", "--cpus-per-task=16"]
    assert arguments[3:-2] == [*asked, "--qos=long"]
    assert environment == {"SLURM_CONF": "/etc/there", "NPROC": "3", "FL_LIGHTNING_LAUNCH": str(ROOT / "launch")}
    assert two[3:-2] == ["--gpus-per-node=2", "--nodes=1", "--cpus-per-task=2"]
    assert least[3:-2] == ["--nodes=1", "--cpus-per-task=1"]
    assert "NPROC" not in bare


def test_a_refusal_tells_what_is_submitted_already(sbatch, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCEPTED", "2")
    with pytest.raises(ConfigurationError, match=r"violates accounting policy.*first 4 of 5 runs.*`scancel 100 101`"):
        submit(names(tmp_path, range(5)), tmp_path, SlurmOptions(array_limit=2))
    with pytest.raises(ConfigurationError, match=r"^sbatch refused \(sbatch: error: .* accounting policy\): sbatch --parsable"):
        submit(names(tmp_path, range(5)), tmp_path, SlurmOptions())


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("gpus_per_node", -1, 0), ("cpus_per_task", 0, 1), ("nodes", 0, 1), ("processes_per_node", 0, 1), ("array_limit", 0, 1),
     ("at_once", 0, 1)],
)  # fmt: skip
def test_values_out_of_range(name, value, least):
    with pytest.raises(ConfigurationError, match=f"slurm.{name} must be at least {least}, got {value}"):
        SlurmOptions(**{name: value})


def test_what_submit_needs(sbatch, tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match="must not have a line break"):
        submit([tmp_path / "a\nb"], tmp_path, SlurmOptions())
    monkeypatch.setenv("FL_LIGHTNING_LAUNCH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no slurm_array.sbatch .* FL_LIGHTNING_LAUNCH"):
        submit([tmp_path], tmp_path, SlurmOptions())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="no `sbatch` on PATH"):
        submit([tmp_path], tmp_path, SlurmOptions())


@pytest.mark.parametrize("name", ["torchrun.sh", "requeue.sh", "slurm_multinode.sbatch", "slurm_array.sbatch"])
def test_launchers_tell_how_they_are_used(name):
    launcher = str(ROOT / "launch" / name)
    assert "Usage: " in subprocess.run([launcher, "-h"], capture_output=True, text=True, check=True).stdout
    wrong = subprocess.run([launcher], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "Usage: " in wrong.stderr
