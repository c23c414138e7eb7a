"""A configuration and what a command says of a mistake on top of it: how one of hundreds of lines is tried.

A line is `arguments | what the message must name`, a comma between two of these.
"""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from fl_lightning.cli import main
from fl_lightning.configuration import FederatedCLI

BASE = """
seed_everything: 0
trainer:
  {accelerator: cpu, max_epochs: 2, logger: false, default_root_dir: run, callbacks: [{class_path: AggregationDiagnostics}]}
model:
  client: {class_path: MLP, init_args: {sizes: [45, 8, 2]}}
  aggregator: {class_path: Invariant, init_args: {tau: 0.6, alpha: 0.25}}
  attacks: [{class_path: ValueTrigger}]
  cohort: {clients_per_round: 5, malicious_fraction: 0.2}
data:
  class_path: Phishing
  init_args: {num_train: 600, num_test: 100, partition: {class_path: IID, init_args: {num_clients: 10}}}
"""

MOST_LINES, WIDTH = 12, 100

parsers: dict[tuple[str, ...], dict[str, Any]] = {}


@pytest.fixture
def one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the parser of a command takes a third of the time that a mistake takes; it holds nothing of what it parsed."""
    make = FederatedCLI.setup_parser

    def kept(cli: Any, *args: Any) -> None:
        command = tuple(cli.subcommands())
        if command not in parsers:
            before = set(vars(cli))
            make(cli, *args)
            parsers[command] = {name: value for name, value in vars(cli).items() if name not in before}
        vars(cli).update(parsers[command])

    monkeypatch.setattr(FederatedCLI, "setup_parser", kept)


def cases(lines: str) -> list[Any]:
    """The lines as parameters of a test, no two alike."""
    found = [tuple(part.strip() for part in line.split(" | ")) for line in lines.strip().splitlines()]
    assert len({arguments for arguments, _ in found}) == len(found)
    return [pytest.param(*case, id=case[0]) for case in found]


def is_refused(folder: Path, capfd: pytest.CaptureFixture[str], arguments: str, named: str) -> None:
    """The command ends in a readable message that names all this, and leaves nothing in the folder, where it runs."""
    (folder / "base.yaml").write_text(BASE)
    given = [word.replace("\\n", "\n") for word in shlex.split(arguments)]
    with pytest.raises(SystemExit) as left:
        main(["fit", "--config", "base.yaml", *given])
    assert left.value.code == 2
    shown = capfd.readouterr()
    message = shown.err[shown.err.index("error: ") :]
    assert sum(1 + len(line) // WIDTH for line in shown.err.splitlines()) <= MOST_LINES, shown.err
    assert "Traceback" not in shown.err
    assert all(word in message for word in named.split(", ")), message
    assert os.listdir(folder) == ["base.yaml"]
