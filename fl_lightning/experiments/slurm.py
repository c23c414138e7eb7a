"""Runs of a sweep as job arrays of a SLURM cluster."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_lightning.errors import ConfigurationError, folded
from fl_lightning.shipped import LAUNCH

MINIMA = {"gpus_per_node": 0, "cpus_per_task": 1, "nodes": 1, "processes_per_node": 1, "array_limit": 1, "at_once": 1}
"""The least that settings may be."""


@dataclass(frozen=True)
class SlurmOptions:
    """What each run of a sweep asks SLURM for.

    Args:
        partition: the partition to run in; the cluster's default unless given.
        account: the account to charge; the user's default unless given.
        time: time limit of one run in a form that sbatch knows, such as "4:00:00"; the partition's unless given. Two minutes
            before it is reached, a run is requeued and then goes on: it must be longer than that and a few rounds.
        gpus_per_node: GPUs of a run on each of its nodes; none unless given.
        cpus_per_task: CPUs of a run on each of its nodes, for all its processes there; one per process unless given.
        nodes: nodes of one run.
        processes_per_node: processes of a run on each of its nodes; the number of GPUs, or one without them, unless given.
        array_limit: tasks of one array at most; more runs become several arrays. The cluster's own limit holds too.
        at_once: runs at a time at most. Arrays of one submission then follow one another.
        extra: further options of sbatch, such as ["--qos=long", "--mem=32G"]; they win over all others.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    nodes: int = 1
    processes_per_node: int | None = None
    array_limit: int = 1000
    at_once: int | None = None
    extra: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in MINIMA.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"slurm.{name} must be at least {least}, got {value}")

    def flags(self) -> list[str]:
        """As sbatch takes them, but for those of arrays."""
        named = {"partition": self.partition, "account": self.account, "time": self.time}
        return [
            *(f"--{name}={value}" for name, value in named.items() if value is not None),
            *([f"--gpus-per-node={self.gpus_per_node}"] if self.gpus_per_node else []),
            f"--nodes={self.nodes}",
            f"--cpus-per-task={self.cpus_per_task or self.processes_per_node or self.gpus_per_node or 1}",
        ]


def submit(folders: Sequence[Path], lists: Path, options: SlurmOptions, after: Sequence[str] = ()) -> list[str]:
    """Submit runs as job arrays, task i of which takes line i + 1 of a list.

    Args:
        folders: the runs' folders, each with its `config.yaml`.
        lists: where the lists (`array-<k>.txt`) and what SLURM's tasks say (`slurm-<job>_<task>.log`) go.
        options: what each run asks for.
        after: ids of arrays that must have ended before, well or not, as those of prefixes.

    Returns:
        The ids of the arrays, in order.

    Raises:
        ConfigurationError: there is no sbatch here, it refused, or a path cannot be given to it.
    """
    if not folders:
        return []
    if shutil.which("sbatch") is None:
        raise ConfigurationError(
            "there is no `sbatch` on PATH: submit from a login node of the cluster, or run the sweep without SLURM"
        )
    script = launch_folder() / "slurm_array.sbatch"
    size = array_size(options.array_limit)
    lists = lists.absolute()
    lists.mkdir(parents=True, exist_ok=True)
    jobs: list[str] = []
    for start in range(0, len(folders), size):
        chunk = folders[start : start + size]
        before = [*after, *(jobs[-1:] if options.at_once else ())]
        flags = [
            "--parsable",
            f"--array=0-{len(chunk) - 1}" + (f"%{options.at_once}" if options.at_once else ""),
            f"--output={str(lists).replace('%', '%%')}/slurm-%A_%a.log",
            *([f"--dependency=afterany:{':'.join(before)}"] if before else []),
            *options.flags(),
            *options.extra,
        ]
        try:
            jobs.append(sbatch([*flags, str(script), str(write_list(chunk, lists))], options))
        except ConfigurationError as error:
            submitted = [*after, *jobs]
            if not submitted:
                raise
            what = f"The first {start} of {len(folders)} runs" if jobs else "Their prefixes"
            raise ConfigurationError(
                f"{error}. {what} are submitted as {', '.join(jobs or after)}; `scancel {' '.join(submitted)}` takes them back"
            ) from error
    return jobs


def sbatch(arguments: list[str], options: SlurmOptions) -> str:
    """Submit one job and return its id."""
    # Where this runs inside another job, that job's variables would pass for wishes.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in ("SLURM_CONF", "SLURM_JWT")}
    environment["FL_LIGHTNING_LAUNCH"] = str(launch_folder())
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # runs take this python
    for name in ("NPROC", "MASTER_PORT"):  # of another run
        environment.pop(name, None)
    if options.processes_per_node:
        environment["NPROC"] = str(options.processes_per_node)
    done = subprocess.run(["sbatch", *arguments], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = folded(done.stderr or done.stdout)
        raise ConfigurationError(f"sbatch refused ({said or f'exit status {done.returncode}'}): sbatch {' '.join(arguments)}")
    return done.stdout.strip().split(";")[0]  # "id" or "id;cluster"


def write_list(folders: Sequence[Path], lists: Path) -> Path:
    """Write a new list: tasks of arrays that were submitted before may have still to read theirs."""
    lines = [str(folder.absolute()) for folder in folders]
    for line in lines:
        if "\n" in line:
            raise ConfigurationError(f"the path of a run must not have a line break in it: {line!r}; move the runs elsewhere")
    k = 0
    while True:
        try:
            with (lists / f"array-{k}.txt").open("x") as file:
                file.writelines(f"{line}\n" for line in lines)
            return lists / f"array-{k}.txt"
        except FileExistsError:
            k += 1


def array_size(limit: int) -> int:
    """The tasks that an array may have: the limit, or the cluster's own if that is known and smaller."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return limit
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    if found is None:
        return limit
    if int(found[1]) == 0:
        raise ConfigurationError("this cluster takes no job arrays: its MaxArraySize is 0; run the sweep without SLURM")
    return min(limit, int(found[1]))


def launch_folder() -> Path:
    """Where the batch scripts lie.

    Raises:
        ConfigurationError: they are not there.
    """
    folder = Path(os.environ.get("FL_LIGHTNING_LAUNCH") or LAUNCH).absolute()
    if not (folder / "slurm_array.sbatch").exists():
        raise ConfigurationError(
            f"there is no slurm_array.sbatch in {folder}; set FL_LIGHTNING_LAUNCH to the folder launch/ that "
            "`fl-lightning init` copies"
        )
    return folder
