"""What users call their runs, and what errors say, is text in every format of a report, and files of a run are its own."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_results import Page, finish

from fl_lightning import ConfigurationError
from fl_lightning.analysis.output import Output
from fl_lightning.experiments.figures import numeric_axes
from fl_lightning.experiments.plain_text import as_csv, csv_cell, is_number, latex_cell, markdown_cell
from fl_lightning.experiments.report import write_report
from fl_lightning.experiments.results import Results, read_results, write_index
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.sweep import Cell, Run, Sweep
from fl_lightning.experiments.tables import markdown
from fl_lightning.files.run_files import RoundLines
from fl_lightning.files.sealed import sealed, unsealed

HOSTILE = [
    '=HYPERLINK("http://x","y")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    " =1+1",
    "\uff1d1+1",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "two\nlines",
    "carriage\rreturn",
    "a|b",
    "![x](http://tracker/p.png)",
    "[x](javascript:alert(1))",
    "`code` *strong* __x__ ~~gone~~ $x$ &lt;",
    r"\input{/etc/passwd} \write18{ls} & % # _ ^ ~ { } < > |",
    "bell\x07escape\x1b[31m",
    "line\u2028separator",
    "'; DROP TABLE runs; --",
    "{{ 7 * 7 }} {% raw %}",
]
NUMBERS = ["-0.5", "+3", "-1e-3", "-inf", "-"]


def results_of(root: Path, labels: list[str]) -> Results:
    """A sweep with these labels, and a title and error messages that are hostile."""
    cells = [Cell({"rule": label}, []) for label in labels]
    sweep = Sweep("some", HOSTILE[7] + HOSTILE[9] + HOSTILE[12], cells, [0])
    runs = [Run(cell, 0, {}, RunFolder(root / "pool" / f"{i:012x}")) for i, cell in enumerate(cells)]
    for run in runs:
        finish(run.folder, 0.5, 0.25)
    for run in runs[:6] if len(runs) > 6 else []:
        (run.folder.path / "run.json").unlink()
        run.folder.write_status(State.FAILED, message="\n".join(HOSTILE))
    write_index(root / "sweeps" / "some", sweep, runs)
    return read(root)


def read(root: Path) -> Results:
    return read_results(root / "sweeps" / "some", root / "pool")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of hostile labels: the results, and the folder of the report."""
    root = tmp_path_factory.mktemp("sweep")
    results = results_of(root, HOSTILE + NUMBERS)
    write_report(results, root / "out")
    return results, root / "out"


def test_no_cell_of_a_csv_file_is_a_formula_and_numbers_stay_numbers(report):
    results, out = report
    for name in ("cells.csv", "runs.csv", "times.csv"):
        text = (out / name).read_bytes().decode()
        rows = list(csv.reader(text.splitlines()))
        assert len(rows) == 1 + len(HOSTILE) + len(NUMBERS), name  # a row per line: no text has broken one
        for cell in (cell for row in rows for cell in row):
            harmless = cell == "-" or is_number(cell)
            assert harmless or not cell.lstrip().startswith(tuple("=+-@\uff1d")), cell
    assert pd.read_csv(out / "cells.csv")["acc"].tolist()[6:] == results.cells["acc"].tolist()[6:]
    assert pd.read_csv(out / "runs.csv")["rule"].tolist()[-len(NUMBERS) :] == NUMBERS
    assert pd.read_csv(out / "times.csv")["world_size"].dropna().unique().tolist() == [2]
    assert as_csv(pd.DataFrame({"=x": [-0.5, 2.0]})) == "'=x\n-0.5\n2.0\n"


def test_markdown_is_a_table_of_text(report):
    _, out = report
    lines = (out / "table.md").read_text().split("\n")
    assert lines[0].startswith("# &lt;script>")
    table = lines[2:-1]
    assert len(table) == 2 + len(HOSTILE) + len(NUMBERS)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert not re.search(r"<|(?<!\\)\[|(?<!\\)`|(?<!\\)\*", "\n".join(lines))
    assert "&amp;lt;" in "\n".join(table)


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_has_no_command_of_the_users(text):
    made = latex_cell(text)
    for known in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}", r"\textless{}", r"\textgreater{}"):
        made = made.replace(known, "")
    made = re.sub(r"\\textbar\{\}|\\[&%$#_{}]|-\{\}-", "", made)
    assert not set(made) & set("\\&%$#_{}~^<>|\n\r\x1b")
    assert "\n" not in made


