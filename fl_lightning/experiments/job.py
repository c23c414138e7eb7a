"""One run, in its folder: `python -m fl_lightning.experiments.job FOLDER -- COMMAND...`.

A sweep on one machine and a task of a SLURM array both come through here.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_lightning.experiments.run_folder import BEAT_SECONDS, LockedError, RunFolder, State

LOCKED = 75
"""Exit status where another process is at work in the folder: try again later."""

STOP_SECONDS = 20.0
"""How long a run may take to stop before it is killed."""


def run(
    folder: RunFolder,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> int:
    """Run a command that trains in a folder, unless the run is finished, and write down what became of it.

    Its output is added to `log.txt`. It goes on after this process is killed, and holds the folder's lock until it ends, so
    nobody starts the run a second time meanwhile.

    Args:
        folder: the run's folder, made by the caller.
        command: program and arguments.
        environment: of the command; this process's by default.
        stop: ends the run when it is set; the run then counts as interrupted.

    Returns:
        0 if the run is finished, the command's exit status if it failed, minus the signal's number if a signal ended it.

    Raises:
        LockedError: another process is at work in the folder.
    """
    stop = stop or threading.Event()
    with folder.lock() as descriptor:
        if folder.record.get("finished"):
            return 0
        attempt = int(folder.status.get("attempt", 0)) + 1
        folder.write_status(State.RUNNING, attempt=attempt, command=list(command))
        with folder.log.open("a") as log:
            child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches it through `stop` alone
                pass_fds=[descriptor],
            )
            status = watch(child, folder, stop)
        if stop.is_set():
            return status
        finished = status == 0 and bool(folder.record.get("finished"))
        if finished:
            folder.write_status(State.FINISHED, attempt=attempt, command=list(command), exit_status=status)
            return 0
        message = why(folder, status)
        folder.write_status(State.FAILED, attempt=attempt, command=list(command), exit_status=status, message=message)
        return status or 1


def watch(child: subprocess.Popen[bytes], folder: RunFolder, stop: threading.Event) -> int:
    """Wait for a process to end, giving signs of life for it, and end it when `stop` is set; returns its exit status."""
    beat = 0.0
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            beat += 0.2
        if beat >= BEAT_SECONDS:
            folder.beat()
            beat = 0.0
        if stop.is_set():
            end(child)
            return child.wait()


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask a process and those it started to stop, and kill them if they do not."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def why(folder: RunFolder, status: int) -> str:
    """What the end of the log says about a failure: its last error message, or its last line."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}" + (", as the system does where memory runs out" if name == "SIGKILL" else "")
    lines = [line.strip() for line in folder.log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status}"])[-1]


def main(args: Sequence[str] | None = None) -> int:
    """The command line: a run's folder, `--`, and the command."""
    path, separator, *command = sys.argv[1:] if args is None else args
    if separator != "--" or not command:
        print("usage: python -m fl_lightning.experiments.job FOLDER -- COMMAND...", file=sys.stderr)
        return 2
    folder = RunFolder(Path(path))
    if not folder.config.exists():
        print(f"error: {path} is not the folder of a run: there is no config.yaml in it", file=sys.stderr)
        return 2
    try:
        return run(folder, command)
    except LockedError:
        print(f"error: another process is at work in {path}", file=sys.stderr)
        return LOCKED


if __name__ == "__main__":
    sys.exit(main())
