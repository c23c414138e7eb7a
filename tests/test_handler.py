"""The one place where a command's exceptions become a line for the user."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fl_lightning import cli
from fl_lightning.errors import ConfigurationError

OWN = """
import torch
from torch import nn

import lightning as L


class Net(L.LightningModule):
    def __init__(self, hidden: int = 8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(45, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Faulty(Net):
    def training_step(self, batch, batch_idx):
        return {}["no such\\nkey"]
"""

SMALL = """
model: {client: {class_path: NAME}, aggregator: {class_path: FedAvg}, cohort: {clients_per_round: 4, malicious_fraction: 0}}
data: {class_path: Phishing, init_args: {num_train: 300, partition: {class_path: IID, init_args: {num_clients: 5}}}}
trainer: {accelerator: cpu, max_epochs: 1, logger: false, default_root_dir: run, enable_progress_bar: false}
"""


def leave(args, capsys) -> tuple[Any, str]:
    """The exit status of a command, and what it said on stderr."""
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    return left.value.code, capsys.readouterr().err


@pytest.fixture
def raising(monkeypatch):
    """Lets the command raise an exception."""

    def raises(error):
        def run(args):
            raise error

        monkeypatch.setattr(cli, "run", run)

    return raises


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigurationError("tau must\nnot be 3"), 2, "error: tau must not be 3\n"),
        (PermissionError(13, "Permission denied", "/x/run.json"), 2, "error: /x/run.json: Permission denied\n"),
        (OSError(28, "No space left on device"), 2, "error: No space left on device\n"),
        (FileExistsError(17, "File exists", "a", None, "b"), 2, "error: a and b: File exists\n"),
        (ModuleNotFoundError("no module wandb"), 2, "error: no module wandb\n"),
        (MemoryError("4 TB"), 1, "error: not enough memory: 4 TB; ask for less"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "error: not enough memory: "),
        (ZeroDivisionError("by\nzero"), 1, "error: ZeroDivisionError: by zero ("),
        (OSError("odd"), 1, "error: OSError: odd ("),
    ],
)
def test_an_exception_is_a_line(raising, capsys, error, status, said):
    raising(error)
    left, shown = leave(["fit"], capsys)
    assert left == status
    assert shown.startswith(said)
    assert shown.count("\n") == 1
    assert ("--traceback" in shown) == (status == 1 and "memory" not in said)


def test_a_line_says_what_was_noted(raising, capsys):
    error = ZeroDivisionError("zero")
    error.add_note("on batch 1 of 2")
    error.add_note("while client 3 was trained")
    raising(error)
    _, shown = leave(["fit"], capsys)
    assert ", on batch 1 of 2 while client 3 was trained); the same command with --traceback" in shown
    assert shown.count("\n") == 1


def test_a_mistake_that_a_library_wrapped_is_said_alone(raising, capsys):
    error = RuntimeError("Call to something failed")
    error.__cause__ = ConfigurationError("tau must not be 3")
    raising(error)
    assert leave(["fit"], capsys) == (2, "error: tau must not be 3\n")


def test_the_traceback_is_there_for_the_asking(raising, capsys):
    raising(ZeroDivisionError("zero"))
    for args in (["fit", "--traceback"], ["--traceback", "fit"]):
        _, shown = leave(args, capsys)
        assert "Traceback (most recent call last)" in shown
        assert shown.splitlines()[-1].startswith("error: ")
    _, shown = leave(["sweep", "--", "--traceback"], capsys)  # what is given to every fit
    assert "Traceback" not in shown


def test_ctrl_c_ends_without_a_word(raising, capsys):
    raising(KeyboardInterrupt())
    assert leave(["fit"], capsys) == (130, "")


@pytest.mark.parametrize(("args", "said"), [([], "a command is missing"), (["fitt"], "did you mean fit?"), (["swep"], "sweep")])
def test_a_command_that_is_not_there(args, said, capsys):
    status, shown = leave(args, capsys)
    assert status == 2
    assert said in shown


def test_the_first_process_of_a_node_speaks_for_all(raising, capsys, monkeypatch):
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(cli, "PATIENCE_SECONDS", 0.2)
    raising(ConfigurationError("no"))
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert leave(["fit"], capsys) == (2, "error: no\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert leave(["fit"], capsys) == (2, "error: no\n")  # nobody else has met it
    parents = iter([1, 1, 2, 2])
    monkeypatch.setattr(cli.os, "getppid", lambda: next(parents))  # the first process, which had started this one, is gone
    assert leave(["fit"], capsys) == (2, "")


def test_a_fault_in_the_users_code_names_its_line(tmp_path, capsys):
    (tmp_path / "own_faulty_net.py").write_text(OWN)
    status, shown = leave(["fit", "--config", SMALL.replace("NAME", "own_faulty_net.Faulty")], capsys)
    assert status == 1
    assert f"({tmp_path / 'own_faulty_net.py'}, line 25, on batch 1 of " in shown
    assert "no such" in shown


def test_the_console_script_finds_modules_of_the_current_folder(tmp_path):
    (tmp_path / "own_net.py").write_text(OWN)
    script = "import sys; sys.path[:] = [p for p in sys.path if p]; from fl_lightning.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [
        sys.executable,
        "-c",
        script,
        "prepare",
        "--config",
        SMALL.replace("NAME", "own_net.Net"),
        "--model.client.hidden",
        "3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "146" in done.stdout  # 45 * 3 + 3 + 3 * 2 + 2


@pytest.mark.parametrize(("rank", "status"), [(0, 143), (1, 0)])
def test_a_run_that_sigterm_ended_is_no_success(monkeypatch, rank, status):
    def terminated(args):
        raise SIGTERMException

    monkeypatch.setattr(cli, "run", terminated)
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    with pytest.raises(SystemExit) as left:
        cli.main(["fit"])
    assert left.value.code == status
