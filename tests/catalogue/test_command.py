"""`fl-lightning list` as a user meets it."""

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from fl_lightning import aggregators
from fl_lightning.catalogue.command import SECTIONS, show, show_chosen
from fl_lightning.cli import main

RULES = len(aggregators.__all__) - 1  # but for their base class


def on_terminal(width: int, kind: str | None = None, name: str | None = None) -> str:
    """What a terminal of that many columns shows, without colours."""
    file = io.StringIO()
    show_chosen(Console(file=file, width=width, force_terminal=True), kind, name, json=False)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


def test_the_overview_counts_every_kind(capsys):
    main(["list"])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, *_ in lines] == list(SECTIONS)
    for name, number, about in lines:
        show([name])
        assert len(capsys.readouterr().out.splitlines()) == int(number) > 0
        assert about


def test_a_pipe_gets_a_line_per_entry(capsys):
    show(["rules"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("TrimmedMean\t")]
    assert line == "TrimmedMean\tCoordinate-wise trimmed mean.\talpha=0.25, verdicts=false\tarxiv.org/abs/1803.01498"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width):
    shown = [on_terminal(width), *(on_terminal(width, kind) for kind in SECTIONS)]
    shown += [
        on_terminal(width, "rules", "FLIP"),
        on_terminal(width, "models", "LSTM"),
        on_terminal(width, "sweeps", "quickstart"),
    ]
    for text in shown:
        assert max(map(len, text.splitlines())) <= width
    assert "DirichletOverClasses" in on_terminal(width, "partitions")  # names stay whole
    assert re.search(r"^ name +about +arguments( +paper)? *$", on_terminal(width, "rules"), re.MULTILINE)


def test_an_entry_has_all_of_it(capsys):
    show(["rules", "Krum"])
    shown = capsys.readouterr().out
    for part in (
        "Krum (rule): The one update whose neighbours are nearest.\nfl_lightning.aggregators.krum.Krum\n",
        "Bounds: the paper's proof needs N >= 2f + 3",
        ">>> Krum(num_malicious=1)",
        "Arguments\n  num_malicious: int | None = null\n      f, at least 0;",
        "Papers\n  P. Blanchard",
        "In a configuration\n  model:\n    aggregator:\n      class_path: Krum\n",
    ):
        assert part in shown
    assert shown.replace(" ", "").replace("\n", "") == on_terminal(70, "rules", "Krum").replace(" ", "").replace("\n", "")


def test_json_is_for_tools(capsys):
    show(["--json"])
    assert json.loads(capsys.readouterr().out)["rules"]["count"] > 20
    show(["tasks", "--json"])
    listed = json.loads(capsys.readouterr().out)
    show(["tasks", "Phishing", "--json"])
    one = json.loads(capsys.readouterr().out)
    assert one in listed
    assert one["arguments"][0] == {
        "name": "partition",
        "type": "Partition",
        "required": True,
        "default": None,
        "about": "how training samples are dealt out to clients.",
    }
    for name in SECTIONS:
        show([name, "--json"])
        assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rules", "Krumm"], "error: there is no rule Krumm; did you mean Krum?"),
        (["rule"], "error: there is no kind rule to list; did you mean rules?"),
        (["Krum"], "error: there is no kind Krum to list; did you mean `fl-lightning list rules Krum`?"),
        (["rules", "xyz"], f"error: there is no rule xyz; `fl-lightning list rules` shows all {RULES}"),
        (
            ["configs", "edge_case"],
            "error: edge_case may be configs/cifar10/edge_case.yaml or configs/cifar10/table5/edge_case.yaml",
        ),
        (["rules", "--jsn"], "error: fl-lightning list: unrecognized arguments: --jsn; see fl-lightning list --help"),
    ],
)
def test_a_name_that_is_not_there(args, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["list", *args])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml"])
def test_a_file_goes_by_the_end_of_its_path(name, capsys):
    show(["configs", name])
    shown = capsys.readouterr().out
    assert shown.startswith("configs/quickstart.yaml (configuration): A federation under backdoor attack in half a minute")
    assert "In the file\n  seed_everything: 0\n" in shown


def test_whoever_reads_may_stop():
    listing = "from fl_lightning.catalogue.command import show; show(['rules', '--json'])"
    ended = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -n 1', sys.executable, listing], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[\n", "")
