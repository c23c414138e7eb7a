"""Digests in JSON and in settings."""

import json
import math

import pytest

from fl_lightning import ConfigurationError
from fl_lightning.sealed import DamagedError, altered, sealed, unsealed, with_digest

ENTRY = {"acc": 0.125, "asr": math.nan, "labels": {"rule": "é"}, "runs": {0: "ab"}, "none": None}


def test_what_was_written_comes_back_without_the_digest(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(sealed(ENTRY), indent=1))
    found = unsealed(path)
    assert math.isnan(found.pop("asr"))
    assert found == {"acc": 0.125, "labels": {"rule": "é"}, "runs": {"0": "ab"}, "none": None}
    path.write_text(json.dumps(json.loads(path.read_text())))  # in another form it says the same
    assert unsealed(path)["acc"] == 0.125


def test_no_flipped_bit_changes_what_a_file_says(tmp_path):
    path = tmp_path / "x.json"
    text = json.dumps(sealed({"acc": 0.125, "runs": {"0": "ab"}}), indent=1).encode()
    noticed = 0
    for bit in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = unsealed(path)
        except DamagedError:
            noticed += 1
        else:
            assert (found["acc"], found["runs"]) == (0.125, {"0": "ab"})
    assert noticed > 7 * len(text)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"x\.json is damaged"):
        unsealed(tmp_path / "x.json")


def test_old_files_are_believed_and_none_is_empty(tmp_path):
    (tmp_path / "x.json").write_text('{"acc": 0.5}')
    assert unsealed(tmp_path / "x.json") == {"acc": 0.5}
    assert unsealed(tmp_path / "none.json") == {}
    with pytest.raises(ConfigurationError, match="is a folder and no regular file"):
        unsealed(tmp_path)


def test_settings_that_were_changed_are_known(tmp_path):
    path = tmp_path / "config.yaml"
    written = with_digest("lr: 0.1\nseed: 3\n")
    path.write_text(written)
    assert not altered(path)
    for text in (written.replace("0.1", "0.3"), written + "more: 1\n", "x: 1\n" + written):
        path.write_text(text)
        assert altered(path)
    path.write_text("lr: 0.3\n")
    assert not altered(path)
    path.write_bytes(written.encode().replace(b"0.1", b"0.\xb1"))
    assert altered(path)
