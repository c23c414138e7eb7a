"""A process that has imported what runs need, and forks one for each: `python -m fl_lightning.experiments.warm_server FD`.

To import torch and Lightning takes longer than a short run does. A run that is forked has them from its first moment, and is a
process of its own in all else: session, output, lock, memory, exit status. It finds what a new process would: classes of the
user's own are imported by it alone, never here, and whatever this process has drawn or opened is put back in it.

FD is a socket where requests come in; where it closes, whoever asked is gone, and this process ends at once, while runs go on.

| from | on | message |
| --- | --- | --- |
| server | FD | `{"ready": true}`, or `{"refused": why}`, after which it ends |
| client | FD | `{"command": [...]}` with three descriptors: the log, the lock, and a socket for what becomes of the run |
| run | its socket | `{"pid": number}`, before anything of it runs |
| server | its socket | `{"status": number}` as `subprocess` has it, or `{"refused": why}` |
| run | one that runs share | `[kind, seconds, seconds]`: what a trial has found, for the runs after it (`trials`) |
| run | the same | `{"kind": ..., "script": {...}, "draws": ...}`: steps that it has recorded, likewise (`scripts`) |
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fl_lightning.experiments.packets import MOST_BYTES, pair, send
from fl_lightning.experiments.warm_client import START
from fl_lightning.training.trials import TRIALS

if TYPE_CHECKING:
    from fl_lightning.training.scripts import Scripts

LOOK_SECONDS = 0.02
"""Time between two looks for runs that have ended."""

NEEDED = (
    *(
        "fl_lightning.cli",
        "fl_lightning.configuration",
        "fl_lightning.aggregators",
        "fl_lightning.attacks",
        "fl_lightning.data",
        "fl_lightning.models",
    ),
    *("numpy", "torch", "torch.utils.tensorboard"),
)
"""Modules that every run imports, before its configuration is read or while it is."""


@dataclass
class Request:
    """A run that is to be forked; in the run's process what it is.

    Args:
        command: program and arguments.
        log: descriptor of its output.
        lock: descriptor that holds the folder's lock.
        reports: where to say what becomes of it.
    """

    command: list[str]
    log: int
    lock: int
    reports: socket.socket

    def close(self) -> None:
        """Let go of what is the run's."""
        os.close(self.log)
        os.close(self.lock)


@dataclass
class Server:
    """Forks runs and reports how they end.

    Args:
        requests: where they come in.
        running: the socket of every run that has not ended, by its process.
        found: the two ends of the socket by which runs say what their trials have found.
    """

    requests: socket.socket
    running: dict[int, socket.socket] = field(default_factory=dict)
    found: tuple[socket.socket, socket.socket] = field(default_factory=pair)

    def serve(self) -> Request | None:
        """Fork one run after the other.

        Returns:
            in the process of a run its request; None in this process, when nobody is left who asks.
        """
        while True:
            readable, _, _ = select.select([self.requests], [], [], LOOK_SECONDS if self.running else None)
            self.report()
            if readable:
                request = self.receive()
                if request is None:
                    return None
                if (why := why_not()) is not None:
                    send(request.reports, {"refused": why})
                    request.close()
                    request.reports.close()
                    continue
                self.learn()
                pid = os.fork()
                if pid == 0:
                    return request
                request.close()
                self.running[pid] = request.reports

    def receive(self) -> Request | None:
        """The next request; None where nobody is there any more."""
        message, descriptors, _, _ = socket.recv_fds(self.requests, MOST_BYTES, 3)
        if not message:
            return None
        log, lock, reports = descriptors
        return Request(json.loads(message)["command"], log, lock, socket.socket(fileno=reports))

    def learn(self) -> None:
        """Take in what trials have found, for the runs to come."""
        while select.select([self.found[0]], [], [], 0)[0]:
            message = json.loads(self.found[0].recv(MOST_BYTES))
            if isinstance(message, dict):
                scripts().note(**message)
            else:
                TRIALS.note(*message)

    def report(self) -> None:
        """Say of runs that have ended how they did."""
        for pid, reports in list(self.running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                send(reports, {"status": os.waitstatus_to_exitcode(status)})
                self.running.pop(pid).close()


def scripts() -> Scripts:
    """The memory of recorded steps, with torch, which is imported when it is wanted alone."""
    from fl_lightning.training.scripts import SCRIPTS

    return SCRIPTS


def why_not() -> str | None:
    """Why no run can be forked from this process: a thread's locks and a GPU's context do not come along."""
    number = lasting_threads()
    if number > 1:
        return f"it has {number} threads, of which a forked process has one"
    import torch

    if torch.cuda.is_initialized():
        return "it is at work on a GPU, which a forked process cannot be"
    return None


def lasting_threads() -> int:
    """Threads without those that their library ends for a fork and starts again when it needs them, as OpenBLAS does."""
    if threads() > 1:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    return threads()


def threads() -> int:
    """Threads of this process, as far as the system tells."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def prepare() -> None:
    """Import what runs need, make the parser of their settings, and set aside for good what is there by then.

    The collector of garbage does not go through what is set aside: neither through memory that runs share, which it would make
    theirs by writing to it, nor at a run's end.
    """
    for name in NEEDED:
        importlib.import_module(name)
    from fl_lightning.configuration import FederatedCLI, Reader

    FederatedCLI.made_before = Reader()
    gc.collect()
    gc.freeze()


def become(request: Request, server: Server) -> list[str]:
    """Make of a process that was just forked the one that its command would have started; returns its command's arguments."""
    os.setsid()
    if not send(request.reports, {"pid": os.getpid()}):
        os._exit(1)  # nobody would know of the run
    for mine in (server.requests, server.found[0], request.reports, *server.running.values()):
        mine.close()
    found = server.found[1]
    TRIALS.tell = lambda *measured: send(found, measured, socket.MSG_DONTWAIT)
    scripts().tell = lambda recorded: send(found, recorded, socket.MSG_DONTWAIT)
    os.dup2(request.log, 1)
    os.dup2(request.log, 2)
    os.close(request.log)
    os.set_inheritable(request.lock, True)  # as it is in a process that was started with it
    importlib.invalidate_caches()  # files may be new since this process looked
    as_new()
    leave_early()
    sys.orig_argv[:] = request.command
    return request.command[1 + len(START) :]


def as_new() -> None:
    """Seed the global generators by the system, as in a new process; Python's own sees to itself."""
    import numpy as np
    import torch

    np.random.seed()  # noqa: NPY002  the global one is meant
    torch.default_generator.seed()


def leave_early() -> None:
    """At the end, when Python is done, leave what the C++ libraries of the server have in memory to the system.

    To take it apart, operator by operator, takes a fifth of a second. What libraries do at the end that the run loads itself is
    done: the last to register is the first to be called.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc
        atexit.register(libc.fflush, None)
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


def main(args: Sequence[str]) -> None:
    """Serve, and return in the process of a run when that has come to its end."""
    server = Server(socket.socket(fileno=int(args[0])))
    why = why_not()
    if why is None:
        prepare()
        why = why_not()
    there = send(server.requests, {"ready": True} if why is None else {"refused": why})
    request = server.serve() if there and why is None else None
    if request is None:
        os._exit(0)  # there is nothing to put away, and to do so would take a second
    arguments = become(request, server)
    del server, request
    sys.argv[:] = [str(Path(__file__).parents[1] / "__main__.py"), *arguments]
    runpy.run_module(START[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
