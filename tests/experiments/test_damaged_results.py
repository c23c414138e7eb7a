"""What a sweep has left, damaged: a report says so or does without."""

import json
from typing import Any

import pytest
from test_results import make

from fl_lightning.cli import main


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
