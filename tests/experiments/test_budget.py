"""A sweep that may take so much time: what is refused, how runs end when it is spent, and that nothing shows in the end."""

import io
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from fl_lightning.checkpoints.resuming import whole
from fl_lightning.cli import main
from fl_lightning.experiments import command, scheduler
from fl_lightning.experiments.budget import SPENT, Budget
from fl_lightning.experiments.planned import Cell, Run
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.scheduler import run_all
from fl_lightning.experiments.sweep import read_sweep

DIGITS = Path(__file__).parents[2] / "configs" / "digits" / "pixel_trigger.yaml"
SWEEP = f"""
base:
  - {DIGITS}
  - {{trainer: {{max_epochs: 40, check_val_every_n_epoch: 1, logger: false}}, checkpoint: {{every_n_rounds: 99}}}}
axes: {{rule: {{FedAvg: null}}, seed: [0, 1]}}
priority: [{{seed: 1}}]
"""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("25", "'25' is no span of time; give whole hours, minutes or seconds with their units, such as 2h, 25m, 90s or 1h30m"),
        ("", "'' is no span"),
        ("25M", "'25M' is no span"),
        ("1.5h", "'1.5h' is no span"),
        ("-5m", "expected one argument"),
        ("=-5m", "'-5m' is no span"),
        ("30m1h", "'30m1h' is no span"),
        ("1h30", "'1h30' is no span"),
        ("25m ", "'25m ' is no span"),
        ("٣m", "is no span"),
        ("9" * 400 + "s", "is no span"),
        ("0s", "'0s' must be at least 1s and at most 8784h"),
        ("9000h", "'9000h' must be at least 1s and at most 8784h"),
    ],
)
def test_what_is_no_span_of_time_is_refused_before_the_file_is_read(capsys, given, message):
    with pytest.raises(SystemExit) as left:
        main(["sweep", "gone.yaml", *([f"--budget{given}"] if given.startswith("=") else ["--budget", given])])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--budget" in line


def test_slurm_has_limits_of_its_own(capsys):
    with pytest.raises(SystemExit) as left:
        main(["sweep", "gone.yaml", "--slurm", "--budget", "25m"])
    assert left.value.code == 2
    assert "--budget 1500s is for runs on this machine; with --slurm give a run's --time" in capsys.readouterr().err


def test_no_budget_never_ends_and_one_that_is_left_in_time_ends_nothing():
    stop = threading.Event()
    with Budget().ending(stop), Budget(1000.0).ending(stop):
        assert not stop.is_set()
    assert not Budget().spent
    assert not Budget(1000.0).spent
    with Budget(0.01).ending(stop):
        assert stop.wait(60)


def test_what_has_not_begun_when_the_time_is_spent_is_left_for_the_next_call(tmp_path, monkeypatch):
    runs = [Run(Cell({"rule": name}, []), 0, {"trainer": {}}, RunFolder(tmp_path / name)) for name in "ab"]
    wait = "import sys, time; open(sys.argv[1] + '/begun', 'a').write('x'); time.sleep(60)"
    monkeypatch.setattr(scheduler, "fit_command", lambda folder, ranks: [sys.executable, "-c", wait, str(folder.path)])
    states = run_all(runs, jobs=1, ranks=None, console=Console(file=io.StringIO()), budget=Budget(2.0))
    assert states == {State.INTERRUPTED: 1, State.PENDING: 1}
    assert (runs[0].folder.state, (tmp_path / "b" / "begun").exists()) == (State.INTERRUPTED, False)


class InItsRounds(Budget):
    """Is spent once the first run has been evaluated, whatever time that takes."""

    runs: list[Run]

    @property
    def spent(self) -> bool:
        return any(run.folder.metrics for run in self.runs)

    @contextmanager
    def ending(self, stop):
        left = threading.Event()

        def look() -> None:
            while not left.wait(0.02):
                if self.spent:
                    stop.set()

        watching = threading.Thread(target=look)
        watching.start()
        yield
        left.set()
        watching.join()


@pytest.mark.slow
def test_a_run_ends_between_rounds_and_goes_on_to_the_weights_of_one_that_nobody_disturbed(tmp_path, monkeypatch, capsys):
    (tmp_path / "some.yaml").write_text(SWEEP)
    later, urgent = InItsRounds.runs = read_sweep(tmp_path / "some.yaml").runs(tmp_path / "runs" / "pool")
    with monkeypatch.context() as limited:
        limited.setattr(command, "Budget", InItsRounds)
        with pytest.raises(SystemExit) as left:
            main(["sweep", "some.yaml", "--budget", "25m"])
    assert left.value.code == SPENT
    said = capsys.readouterr().out
    assert "The time is spent: 1 interrupted, 1 pending. The same command goes on. Tables and figures:" in said
    assert (urgent.folder.state, later.folder.state) == (State.INTERRUPTED, State.PENDING)  # the urgent one began
    done = urgent.folder.record["rounds"]
    assert 1 <= done < 40
    assert whole(urgent.folder.path / "last.ckpt") == done  # no round is lost, though checkpoints are rare

    main(["fit", "--config", str(urgent.folder.config), "--ckpt_path", "last"])  # as the next call does, in another process
    assert urgent.folder.state is State.FINISHED
    main(["fit", "--config", str(urgent.folder.config), "--trainer.default_root_dir", "calm"])
    assert RunFolder(Path("calm")).record["weights_sha256"] == urgent.folder.record["weights_sha256"]
