import json
import math

from fl_lightning.files import RoundLines, read_lines


def test_each_round_has_one_line_in_the_order_of_arrival(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = RoundLines(path, afresh=True)
    for entry in ({"round": 1, "acc": 0.5}, {"round": 2, "acc": 0.75}, {"round": 1, "acc": 0.0}):
        lines.add(entry)
    assert read_lines(path) == [{"round": 1, "acc": 0.5}, {"round": 2, "acc": 0.75}]


def test_a_resumed_run_adds_what_is_new_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    RoundLines(path, afresh=True).add({"round": 1, "acc": 0.5})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"round": 2, "a')  # as SIGKILL may leave it
    assert read_lines(path) == [{"round": 1, "acc": 0.5}]
    lines = RoundLines(path, afresh=False)
    assert path.read_bytes() == whole
    lines.add({"round": 1, "acc": 0.5})
    lines.add({"round": 2, "acc": 0.25})
    assert path.read_bytes().startswith(whole)
    assert [entry["round"] for entry in read_lines(path)] == [1, 2]


def test_a_fresh_start_empties_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    RoundLines(path, afresh=True).add({"round": 1})
    RoundLines(path, afresh=True)
    assert read_lines(path) == []


def test_every_line_is_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    RoundLines(path, afresh=True).add({"round": 1, "asr": math.nan, "acc": math.inf})
    strict = json.loads(path.read_text(), parse_constant=lambda name: f"not JSON: {name}")
    assert strict == {"round": 1, "asr": None, "acc": None}


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []
