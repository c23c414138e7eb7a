import json
import math
import resource
import signal
import threading

import pytest

from fl_lightning.errors import ConfigurationError
from fl_lightning.files.replacing import StorageError
from fl_lightning.files.run_files import LockedError, RoundLines, locked, read_lines, take_lock, write_whole, written_together


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


def test_a_file_that_does_not_begin_as_at_the_checkpoint_is_refused(tmp_path):
    path = tmp_path / "rates.jsonl"
    lines = RoundLines(path, afresh=True)
    lines.add({"round": 1, "rate": 0.5})
    kept = lines.state()
    lines.add({"round": 2, "rate": 0.25})
    good = path.read_bytes()
    for bit in range(8 * kept["bytes"]):
        damaged = bytearray(good)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"rates\.jsonl is damaged: .* move it away"):
            RoundLines(path, afresh=False, kept=kept)
        assert path.read_bytes() == damaged
    path.write_bytes(good[:-3] + b"9}\n")  # damaged after the checkpoint: that comes again
    lines = RoundLines(path, afresh=False, kept=kept)
    assert lines.state() == kept
    lines.add({"round": 2, "rate": 0.25})
    assert path.read_bytes() == good
    assert RoundLines(tmp_path / "elsewhere.jsonl", afresh=False, kept=kept).rounds == set()


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


def test_what_a_power_cut_left_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\n\0\0\0\n{"round": 2}\n')
    assert read_lines(path) == [{"round": 1}]
    RoundLines(path, afresh=False).add({"round": 2})
    assert read_lines(path) == [{"round": 1}, {"round": 2}]


def test_several_writers_leave_one_whole_file(tmp_path):
    texts = ["a" * 5000, "b" * 7000]

    def write(text):
        for _ in range(100):
            write_whole(tmp_path / "file", text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_are_written_together_are_all_there_or_none(tmp_path):
    write_whole(tmp_path / "a", "old")
    done = []
    texts = {tmp_path / "a": "new", tmp_path / "b": "x" * 2000}
    with written_together(texts):
        assert (tmp_path / "a").read_text() == "old"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "x" * 2000}
    (tmp_path / "b").unlink()
    before, limit = resource.getrlimit(resource.RLIMIT_FSIZE), 1000
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StorageError, match=r"no room for .*b \(File too large\): 2,000 bytes"), written_together(texts):
            done.append("something that only a run that begins does")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert done == []
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path / "lock"):
        with pytest.raises(LockedError):
            take_lock(tmp_path / "lock", patience=0.0)
        with pytest.raises(LockedError):
            take_lock(tmp_path / "lock", patience=0.2)
    take_lock(tmp_path / "lock", patience=0.0).close()


def test_no_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        b"{\n",
        b"[1]\n",
        b'{"acc": 0.5}\n',
        b'{"round": "2"}\n',
        b'{"round": 2.5}\n',
        b'{"round": true}\n',
        b'{"round": [2]}\n',
        b'{"round": -2}\n',
        b'{"round": 1' + b"0" * 400 + b"}\n",
        b'{"round": 2, "acc": "0.5"}\n',
        b'{"round": 2, "acc": {}}\n',
        b'{"round": 2, "acc": true}\n',
        b'{"round": 2, "acc": NaN}\n',
        b'{"round": 2, "acc": 1e999}\n',
        b'{"round": 2, "counts": [1, "2"]}\n',
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda line: line[:24].decode(errors="replace").strip(),
)
def test_a_line_that_is_damaged_is_named_and_left_out(tmp_path, caplog, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1, "acc": 0.5, "asr": null, "counts": [1, 2]}\n' + line + b'{"round": 3}\n')
    assert read_lines(path) == [{"round": 1, "acc": 0.5, "asr": None, "counts": [1, 2]}]
    assert f"{path} is damaged: line 2 of 3 is no entry of a round; it and what follows are left out" in caplog.text
    lines = RoundLines(path, afresh=False)
    lines.add({"round": 2, "acc": 0.25})
    assert [entry["round"] for entry in read_lines(path)] == [1, 2]


def test_a_line_that_is_being_written_is_no_damage(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\n{"round": 2, "a')
    assert read_lines(path) == [{"round": 1}]
    assert not caplog.text
