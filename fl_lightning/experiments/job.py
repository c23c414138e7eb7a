"""One run, in its folder: `python -m fl_lightning.experiments.job FOLDER -- COMMAND...`.

A sweep on one machine and a task of a SLURM array both come through here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments import failures, forks
from fl_lightning.experiments.run_folder import BEAT_SECONDS, RunFolder, State
from fl_lightning.files.regular_files import check_regular
from fl_lightning.files.run_files import LockedError

LOCKED = 75
"""Exit status where another process is at work in the folder: try again later."""

UNFINISHED = 1
"""Exit status of a job whose command left with 0 before the run was finished."""

STOP_SECONDS = 45.0
"""How long a run may take to stop before it is killed; torchrun gives its processes 30."""


class Child(Protocol):
    """A process that was started, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


Starter = Callable[[Sequence[str], Mapping[str, str] | None, IO[str], int], Child]
"""Starts a command in an environment and a session of its own, with a log of what it prints and a descriptor that it keeps."""


def start(command: Sequence[str], environment: Mapping[str, str] | None, log: IO[str], descriptor: int) -> Child:
    """As a new process."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that Ctrl-C reaches it through `stop` alone
        pass_fds=[descriptor],
    )


def run(
    folder: RunFolder,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    start: Starter = start,
) -> int:
    """Run a command that trains in a folder, unless the run is finished, and write down what became of it.

    Its output is added to `log.txt`. It goes on after this process is killed, and holds the folder's lock until it ends, so
    nobody starts the run a second time meanwhile.

    Args:
        folder: the run's folder, made by the caller.
        command: program and arguments.
        environment: of the command; this process's by default.
        stop: ends the run when it is set; the run then counts as interrupted.
        start: how the command is started.

    Returns:
        0 if the run is finished, else the command's exit status, minus the signal's number if a signal ended it.

    Raises:
        ConfigurationError: the settings are not what was written, something else is in the place of one of the run's files, or
            the prefix that the run begins with is of no use.
        LockedError: another process is at work in the folder, or in the prefix's.
    """
    stop = stop or threading.Event()
    with folder.lock() as descriptor:
        if folder.finished:
            return 0
        if folder.at_work_elsewhere:  # on a file system whose locks end at a machine
            raise LockedError(str(folder.path))
        attempt = folder.attempt + 1
        check_regular(folder.log)
        try:
            folder.check_config()
            forked = forks.begin(folder)
        except ConfigurationError as error:
            folder.write_status(State.FAILED, attempt=attempt, message=str(error))
            raise
        with folder.log.open("a") as output:
            began = output.tell()
            print(*set_aside_damage(folder.path), forked and f"{forked}\n", sep="", end="", file=output, flush=True)
            child = start(command, environment, output, descriptor)
            about = {"attempt": attempt, "command": list(command), "child": child.pid}
            try:
                folder.write_status(State.RUNNING, **about)
            except OSError:
                end(child)  # which nobody would know of
                raise
            status = watch(child, folder, stop)
        if folder.finished:
            folder.write_status(State.FINISHED, **about, exit_status=status)
            return 0
        log, ended = failures.read(folder.log, began), folder.record
        if status == 0 and ended.get("state") == State.STOPPED:
            folder.write_status(State.STOPPED, **about, exit_status=status, message=ended.get("reason", ""))
        elif stop.is_set() or failures.was_stopped(log, status):
            folder.write_status(State.INTERRUPTED, **about, exit_status=status)
        else:
            folder.write_status(State.FAILED, **about, exit_status=status, message=failures.why(log, status))
        return status or UNFINISHED


def set_aside_damage(folder: Path) -> list[str]:
    """Let a run that nobody watches go on from its previous checkpoint where the last one is damaged, and say so in a line."""
    if not (folder / "last.ckpt").exists():
        return []
    from fl_lightning.checkpoints import resuming  # and with it torch, which only a run that goes on is worth

    return [f"{said}\n" for said in resuming.set_aside(folder)]


def watch(child: Child, folder: RunFolder, stop: threading.Event) -> int:
    """Wait for a process to end, giving signs of life for it, and end it when `stop` is set; returns its exit status."""
    last = time.monotonic()
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() - last >= BEAT_SECONDS:
            folder.beat()
            last = time.monotonic()
        if stop.is_set():
            end(child)
            return child.wait()


def end(child: Child) -> None:
    """Ask a process to stop, and kill it and all that it started, in whatever session, if they do not."""
    family = descendants(child.pid)  # before any of them ends, as its children are then nobody's
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and (child.poll() is None or any(alive(pid) for pid in family)):
        time.sleep(0.1)
        family |= descendants(child.pid)
    if child.poll() is None:
        child.kill()
    for pid in filter(alive, family):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and those that they started, where the system tells (/proc)."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, new = set(), {pid}
    while new:
        new = {one for one, parent in parents.items() if parent in new}
        found |= new
    return found


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended, as far as the system tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main(args: Sequence[str] | None = None) -> int:
    """The command line: a run's folder, `--`, and the command."""
    given = list(sys.argv[1:] if args is None else args)
    if len(given) < 3 or given[1] != "--":
        print("usage: python -m fl_lightning.experiments.job FOLDER -- COMMAND...", file=sys.stderr)
        return 2
    path, command = given[0], given[2:]
    folder = RunFolder(Path(path))
    if not folder.config.exists():
        print(f"error: {path} is not the folder of a run: there is no config.yaml in it", file=sys.stderr)
        return 2
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        return run(folder, command, stop=stop)
    except LockedError as error:
        print(f"error: another process is at work in {str(error).removesuffix('/lock')}", file=sys.stderr)
        return LOCKED
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
