"""Runs of a sweep are forked from processes that have imported what runs need; see `warm_server`.

One such process serves all slots of the same environment. Where it cannot be had, runs are started as new processes, and why is
said once.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from fl_lightning.experiments import job
from fl_lightning.experiments.packets import pair, receive

SERVER = "fl_lightning.experiments.warm_server"

START = ("-m", "fl_lightning")
"""What a command has after the interpreter, for its run to be forked."""

LOOK_SECONDS = 0.05
"""Time between two looks at a run whose server has ended, or at a server that is not ready."""

UNKNOWN = "The process that this run was forked from has ended, so nobody knows how the run did."
"""In the log of such a run."""


class ForkedRun:
    """A run that a server has forked, to be waited for like a child of this process's own.

    Args:
        pid: its process.
        reports: where the server says how it ended.
        log: its log, by which a run is told whose end nobody saw.
    """

    def __init__(self, pid: int, reports: socket.socket, log: IO[str]) -> None:
        self.pid, self.reports, self.log = pid, reports, log
        self.status: int | None = None
        self.orphaned = False

    def poll(self) -> int | None:
        """Its exit status, minus a signal's number; None as long as it runs."""
        if self.status is None and not self.orphaned and select.select([self.reports], [], [], 0)[0]:
            message = receive(self.reports)
            self.status, self.orphaned = message.get("status"), not message
            self.reports.close()
        if self.status is None and self.orphaned and not job.alive(self.pid):
            print(UNKNOWN, file=self.log, flush=True)
            self.status = job.UNFINISHED
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        """The same, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, `timeout` seconds later.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            if self.orphaned:
                time.sleep(LOOK_SECONDS)
            else:
                select.select([self.reports], [], [], left)
        return status

    def kill(self) -> None:
        """End it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Servers:
    """The processes that runs are forked from, one for each environment; they end with the block.

    Args:
        say: tells the user.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.guard = threading.Lock()  # slots are threads
        self.servers: dict[tuple[tuple[str, str], ...], Server] = {}
        self.refused = ""

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.end()

    def begin(self, environments: Iterable[Mapping[str, str]]) -> None:
        """Have processes for these environments import what they need, which nobody waits for yet."""
        for environment in environments:
            key = key_of(environment)
            with suppress(OSError):  # which `starter` meets again, and says
                if key not in self.servers:
                    self.servers[key] = Server(environment)

    def starter(self, environment: Mapping[str, str], stop: threading.Event) -> job.Starter:
        """What starts a run in an environment. Waits for the server to be ready, as long as `stop` is not set."""
        key = key_of(environment)
        while not stop.is_set():
            with self.guard:
                if self.refused:
                    break
                server = self.servers.get(key)
                try:
                    if server is None or server.gone:
                        server = self.servers[key] = Server(environment)
                    if server.ready(LOOK_SECONDS):
                        return server.start
                    self.refused = server.refused
                except OSError as error:  # no memory for another process, say
                    self.refused = str(error)
                if self.refused:
                    self.say(f"every run is started as a new process, as no warm one can be used: {self.refused}")
        return job.start


def key_of(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """By which environments are told apart."""
    return tuple(sorted(environment.items()))


class Server:
    """A process that runs are forked from.

    Args:
        environment: its own, and that of its runs.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.requests, theirs = pair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", SERVER, str(theirs.fileno())],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that Ctrl-C does not reach it
                pass_fds=[theirs.fileno()],
            )
        self.is_ready, self.refused = False, ""

    @property
    def gone(self) -> bool:
        """Whether it has ended after it was ready, killed most likely."""
        return self.is_ready and self.process.poll() is not None

    def ready(self, patience: float) -> bool:
        """Whether runs can be forked from it; waits a moment. If it never will be, `refused` says why."""
        if not self.is_ready and not self.refused and select.select([self.requests], [], [], patience)[0]:
            message = receive(self.requests)
            self.is_ready = "ready" in message
            if not self.is_ready:
                self.refused = message.get("refused") or f"it ended with status {self.process.wait()} before it was ready"
        return self.is_ready and not self.refused

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None, log: IO[str], lock: int) -> job.Child:
        """Have a run forked, or start it as a new process, where it is no run of this package or the server is gone."""
        if tuple(command[:3]) != (sys.executable, *START):
            return job.start(command, environment, log, lock)
        reports, theirs = pair()
        try:
            with theirs:
                request = json.dumps({"command": list(command)}).encode()
                socket.send_fds(self.requests, [request], [log.fileno(), lock, theirs.fileno()])
            message = receive(reports)
        except OSError:
            message = {}
        if "pid" in message:
            return ForkedRun(message["pid"], reports, log)
        reports.close()
        self.refused = message.get("refused", "")
        return job.start(command, environment, log, lock)

    def end(self) -> None:
        """End it; runs are not its to end."""
        self.requests.close()
        self.process.kill()
        self.process.wait()
