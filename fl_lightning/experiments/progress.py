"""What a sweep is at: done, running, failed, time left."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fl_lightning.experiments.planned import Run
from fl_lightning.experiments.run_folder import State


class SweepProgress:
    """A bar over all runs with a line for each that is running; without a terminal, a line whenever a run ends.

    Args:
        runs: all runs of the sweep.
        jobs: how many run at a time.
        console: where to show it.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, console: Console) -> None:
        self.runs, self.jobs, self.console = list(runs), jobs, console
        self.running: dict[str, Run] = {}
        self.began: dict[str, tuple[float, float]] = {}  # when, and with which share of its rounds done
        self.rates: list[float] = []  # seconds per whole run, of those that ended here
        self.counts: Counter[State] = Counter()
        self.elsewhere: set[str] = set()  # ids of runs that others were found at work on
        self.guard = threading.Lock()  # runs end in several threads
        self.bar = Progress(
            TextColumn("runs"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=console,
        )
        self.task = self.bar.add_task("", total=len(self.runs), failed=0, left="-")
        self.live = Live(self.view(), console=console, refresh_per_second=2) if console.is_terminal else None

    def __enter__(self) -> "SweepProgress":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.update(self.view(), refresh=True)
            self.live.stop()

    def started(self, run: Run) -> None:
        """A slot is free and the run takes it."""
        self.running.setdefault(run.id, run)
        self.began.setdefault(run.id, (time.monotonic(), share_done(run)))

    def put_back(self, run: Run, whereabouts: str) -> None:
        """The run is somebody else's for now, which is said once."""
        self.running.pop(run.id, None)
        self.began.pop(run.id, None)
        with self.guard:
            if run.id not in self.elsewhere:
                self.elsewhere.add(run.id)
                line = f"waiting for {run.name}, which is at work {whereabouts}"
                self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def ended(self, run: Run, trouble: str = "") -> None:
        """The run is over, in whatever state its folder is; `trouble` is what kept it from beginning."""
        state = State.FAILED if trouble else run.folder.state
        with self.guard:
            self.counts[state] += 1
            self.running.pop(run.id, None)
            began, share = self.began.pop(run.id, (None, 1.0))
            if began is not None and state is State.FINISHED and share < 1:
                self.rates.append((time.monotonic() - began) / (1 - share))
            if trouble or (began is not None and (self.live is None or state is not State.FINISHED)):
                message = f": {trouble or run.folder.message}" if state in (State.FAILED, State.STOPPED) else ""
                message += f" (see {run.folder.log})" if state is State.FAILED else ""
                self.console.print(
                    f"{self.counts.total()}/{len(self.runs)} {state}: {run.name}{message}; {len(self.running)} running, "
                    f"{self.counts[State.FAILED]} failed, left {left(self.seconds_left())}",
                    soft_wrap=True,
                    markup=False,
                    highlight=False,
                )
        self.refresh()

    def seconds_left(self) -> float | None:
        """Estimated from the runs that ended here, None before the first."""
        if not self.rates:
            return None
        waiting = len(self.runs) - self.counts.total() - len(self.running)
        shares = [waiting, *(1 - share_done(run) for run in list(self.running.values()))]
        return sum(shares) * sum(self.rates) / len(self.rates) / min(self.jobs, max(1, len(self.runs)))

    def refresh(self) -> None:
        """Show the present state."""
        if self.live is not None:
            done = sum(self.counts[state] for state in (State.FINISHED, State.STOPPED, State.FAILED))
            self.bar.update(self.task, completed=done, failed=self.counts[State.FAILED], left=left(self.seconds_left()))
            self.live.update(self.view())

    def view(self) -> Group:
        lines = [Text(f"  {line(run)}") for run in list(self.running.values())]
        return Group(*lines, self.bar)


def share_done(run: Run) -> float:
    """Share of a run's rounds that its evaluations have reached."""
    evaluations, rounds = run.folder.metrics, run.config["trainer"].get("max_epochs")
    return evaluations[-1]["round"] / rounds if evaluations and rounds and rounds > 0 else 0.0


def line(run: Run) -> str:
    """A running run in one line."""
    evaluations = run.folder.metrics
    last = evaluations[-1] if evaluations else {"round": 0}
    scores = "".join(f"  {name} {last[name]:.3f}" for name in ("acc", "asr") if last.get(name) is not None)
    return f"{run.name}: round {last['round']}/{run.config['trainer'].get('max_epochs')}{scores}"


def left(seconds: float | None) -> str:
    """
    >>> left(3700), left(61), left(None)
    ('1 h 01 min', '1 min 01 s', '-')
    """
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