def test_the_page_shows_hostile_text_as_text(report):
    _, out = report
    text = (out / "report.html").read_text()
    assert text.count("<script") == 1  # the page's own, which sorts tables
    assert "alert" not in text.partition("<script>")[2].partition("</script>")[0]
    assert not re.search(r"<[^>]*onerror", text)
    shown = " ".join(Page(text).words)
    assert "<script>alert(1)</script>" in shown
    assert "{{ 7 * 7 }}" in shown


def test_usual_labels_stay_readable():
    usual = ["Invariant, tau .6", "FedAvg (no attack)", "a_b", "R&D", "50%", "c = 0.5"]
    assert [markdown_cell(text) for text in usual] == usual
    assert [csv_cell(text) for text in usual] == usual
    assert markdown(pd.DataFrame({"rule": ["-"], "n": ["3"]})).splitlines()[2] == "| - | 3 |"


def test_axes_of_infinity_get_no_picture(tmp_path):
    results = results_of(tmp_path, ["1", "2", "3", "inf"])
    assert numeric_axes(results) == []
    assert numeric_axes(replace(results, runs=results.runs.iloc[:3])) == ["rule"]


@pytest.mark.parametrize("run_id", ["../../etc", "..", "/etc", "a/b", "", "a\x00b", "a\n"])
def test_runs_outside_the_pool_are_refused(tmp_path, run_id):
    results_of(tmp_path, ["a", "b"])
    index = unsealed(tmp_path / "sweeps" / "some" / "sweep.json")
    index["cells"][1]["runs"]["0"] = run_id
    (tmp_path / "sweeps" / "some" / "sweep.json").write_text(json.dumps(sealed(index)))
    with pytest.raises(ConfigurationError, match=r"sweep\.json calls a run .*, which a sweep does not") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_axis_that_would_be_a_path_is_refused(tmp_path):
    results_of(tmp_path, ["a", "b"])
    index = unsealed(tmp_path / "sweeps" / "some" / "sweep.json")
    text = json.dumps(index).replace('"rule"', '"../../x"')
    (tmp_path / "sweeps" / "some" / "sweep.json").write_text(json.dumps(sealed(json.loads(text))))
    with pytest.raises(ConfigurationError, match=r"calls an axis '\.\./\.\./x'"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "config.yaml"])
def test_a_report_does_not_follow_links_out_of_a_run(tmp_path, name):
    results = results_of(tmp_path, ["a"])
    secret = tmp_path / "secret"
    secret.write_text('{"round": 1, "acc": 1.0}\n')
    file = results.folders[-1].path / name
    file.unlink(missing_ok=True)
    file.symlink_to(secret)
    with pytest.raises(ConfigurationError, match=rf"{re.escape(name)} is a link to .*secret"):
        write_report(read(tmp_path), tmp_path / "out")
    file.unlink()
    os.mkfifo(file)  # which a reader would wait for
    with pytest.raises(ConfigurationError, match=rf"{re.escape(name)} is a pipe and no regular file"):
        write_report(read(tmp_path), tmp_path / "out")


def test_a_run_does_not_write_through_a_link(tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"round": 1}\n')
    (tmp_path / "metrics.jsonl").symlink_to(other)
    for afresh in (True, False):
        with pytest.raises(ConfigurationError, match=r"metrics\.jsonl is a link to .*other\.jsonl"):
            RoundLines(tmp_path / "metrics.jsonl", afresh=afresh)
    assert other.read_text() == '{"round": 1}\n'


def test_an_analysis_shows_and_writes_text_as_text(tmp_path, capsys):
    Output(tmp_path).table("[/b] title", [{"[x]": "=1+1", "n": -0.5}], "rows")
    assert (tmp_path / "rows.csv").read_text() == "[x],n\n'=1+1,-0.5\n"
    shown = capsys.readouterr().out
    assert "[/b] title" in shown
    assert "[x]" in shown
