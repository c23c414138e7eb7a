"""One run in its folder: locks, states, failures, SIGKILL."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fl_lightning.checkpoints import checkpoint_files
from fl_lightning.checkpoints.newest import newest
from fl_lightning.experiments import job, run_folder
from fl_lightning.experiments.run_folder import SILENT_SECONDS, RunFolder, State
from fl_lightning.files.run_files import TRAINING_LOCK, LockedError, locked
from fl_lightning.files.sealed import sealed, with_digest

FINISH = "import json, os; open('run.json', 'w').write(json.dumps({'finished': True})); open('count', 'a').write('x')"


def folder(path: Path) -> RunFolder:
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text("seed_everything: 0\n")
    return RunFolder(path)


def python(code: str, where: RunFolder) -> list[str]:
    return [sys.executable, "-c", f"import os; os.chdir({str(where.path)!r})\n{code}"]


def until(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_folder_that_is_not_there_is_pending(tmp_path):
    assert RunFolder(tmp_path / "none").state is State.PENDING
    assert not (tmp_path / "none").exists()


def test_a_run_that_finishes_and_is_not_run_again(tmp_path):
    run = folder(tmp_path)
    assert run.state is State.PENDING
    assert job.run(run, python("print('hello')\n" + FINISH, run)) == 0
    assert run.state is State.FINISHED
    assert run.log.read_text() == "hello\n"
    assert run.status["exit_status"] == 0
    assert job.run(run, python(FINISH, run)) == 0
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        ("print('error: tau must be less than 1'); print('bye'); raise SystemExit(2)", 2, "error: tau must be less than 1"),
        ("raise SystemExit(3)", 3, "exit status 3"),
        ("raise ValueError('oh')", 1, "ValueError: oh"),
        (
            "print('=' * 60); print('[rank1]: torch.OutOfMemoryError: 3 GiB'); print('=' * 60); raise SystemExit(1)",
            1,
            "torch.Out",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "killed by signal 9, most likely out of memory"),
    ],
)
def test_a_failure_is_written_down_with_its_reason(tmp_path, code, status, message):
    run = folder(tmp_path)
    assert job.run(run, python(code, run)) == status
    assert run.state is State.FAILED
    assert message in run.message
    assert job.run(run, python(FINISH, run)) == 0  # it may be tried again
    assert run.state is State.FINISHED
    assert run.status["attempt"] == 2


@pytest.mark.parametrize("code", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_run_that_was_asked_to_stop_is_interrupted(tmp_path, code):
    run = folder(tmp_path)
    assert job.run(run, python(code, run)) != 0
    assert run.state is State.INTERRUPTED


STOP = """import json; open('run.json', 'w').write(json.dumps({'state': 'stopped', 'finished': False, 'reason': 'no time'}))"""


def test_a_run_that_stopped_of_itself_says_why_and_goes_on(tmp_path):
    run = folder(tmp_path)
    assert job.run(run, python(STOP, run)) == job.UNFINISHED
    assert (run.state, run.status["state"], run.message) == (State.STOPPED, "stopped", "no time")
    assert job.run(run, python(FINISH, run)) == 0
    assert run.state is State.FINISHED


@pytest.mark.parametrize(
    ("record", "attempt", "state"),
    [
        ({"state": "stopped"}, None, State.STOPPED),
        ({"state": "failed", "reason": "KeyError: 1"}, None, State.FAILED),
        ({"state": "interrupted"}, None, State.INTERRUPTED),
        ({"state": "running"}, None, State.INTERRUPTED),  # killed: nobody holds its lock
        ({"state": "finished", "finished": True}, None, State.FINISHED),
        ({"finished": True, "rounds": 5}, None, State.FINISHED),  # as earlier versions wrote it
        ({"finished": False}, None, State.INTERRUPTED),
        ({"state": "stopped"}, "failed", State.FAILED),  # the job knows of the last attempt
        ({"state": "running"}, "failed", State.FAILED),
        ({"state": "stopped"}, "running", State.INTERRUPTED),  # the next attempt was killed
    ],
)
def test_the_four_states_of_a_run_that_nobody_is_at_work_on(tmp_path, record, attempt, state):
    run = folder(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(record))
    if attempt:
        run.write_status(State(attempt))
    assert run.state is state
    assert run.finished is (state is State.FINISHED)
    assert run.message == record.get("reason", "")


@pytest.mark.parametrize(
    ("trainer", "finished"),
    [
        ({"max_epochs": 10, "max_time": "00:00:01:00"}, False),
        ({"max_epochs": 10, "max_time": None}, True),  # EarlyStopping, say
        ({"max_epochs": 5, "max_time": "00:00:01:00"}, True),
    ],
)
def test_max_times_end_is_told_from_the_runs_in_records_of_earlier_versions(tmp_path, trainer, finished):
    run = folder(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"finished": True, "rounds": 5, "config": {"trainer": trainer}}))
    assert run.finished is finished


def test_a_reason_is_of_the_last_attempt(tmp_path):
    run = folder(tmp_path)
    job.run(run, python("print('error: data are missing'); raise SystemExit(2)", run))
    job.run(run, python("raise KeyError('weights')", run))
    assert run.message == "KeyError: 'weights'"


def test_stopping_ends_processes_in_sessions_of_their_own(tmp_path, monkeypatch):
    """As torchrun starts its workers, and as a worker that does not answer behaves."""
    monkeypatch.setattr(job, "STOP_SECONDS", 1.0)
    stubborn = (
        "import signal, time, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('pid', 'w').write(str(os.getpid()))"
    )
    start = f"subprocess.run([sys.executable, '-c', {stubborn + '; time.sleep(60)'!r}], start_new_session=True)"
    code = f"import subprocess, sys\n{start}"  # which ends at once when it is asked to
    run, stop = folder(tmp_path), threading.Event()
    thread = threading.Thread(target=job.run, args=(run, python(code, run), None, stop))
    thread.start()
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert job.alive(worker)
    assert worker in job.descendants(os.getpid())
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    until(lambda: not job.alive(worker))


def test_a_training_that_outlived_its_job_keeps_the_folder(tmp_path):
    run = folder(tmp_path)
    run.write_status(State.RUNNING)
    with locked(tmp_path / TRAINING_LOCK):
        assert run.state is State.RUNNING
    assert run.state is State.INTERRUPTED


def test_somebody_elses_runs_are_known_by_their_signs_of_life(tmp_path, monkeypatch):
    def refuse(path, patience):
        raise PermissionError(path)

    run = folder(tmp_path)
    (tmp_path / "lock").touch()
    monkeypatch.setattr(run_folder, "take_lock", refuse)
    assert run.state is State.PENDING
    run.write_status(State.FAILED)
    assert run.state is State.FAILED
    run.write_status(State.RUNNING)
    assert run.state is State.RUNNING


def test_where_locks_end_at_a_machine_signs_of_life_keep_others_out(tmp_path):
    run = folder(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere"}))
    with pytest.raises(LockedError):
        job.run(run, python(FINISH, run))


def test_nobody_else_gets_in_while_it_runs_and_stopping_interrupts_it(tmp_path):
    run, stop = folder(tmp_path), threading.Event()
    thread = threading.Thread(target=job.run, args=(run, python("import time; time.sleep(60)", run), None, stop))
    thread.start()
    until(lambda: run.state is State.RUNNING)
    with pytest.raises(LockedError):
        job.run(run, python(FINISH, run))
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert run.state is State.INTERRUPTED
    assert job.run(run, python(FINISH, run)) == 0
    assert run.state is State.FINISHED


def test_a_run_outlives_the_job_that_is_killed_and_keeps_the_folder(tmp_path):
    run = folder(tmp_path)
    code = "import time\nwhile not os.path.exists('go'): time.sleep(0.02)\n" + FINISH
    command = [sys.executable, "-m", "fl_lightning.experiments.job", str(tmp_path), "--", *python(code, run)]
    process = subprocess.Popen(command, cwd=Path(job.__file__).parents[2])
    until(lambda: run.status.get("state") == "running" and run.log.exists())
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert run.state is State.RUNNING
    (tmp_path / "go").touch()
    until(lambda: not run.locked)
    assert run.state is State.FINISHED


def test_a_killed_run_is_interrupted(tmp_path):
    run = folder(tmp_path)
    run.write_status(State.RUNNING)  # by a process of this host that is gone: nobody holds the lock
    assert run.state is State.INTERRUPTED


def test_a_run_on_another_host_is_at_work_as_long_as_it_gives_signs_of_life(tmp_path):
    run = folder(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere"}))
    assert run.state is State.RUNNING
    silent = time.time() - SILENT_SECONDS - 1
    os.utime(tmp_path / "status.json", (silent, silent))
    assert run.state is State.INTERRUPTED
    run.beat()
    assert run.state is State.RUNNING


@pytest.mark.parametrize("ahead", [SILENT_SECONDS + 60.0, 10 * 86400.0])
def test_a_clock_ahead_keeps_no_dead_run_running(tmp_path, ahead):
    run, beat = folder(tmp_path), time.time() + ahead
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere"}))
    os.utime(tmp_path / "status.json", (beat, beat))

    def silent_since_it_was_seen() -> None:
        before = time.time() - SILENT_SECONDS - 1
        os.utime(tmp_path / "status.seen", (before, before))

    assert run.state is State.RUNNING  # nobody has looked before
    assert run.state is State.RUNNING
    silent_since_it_was_seen()
    assert run.state is State.INTERRUPTED
    os.utime(tmp_path / "status.json", (beat + 15, beat + 15))
    assert run.state is State.RUNNING  # it lives after all
    with pytest.raises(LockedError):
        job.run(run, python(FINISH, run))
    silent_since_it_was_seen()
    assert job.run(run, python(FINISH, run)) == 0


def test_whereabouts_are_told(tmp_path):
    run = folder(tmp_path)
    assert run.whereabouts == "by a process that was not started as part of a sweep"
    (tmp_path / "status.json").write_text(json.dumps({"state": "running", "host": "elsewhere", "pid": 1, "child": 7}))
    assert run.whereabouts == "as process 7 on elsewhere, last sign of life 0 s ago"
    os.utime(tmp_path / "status.json", (time.time() + 7200, time.time() + 7200))
    assert run.whereabouts.endswith("s ahead of this machine's clock")


def test_a_run_that_nobody_watches_goes_on_from_the_checkpoint_that_is_whole(tmp_path):
    run = folder(tmp_path)
    for step, name in ((3, "previous.ckpt"), (4, "last.ckpt")):
        checkpoint_files.save({"global_step": step}, tmp_path / name, step)
    assert job.set_aside_damage(tmp_path) == []
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:-1])
    assert job.run(run, python("print('trains')\n" + FINISH, run)) == 0
    said, then = run.log.read_text().splitlines()
    assert then == "trains"
    assert "last.ckpt cannot be read: it is damaged" in said
    assert said.endswith(f"kept as damaged.ckpt, and the run goes on from {tmp_path / 'previous.ckpt'}, of round 3")
    assert newest(tmp_path) == tmp_path / "previous.ckpt"
    (tmp_path / "previous.ckpt").replace(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"")
    assert job.set_aside_damage(tmp_path) == []  # there is nothing else to go on from: the run says so


def test_a_run_whose_state_cannot_be_written_does_not_go_on_unseen(tmp_path, monkeypatch):
    run = folder(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(RunFolder, "write_status", full)
    code = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    with pytest.raises(OSError, match="full"):
        job.run(run, python(code, run))
    assert not (tmp_path / "pid").exists() or not job.alive(int((tmp_path / "pid").read_text()))


def test_settings_that_are_not_what_was_written_start_nothing(tmp_path, capsys):
    run = folder(tmp_path)
    run.config.write_text(with_digest("seed_everything: 0\n"))
    text = run.config.read_text()
    run.config.write_text(text.replace("0", "8", 1))
    assert job.main([str(tmp_path), "--", *python(FINISH, run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{run.config} is not what was written there: it is damaged, or was edited" in said
    assert "delete its last line" in said
    assert (run.state, run.finished) == (State.FAILED, False)
    assert run.message in said
    run.config.write_text("seed_everything: 8\n")  # on purpose
    assert job.main([str(tmp_path), "--", *python(FINISH, run)]) == 0
    assert run.status["attempt"] == 2


def test_a_damaged_record_is_a_failure_that_the_next_attempt_mends(tmp_path):
    run = folder(tmp_path)
    assert job.run(run, python(FINISH, run)) == 0
    (tmp_path / "run.json").write_text(json.dumps({**sealed(run.record), "acc": 0.9}))
    assert (run.state, run.finished, run.record) == (State.FAILED, False, {})
    assert "run.json is damaged" in run.message
    assert job.run(run, python(FINISH, run)) == 0
    assert run.state is State.FINISHED


@pytest.mark.parametrize("status", [{"attempt": "x", "message": 3}, {"attempt": None, "state": []}, {"attempt": [1]}])
def test_a_status_that_was_damaged_is_over_with_the_next_attempt(tmp_path, status):
    run = folder(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert isinstance(run.message, str)
    assert run.state in State
    assert job.run(run, python(FINISH, run)) == 0
    assert run.status["attempt"] == 1


def test_the_command_line(tmp_path, capsys):
    run = folder(tmp_path)
    assert job.main([str(tmp_path), "--", *python(FINISH, run)]) == 0
    assert job.main([str(tmp_path)]) == 2
    assert "usage" in capsys.readouterr().err
    assert job.main([str(tmp_path / "none"), "--", "true"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    other = folder(tmp_path / "other")
    with other.lock():
        assert job.main([str(other.path), "--", "true"]) == job.LOCKED


def test_the_lock_waits_for_who_only_looks(tmp_path):
    run = folder(tmp_path)
    held = run.lock()
    held.__enter__()
    threading.Timer(0.2, lambda: held.__exit__(None, None, None)).start()
    began = time.monotonic()
    with run.lock():
        assert time.monotonic() - began > 0.1
