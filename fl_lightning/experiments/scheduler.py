"""Run a sweep's runs on this machine, some at a time."""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments import forks, job
from fl_lightning.experiments.budget import Budget
from fl_lightning.experiments.planned import Run, missing_prefixes
from fl_lightning.experiments.priority import Priority, with_prefixes
from fl_lightning.experiments.progress import SweepProgress
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.warm_client import Servers
from fl_lightning.files.run_files import LockedError, write_whole
from fl_lightning.files.sealed import with_digest
from fl_lightning.files.yaml_files import write_yaml

ELSEWHERE_SECONDS = 1.0
"""Time between two looks at a run that another process is at work on."""

PREFIX_SECONDS = 0.2
"""The same at prefixes that all other runs wait for."""


OF_A_LAUNCH = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"),
)
"""Variables of the launch that this process may be part of: runs at the same time would meet at one port."""


def write_config(run: Run) -> None:
    """Put a run's settings, and what it begins with, into its folder, from which it is started."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    if not run.folder.finished:
        forks.note(run)
        write_whole(run.folder.config, with_digest(write_yaml(run.config)))


def fit_command(folder: RunFolder, ranks: int | None = None) -> list[str]:
    """The command that starts a run or goes on with it.

    Args:
        folder: the run's folder.
        ranks: processes, through torchrun; None for one process, which takes the devices that it sees.
    """
    start = [sys.executable, "-m"]
    if ranks is not None:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [*start, "fl_lightning", "fit", "--config", str(folder.config), "--ckpt_path", "last"]


def run_all(
    runs: Sequence[Run],
    *,
    jobs: int,
    ranks: int | None,
    console: Console,
    priority: Priority = (),
    budget: Budget | None = None,
    servers: Servers | None = None,
) -> Counter[State]:
    """Run what is not finished, prefixes before the runs that begin with them; a failed run does not stop the others.

    Ctrl-C and SIGTERM stop all that is running, and end in KeyboardInterrupt; the same sweep goes on later from the last
    checkpoints. So does a budget that is spent, but for the exception.

    Args:
        runs: runs of a sweep, in the order in which they are run unless `priority` says otherwise.
        jobs: how many at a time, at least 1.
        ranks: processes of each, through torchrun; None for one process.
        console: where progress is shown.
        priority: which of them come first, and with them their prefixes.
        budget: of time; no limit by default.
        servers: what runs are forked from; without them every run is started as a new process.

    Returns:
        how many runs are in which state in the end.
    """
    every = with_prefixes(runs, priority)
    for run in every:
        write_config(run)
    stop, guard = threading.Event(), threading.Lock()
    waiting = [run for run in every if not run.folder.finished]
    to_come = {run.id for run in missing_prefixes(runs)}  # prefixes that are not over

    def take() -> Run | None:
        """The next run that can begin; None where all wait for prefixes."""
        with guard:
            ready = (run for run in waiting if run.fork is None or run.fork.run.id not in to_come)
            if (run := next(ready, None)) is not None:
                waiting.remove(run)
            return run

    def work(environment: dict[str, str]) -> None:
        """Take one run after the other until none is left."""
        while waiting and not stop.is_set():
            run = take()
            if run is None:
                stop.wait(PREFIX_SECONDS)
                continue
            start = job.start if servers is None or ranks is not None else servers.starter(environment, stop)
            if stop.is_set():
                break
            progress.started(run)
            try:
                job.run(run.folder, fit_command(run.folder, ranks), environment, stop, start)
            except LockedError:  # a run that outlived the sweep that started it, or somebody else's: others first
                with guard:
                    waiting.append(run)
                progress.put_back(run, run.folder.whereabouts)
                stop.wait(ELSEWHERE_SECONDS)
                continue
            except ConfigurationError as error:  # of this run's folder, as the next
                progress.ended(run, str(error))
            except OSError as error:
                progress.ended(run, f"{run.folder.path}: {error}")
            else:
                progress.ended(run)
            to_come.discard(run.id)

    with (
        SweepProgress(every, jobs, console) as progress,
        stopping(stop),
        (budget or Budget()).ending(stop),
        ThreadPoolExecutor(jobs) as pool,
    ):
        for run in runs:
            if run.folder.finished:
                progress.ended(run)
        slots = [pool.submit(work, environment) for environment in environments(jobs)]
        while wait(slots, timeout=1.0).not_done:
            progress.refresh()
        for slot in slots:
            slot.result()
    return Counter(run.folder.state for run in runs)


def environments(jobs: int) -> Iterator[dict[str, str]]:
    """One environment per slot: a launch of its own, a thread per process, and the GPUs shared out among the slots."""
    base = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCH}
    base.setdefault("OMP_NUM_THREADS", "1")
    gpus = visible_gpus(os.environ) if jobs > 1 else []
    for slot in range(jobs):
        own = gpus[slot::jobs] or gpus[slot % len(gpus) :][:1] if gpus else []
        yield {**base, "CUDA_VISIBLE_DEVICES": ",".join(own)} if own else base


DEVICES = Path("/dev")

GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")
"""There, of NVIDIA's driver, of Windows' for Linux and of AMD's; without one of them Linux has no GPU."""


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs of this machine, or those of CUDA_VISIBLE_DEVICES if it is set.

    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"})
    ['2', '3']
    """
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None and sys.platform == "linux" and not any(any(DEVICES.glob(name)) for name in GPU_FILES):
        return []
    if named is None:
        import torch  # which takes seconds, for what is shared out among several jobs alone

        return [str(index) for index in range(torch.cuda.device_count())]
    return [name for name in named.split(",") if name and not name.startswith("-")]


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set the event, and are a KeyboardInterrupt in the end."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        received.append(number)
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
