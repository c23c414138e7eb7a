"""Runs that are forked from a process with everything imported are what new processes would be."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_lightning.experiments import job, warm_client, warm_server
from fl_lightning.experiments.packets import pair
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.scheduler import environments
from fl_lightning.experiments.warm_client import UNKNOWN, Server, Servers

ROOT = Path(__file__).parents[2]
FINISH = "import json, os; open(os.path.join(folder, 'run.json'), 'w').write(json.dumps({'finished': True}))"

WORLD = """
import atexit, gc, json, logging, os, random, resource, signal, sys, threading, warnings
import numpy, torch
from pathlib import Path
world = {
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "cwd": os.getcwd(), "environ": dict(os.environ),
    "main": [sys.modules["__main__"].__name__, sys.modules["__main__"].__file__, sys.modules["__main__"].__spec__.name],
    "leads its session": os.getpid() == os.getsid(0) == os.getpgid(0),
    "streams": [[s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.mode, s.fileno()] for s in
                (sys.stdin, sys.stdout, sys.stderr)],
    "descriptors": [os.path.realpath(f"/proc/self/fd/{fd}") for fd in range(3)],
    "locks": [os.get_inheritable(int(fd)) for fd in os.listdir("/proc/self/fd") if
              os.path.realpath(f"/proc/self/fd/{fd}").endswith("/lock")],
    "threads": [thread.name for thread in threading.enumerate()] + [str(len(os.listdir("/proc/self/task")))],
    "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
    "blocked": str(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "filters": str([(f[0], f[1] and f[1].pattern, f[2].__name__) for f in warnings.filters]),
    "logging": str([logging.root.level, logging.root.handlers, *sorted(
        (name, one.level, len(one.handlers)) for name, one in logging.root.manager.loggerDict.items() if
        getattr(one, "handlers", []) or getattr(one, "level", 0))]),
    "gc": [gc.isenabled(), gc.get_threshold()], "flags": str(sys.flags), "umask": os.umask(0o22),
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE), "nice": os.nice(0),
    "torch": [torch.get_num_threads(), torch.is_grad_enabled()],
    "deterministic": torch.are_deterministic_algorithms_enabled(), "hooks": [str(sys.excepthook), str(sys.gettrace())],
}
drawn = [random.random(), float(numpy.random.rand()), torch.rand(()).item(), torch.initial_seed()]
Path(folder, "world.json").write_text(json.dumps({"world": world, "drawn": drawn, "parent": os.getppid()}))
atexit.register(lambda: Path(folder, "left").write_text("by the door"))
never_closed = open(Path(folder, "unclosed"), "w")
never_closed.write("whole")
print("said", end="")
print("and of errors", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    own = {name: value for name, value in next(environments(1)).items() if name != "PYTHONUNBUFFERED"}
    return {**own, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def servers(place: Path, environment: dict[str, str]) -> Iterator[Servers]:
    before = os.getcwd()
    os.chdir(place)
    with Servers(print) as found:
        found.starter(environment, threading.Event())
        os.chdir(before)
        yield found


@pytest.fixture
def warm(servers: Servers, place: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> job.Starter:
    monkeypatch.chdir(place)
    start = servers.starter(environment, threading.Event())
    assert start is not job.start
    return start


def run_of(place: Path, name: str, code: str) -> tuple[RunFolder, list[str]]:
    """A run that does what `code` says as soon as its user's own client is imported, and its command."""
    folder = RunFolder(place / name)
    folder.path.mkdir(exist_ok=True)
    (place / f"mine_{name}.py").write_text(f"folder = {str(folder.path)!r}\n{code}\n")
    folder.config.write_text(f"model: {{client: {{class_path: mine_{name}.Client}}}}\n")
    return folder, [sys.executable, "-m", "fl_lightning", "fit", "--config", str(folder.config)]


def until(condition: Callable[[], Any], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_run_finds_what_a_new_process_would(place, warm, servers, environment):
    found = []
    folder, command = run_of(place, "world", WORLD)
    for start in (job.start, warm, warm):
        for file in folder.path.glob("*"):
            if file != folder.config:
                file.unlink()
        assert job.run(folder, command, environment, start=start) == 7
        assert (folder.path / "left").read_text() == "by the door"
        assert (folder.path / "unclosed").read_text() == "whole"
        assert folder.log.read_text() == "and of errors\nsaid"  # what is printed waits, as the log is no terminal
        found.append(json.loads((folder.path / "world.json").read_text()))
        status = folder.status
        assert status["command"] == command
        assert (status["state"], status["exit_status"], status["attempt"]) == ("failed", 7, 1)
    cold, *others = found
    for other in others:
        assert other["world"] == cold["world"]
    (server,) = servers.servers.values()
    assert [other["parent"] for other in found] == [os.getpid(), server.process.pid, server.process.pid]
    assert len({drawn for one in found for drawn in one["drawn"]}) == 12  # nobody draws what another one has drawn


@pytest.mark.parametrize(
    ("code", "status", "state", "message"),
    [
        ("import os; os._exit(5)", 5, State.FAILED, "exit status 5"),
        ("raise SystemExit", 1, State.INTERRUPTED, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, State.FAILED, "killed by signal 9, most likely"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, State.INTERRUPTED, ""),
        ("import ctypes; ctypes.string_at(0)", -11, State.FAILED, "killed by signal 11 (SIGSEGV)"),
        ("raise ValueError('oh')", 2, State.FAILED, "error: model.client: oh"),
        ("raise KeyboardInterrupt", 130, State.FAILED, "killed by signal 2 (SIGINT)"),
    ],
)
def test_how_a_run_ends_is_its_own(place, warm, environment, code, status, state, message):
    folder, command = run_of(place, "ends", code)
    assert job.run(folder, command, environment, start=warm) == status
    assert folder.state is state
    assert message in folder.message
    assert not folder.locked


def test_a_module_that_was_changed_is_seen_by_the_next_run(place, warm, environment):
    for status in (3, 14, 3):
        folder, command = run_of(place, "changed", f"import os; os._exit({status})")
        assert job.run(folder, command, environment, start=warm) == status


def test_runs_at_the_same_time_are_apart_and_stopping_ends_one(place, warm, environment):
    wait = "import time\nwhile not os.path.exists(os.path.join(folder, 'go')): time.sleep(0.02)"
    runs = [run_of(place, name, f"import os\n{wait}\n{FINISH}\nos._exit(0)") for name in ("one", "two")]
    stops = [threading.Event() for _ in runs]
    threads = [
        threading.Thread(target=job.run, args=(folder, command, environment, stop, warm))
        for (folder, command), stop in zip(runs, stops, strict=True)
    ]
    for thread in threads:
        thread.start()
    (one, _), (two, _) = runs
    until(lambda: one.state is two.state is State.RUNNING)
    stops[0].set()
    threads[0].join(30)
    assert (one.state, two.state) == (State.INTERRUPTED, State.RUNNING)
    (two.path / "go").touch()
    threads[1].join(30)
    assert two.state is State.FINISHED
    assert not any(job.alive(folder.status["child"]) for folder in (one, two))


def test_a_run_that_nobody_would_know_of_does_not_begin(place, warm, servers, environment):
    """The sweep is killed while it asks for one."""
    (server,) = servers.servers.values()
    folder, command = run_of(place, "unknown", "import os; open(os.path.join(folder, 'begun'), 'w')")
    asked, theirs = pair()
    asked.close()
    with folder.lock() as lock, folder.log.open("a") as log, theirs:
        request = json.dumps({"command": command}).encode()
        socket.send_fds(server.requests, [request], [log.fileno(), lock, theirs.fileno()])
    until(lambda: not folder.locked)
    another, command = run_of(place, "known", "import os; os._exit(9)")
    assert job.run(another, command, environment, start=warm) == 9
    assert not (folder.path / "begun").exists()


def test_other_commands_are_started_as_new_processes(place, warm, environment):
    folder, _ = run_of(place, "other", "")
    code = f"folder = {str(folder.path)!r}\n{FINISH}"
    assert job.run(folder, [sys.executable, "-c", code], environment, start=warm) == 0
    assert folder.status["exit_status"] == 0


OF_TIMES = ("seconds", "client_updates_per_second", "peak_memory_bytes", "extra_memory_bytes", "executor", "sha256")
"""Of `run.json`, with what depends on them."""


def test_a_run_has_the_bits_of_a_new_process(place, warm, environment):
    found = []
    folder = RunFolder(place / "bits")
    for start in (job.start, warm):
        if folder.path.exists():
            folder.path.rename(place / "bits before")
        folder.path.mkdir()
        folder.config.write_text((ROOT / "configs" / "quickstart.yaml").read_text())
        command = [sys.executable, "-m", "fl_lightning", "fit", "--config", str(folder.config), "--ckpt_path", "last"]
        command += ["--trainer.max_epochs=2", f"--trainer.default_root_dir={folder.path}", "--with", "Phishing.num_train=2000"]
        assert job.run(folder, command, environment, start=start) == 0, folder.log.read_text()
        record = {key: value for key, value in folder.record.items() if key not in OF_TIMES}
        found.append((record, folder.metrics, (folder.path / "metrics.jsonl").read_bytes()))
    assert found[0][0]["weights_sha256"]
    assert found[0] == found[1]


def test_a_run_outlives_its_server_and_the_next_one_has_another(place, warm, servers, environment, monkeypatch):
    wait = "import os, time\nwhile not os.path.exists(os.path.join(folder, 'go')): time.sleep(0.02)"
    runs = [run_of(place, "goes_on", f"{wait}\n{FINISH}\nos._exit(0)"), run_of(place, "fails", f"{wait}\nos._exit(3)")]
    threads = [threading.Thread(target=job.run, args=(*run, environment, None, warm)) for run in runs]
    for thread in threads:
        thread.start()
    until(lambda: all(folder.status.get("child") for folder, _ in runs))
    (server,) = servers.servers.values()
    server.process.kill()
    server.process.wait()
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in threads)
    for folder, _ in runs:
        assert folder.state is State.RUNNING  # it holds its lock
        (folder.path / "go").touch()
    for thread in threads:
        thread.join(30)
    (goes_on, _), (fails, _) = runs
    assert (goes_on.state, fails.state, fails.message) == (State.FINISHED, State.FAILED, UNKNOWN)

    folder, command = run_of(place, "after", "import os; os._exit(4)")
    new, real = object(), job.start
    monkeypatch.setattr(job, "start", lambda *_: new)
    with folder.log.open("a") as log:
        assert warm(command, environment, log, log.fileno()) is new  # a server that is gone is no hindrance
    monkeypatch.setattr(job, "start", real)
    start = servers.starter(environment, threading.Event())
    assert start is not job.start
    assert job.run(folder, command, environment, start=start) == 4
    (another,) = servers.servers.values()
    assert another is not server
    another.end()
    assert another.process.returncode in (0, -signal.SIGKILL)  # it ends by itself where it notices first


READY = """
import socket, sys
requests = socket.socket(fileno=int(sys.argv[1]))
requests.send(b'{"ready": true}')
requests.recv(1)
"""
"""A server that has imported nothing, where it is to fork nothing."""

KILLED = """
import os, sys, threading
from pathlib import Path
from fl_lightning.experiments import job, warm_client
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.warm_client import Servers
from fl_lightning.files.run_files import LockedError
warm_client.SERVER = sys.argv[2]
with Servers(print) as servers:
    environment = dict(os.environ)
    start = servers.starter(environment, threading.Event())
    (server,) = servers.servers.values()
    print(server.process.pid, flush=True)
    folder = RunFolder(Path(sys.argv[1]))
    try:
        job.run(folder, [sys.executable, "-m", "fl_lightning", "fit", "--config", str(folder.config)], environment, None, start)
    except LockedError:
        print("locked", flush=True)
"""


@pytest.mark.slow
def test_a_sweep_that_is_killed_twice_leaves_no_server_and_repeats_nothing(place, environment):
    wait = "import os, time\nopen(os.path.join(folder, 'begun'), 'a').write('x')\n"
    wait += "while not os.path.exists(os.path.join(folder, 'go')): time.sleep(0.02)"
    folder, _ = run_of(place, "outlives", f"{wait}\n{FINISH}\nos._exit(0)")
    (place / "ready_server.py").write_text(READY)
    began = []
    for server in (warm_client.SERVER, "ready_server"):
        command = [sys.executable, "-c", KILLED, str(folder.path), server]
        sweep = subprocess.Popen(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
        assert sweep.stdout is not None
        began.append(int(sweep.stdout.readline()))
        if len(began) == 1:
            until(lambda: (folder.path / "begun").exists())
        else:
            assert sweep.stdout.readline() == "locked\n"  # it finds the run at work
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
        sweep.stdout.close()
        until(lambda: not job.alive(began[-1]))
        assert folder.state is State.RUNNING
    (folder.path / "go").touch()
    until(lambda: not folder.locked)
    assert folder.state is State.FINISHED
    assert (folder.path / "begun").read_text() == "x"
    until(lambda: not job.alive(folder.status["child"]))  # a process lets go of its files a moment before it is gone


def test_a_process_with_threads_forks_nothing(tmp_path, environment):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    said: list[str] = []
    other = {**environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with Servers(said.append) as servers:
        for _ in range(2):
            assert servers.starter(other, threading.Event()) is job.start
        (server,) = servers.servers.values()
    assert said == [
        "every run is started as a new process, as no warm one can be used: it has 2 threads, of which a forked process has one"
    ]
    assert server.process.returncode is not None


def test_threads_that_end_for_a_fork_are_no_hindrance(environment):
    """OpenBLAS starts them when it is imported, if it may have several."""
    code = (
        "import numpy, scipy.linalg\nfrom fl_lightning.experiments.warm_server import lasting_threads\nprint(lasting_threads())"
    )
    found = subprocess.check_output([sys.executable, "-c", code], env={**environment, "OMP_NUM_THREADS": "2"}, text=True)
    assert found == "1\n"


def test_a_server_that_does_not_come_up_is_said_once(monkeypatch, environment):
    monkeypatch.setattr(warm_client, "SERVER", "fl_lightning.no_such_module")
    said: list[str] = []
    with Servers(said.append) as servers:
        for _ in range(2):
            assert servers.starter(environment, threading.Event()) is job.start
    assert said == [
        "every run is started as a new process, as no warm one can be used: it ended with status 1 before it was ready"
    ]


def test_slots_of_one_environment_begin_with_one_server(environment, monkeypatch):
    Path("ready_server.py").write_text(READY)
    monkeypatch.setattr(warm_client, "SERVER", "ready_server")
    with Servers(print) as servers:
        servers.begin([environment, dict(environment)])
        assert len(servers.servers) == 1
        assert servers.starter(environment, threading.Event()) == next(iter(servers.servers.values())).start


def test_nobody_waits_for_a_server_when_all_is_to_stop(environment):
    stop = threading.Event()
    stop.set()
    with Servers(print) as servers:
        assert servers.starter(environment, stop) is job.start
        assert not servers.servers


def test_a_gpus_context_is_not_forked(monkeypatch):
    assert warm_server.threads() >= 1
    monkeypatch.setattr(warm_server, "threads", lambda: 1)
    assert warm_server.why_not() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert warm_server.why_not() == "it is at work on a GPU, which a forked process cannot be"


def test_a_server_that_refuses_a_run_has_it_started_as_a_new_process(place, environment, monkeypatch):
    """As one does that has threads by then."""
    monkeypatch.setattr(warm_client, "SERVER", "this")  # which has no part in it
    monkeypatch.setattr(warm_client, "receive", lambda _: {"refused": "it has 2 threads"})
    new = object()
    monkeypatch.setattr(job, "start", lambda *_: new)
    server = Server(environment)
    folder, command = run_of(place, "refused", "")
    with folder.lock() as lock, folder.log.open("a") as log:
        assert server.start(command, environment, log, lock) is new
    assert server.refused == "it has 2 threads"
    server.end()
