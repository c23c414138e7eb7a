"""What a sweep shows while it runs."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fl_lightning.experiments import progress as module
from fl_lightning.experiments.planned import Cell, Run
from fl_lightning.experiments.progress import SweepProgress, left, line
from fl_lightning.experiments.run_folder import RunFolder, State


def run(root: Path, name: str) -> Run:
    folder = RunFolder(root / name)
    folder.path.mkdir()
    return Run(Cell({"rule": name}, []), 0, {"trainer": {"max_epochs": 10}}, folder)


def finish(one: Run) -> None:
    (one.folder.path / "run.json").write_text('{"finished": true}')


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_reckoned_from_runs_that_ended_here(tmp_path, clock):
    runs = [run(tmp_path, name) for name in "abcd"]
    shown = SweepProgress(runs, 2, Console(file=io.StringIO()))
    assert shown.seconds_left() is None
    shown.started(runs[0])
    shown.started(runs[1])
    clock[0] = 60.0
    finish(runs[0])
    shown.ended(runs[0])
    shown.started(runs[2])
    (runs[1].folder.path / "metrics.jsonl").write_text('{"round": 5, "acc": 0.5}\n')
    # Half of b, all of c and of d, a minute each, two at a time.
    assert shown.seconds_left() == pytest.approx((0.5 + 1 + 1) * 60 / 2)


def test_a_run_that_was_half_done_counts_for_the_half_that_was_left(tmp_path, clock):
    runs = [run(tmp_path, name) for name in "ab"]
    (runs[0].folder.path / "metrics.jsonl").write_text('{"round": 5, "acc": 0.5}\n')
    shown = SweepProgress(runs, 1, Console(file=io.StringIO()))
    shown.started(runs[0])
    clock[0] = 30.0
    finish(runs[0])
    shown.ended(runs[0])
    assert shown.seconds_left() == pytest.approx(60.0)


def test_without_a_terminal_a_line_tells_of_each_run_that_ends(tmp_path):
    runs, out = [run(tmp_path, name) for name in "abcd"], io.StringIO()
    with SweepProgress(runs, 1, Console(file=out)) as shown:
        finish(runs[0])
        shown.ended(runs[0])  # was finished before: nothing to tell
        shown.started(runs[1])
        finish(runs[1])
        shown.ended(runs[1])
        shown.started(runs[2])
        runs[2].folder.write_status(State.FAILED, message="error: [bold] tau")
        shown.ended(runs[2])
        shown.started(runs[3])
        runs[3].folder.write_status(State.STOPPED, message="max_time was over")
        shown.ended(runs[3])
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("2/4 finished: b, seed 0; 0 running, 0 failed, left ")
    assert lines[1].startswith(f"3/4 failed: c, seed 0: error: [bold] tau (see {runs[2].folder.log})")
    assert lines[2].startswith("4/4 stopped: d, seed 0: max_time was over; 0 running, 1 failed")
    assert len(lines) == 3


def test_who_is_waited_for_is_told_once(tmp_path):
    runs, out = [run(tmp_path, name) for name in "ab"], io.StringIO()
    with SweepProgress(runs, 1, Console(file=out)) as shown:
        for _ in range(3):
            shown.started(runs[0])
            shown.put_back(runs[0], "as process 7 on elsewhere")
    assert out.getvalue() == "waiting for a, seed 0, which is at work as process 7 on elsewhere\n"


def test_on_a_terminal_what_runs_is_shown_with_its_scores(tmp_path):
    runs, out = [run(tmp_path, name) for name in "ab"], io.StringIO()
    with SweepProgress(runs, 1, Console(file=out, force_terminal=True, width=100)) as shown:
        shown.started(runs[0])
        (runs[0].folder.path / "metrics.jsonl").write_text(json.dumps({"round": 4, "acc": 0.5, "asr": None}) + "\n")
        shown.refresh()
        view = Console(file=io.StringIO(), width=100)
        view.print(shown.view())
        finish(runs[0])
        shown.ended(runs[0])
    assert "a, seed 0: round 4/10  acc 0.500" in view.file.getvalue()  # pyrefly: ignore[missing-attribute]
    assert "1/2" in out.getvalue()
    assert "0 failed" in out.getvalue()


def test_a_line_without_evaluations(tmp_path):
    assert line(run(tmp_path, "a")) == "a, seed 0: round 0/10"


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (59.4, "59 s"), (61, "1 min 01 s"), (3725, "1 h 02 min")])
def test_times_are_readable(seconds, text):
    assert left(seconds) == text
