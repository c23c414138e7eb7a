"""Which sweeps have their runs forked, and when what they are forked from begins."""

import io
from typing import Any

import pytest
from rich.console import Console

from fl_lightning.experiments import command, job, scheduler
from fl_lightning.experiments.planned import Cell, Run
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.warm_client import Servers


@pytest.mark.parametrize(("ranks", "cold", "forked"), [(None, False, True), (None, True, False), (2, False, False)])
def test_a_sweep_forks_its_runs_where_it_is_given_servers(tmp_path, monkeypatch, ranks, cold, forked):
    starts: list[Any] = []

    def note(folder: RunFolder, command: Any, environment: Any, stop: Any, start: Any) -> int:
        starts.append(start)
        return 0

    fork = object()
    monkeypatch.setattr(scheduler.job, "run", note)
    monkeypatch.setattr(Servers, "starter", lambda *_: fork)
    runs = [Run(Cell({"rule": name}, []), 0, {"trainer": {}}, RunFolder(tmp_path / name)) for name in "ab"]
    servers = None if cold else Servers(print)
    scheduler.run_all(runs, jobs=1, ranks=ranks, console=Console(file=io.StringIO()), servers=servers)
    assert starts == [fork if forked else job.start] * 2


@pytest.mark.parametrize(
    ("options", "begun"),
    [
        ([], True),
        (["--cold"], False),
        (["--ranks", "2"], False),
        (["--dry-run"], False),
        (["--status"], False),
        (["--slurm"], False),
    ],
)
def test_servers_begin_while_the_sweep_is_read_unless_they_are_of_no_use(monkeypatch, options, begun):
    found: list[dict[str, str]] = []
    monkeypatch.setattr(Servers, "begin", lambda _, environments: found.extend(environments))
    given, _ = command.parse_sweep_command(["sweep.yaml", "--jobs", "2", *options])
    with command.forked_from(given, Console(file=io.StringIO())) as servers:
        assert (servers is not None) is begun
    assert len(found) == (2 if begun else 0)
