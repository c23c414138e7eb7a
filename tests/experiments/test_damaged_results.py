"""What a sweep has left, damaged: a report says so or does without."""

import json
from typing import Any

import pytest
from test_results import make

from fl_lightning.cli import main
from fl_lightning.experiments import report as reports
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.files.sealed import sealed, with_digest


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures for a paper, which take longest, are of the same numbers as the tables."""
    monkeypatch.setattr(reports, "pictures", lambda *_, **__: [])


def report(folder, capsys) -> tuple[Any, str]:
    """The exit status of `report`, and what it said."""
    try:
        main(["report", str(folder)])
        status = 0
    except SystemExit as left:
        status = left.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:100],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"cells"', '"cell"'),
        lambda text: text.replace('"runs"', '"run"'),
        lambda text: text.replace('"title": "Some & <all>"', '"title": 3'),
        lambda text: json.dumps({**json.loads(text), "cells": []}),
        lambda text: json.dumps({**json.loads(text), "cells": [1]}),
        lambda text: json.dumps({**json.loads(text), "seeds": [0]}),
    ],
)
def test_an_index_that_is_damaged_is_named(tmp_path, capsys, damage):
    index = make(tmp_path) / "sweep.json"
    index.write_text(damage(index.read_text()))
    status, said = report(index.parent, capsys)
    assert status == 2
    assert f"error: {index} is damaged" in said
    index.write_bytes(b"\xff\xfe")
    assert report(index.parent, capsys)[0] == 2
    index.unlink()
    assert "is not the folder of a sweep" in report(index.parent, capsys)[1]


def test_a_digit_that_changed_in_an_index_is_not_shown(tmp_path, capsys):
    index = make(tmp_path) / "sweep.json"
    text = index.read_text()
    assert text.count('"asr": 0.75') == 1
    index.write_text(text.replace('"asr": 0.75', '"asr": 0.35'))
    status, said = report(index.parent, capsys)
    assert status == 2
    assert f"error: {index} is damaged: what it says has another SHA-256 than the one in it; the sweep's own command" in said
    without = json.loads(text)
    del without["sha256"]
    index.write_text(json.dumps(without))  # of an earlier version
    assert report(index.parent, capsys)[0] == 0


def test_a_digit_that_changed_in_a_record_is_not_shown(tmp_path, capsys):
    folder = make(tmp_path)
    record = tmp_path / "pool" / "00" / "run.json"
    record.write_text(json.dumps(sealed(json.loads(record.read_text()))))
    assert report(folder, capsys) == (0, "")
    before = (folder / "runs.csv").read_text()
    record.write_text(record.read_text().replace('"acc": 0.5', '"acc": 0.7'))
    assert report(folder, capsys) == (0, "")
    (line,) = [line for line in (folder / "runs.csv").read_text().splitlines() if line not in before]
    assert "failed" in line
    assert "0.7" not in line
    assert f"{record} is damaged: what it says has another SHA-256 than the one in it; the sweep's own command goes on" in line
    assert "failed" in (folder / "report.html").read_text()


def test_settings_that_were_changed_are_shown_as_such(tmp_path, capsys):
    folder, config = make(tmp_path), tmp_path / "pool" / "00" / "config.yaml"
    config.write_text(with_digest("seed_everything: 0\n"))
    assert report(folder, capsys) == (0, "")
    assert "damaged or edited" not in (page := (folder / "report.html").read_text())
    assert "sha256" not in page
    config.write_text(config.read_text().replace("0\n", "8\n", 1))
    assert report(folder, capsys) == (0, "")
    assert (folder / "report.html").read_text().count("damaged or edited") == 1


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"finished": true}',
        b'{"finished": true, "acc": "x", "asr": {}, "rounds": null, "excluded_updates": "many"}',
        b'{"finished": true, "acc": NaN, "asr": 1e999, "rounds": 1e999}',
    ],
)
def test_a_record_that_is_damaged_does_not_end_a_report(tmp_path, capsys, record):
    folder = make(tmp_path)
    (tmp_path / "pool" / "00" / "run.json").write_bytes(record)
    status, said = report(folder, capsys)
    assert (status, said) == (0, "")
    assert (folder / "report.html").exists()


@pytest.mark.parametrize("line", ['{"round": "x"}', '{"round": 2, "acc": "0.5"}', "{", '{"round": [1]}'])
def test_evaluations_that_are_damaged_are_named_and_do_not_end_a_report(tmp_path, capsys, caplog, line):
    folder = make(tmp_path)
    metrics = tmp_path / "pool" / "00" / "metrics.jsonl"
    metrics.write_text(f'{{"round": 1, "acc": 0.5, "asr": 0.25}}\n{line}\n{{"round": 3, "acc": 0.5, "asr": 0.25}}\n')
    assert report(folder, capsys)[0] == 0
    assert f"{metrics} is damaged: line 2 of 3 is no entry of a round" in caplog.text


@pytest.mark.parametrize("damage", [lambda t: t.replace("failed", "fabled"), lambda t: t[:-9], lambda t: "[]"])
def test_a_last_attempt_that_is_damaged_says_nothing(tmp_path, damage):
    run = RunFolder(tmp_path)
    run.write_status(State.FAILED, message="no room", attempt=3)
    assert (run.state, run.message, run.attempt) == (State.FAILED, "no room", 3)
    status = tmp_path / "status.json"
    status.write_text(damage(status.read_text()))
    assert (run.state, run.message, run.attempt) == (State.PENDING, "", 0)
