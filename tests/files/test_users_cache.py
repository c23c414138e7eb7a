"""What is kept in the user's cache folder, and for how long."""

import math
import os
import shutil

import pytest

from fl_lightning.files import cache
from fl_lightning.files.cache import fingerprint, keep, kept, place, root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache.prune.cache_clear()


def test_what_is_kept_is_found_under_its_key_alone():
    keep("thing", ["a", 1], {"b": [1, 1.5, math.inf, None, True, "text"]})
    assert kept("thing", ["a", 1]) == {"b": [1, 1.5, math.inf, None, True, "text"]}
    assert kept("thing", ["a", 2]) is None
    assert kept("other", ["a", 1]) is None


def test_the_folder_follows_the_users_setting(tmp_path, monkeypatch):
    assert root() == tmp_path / "cache" / "fl_lightning"
    monkeypatch.setenv("HOME", str(tmp_path))
    for said in ("", "relative"):  # by the standard such a setting is none
        monkeypatch.setenv("XDG_CACHE_HOME", said)
        assert root() == tmp_path / ".cache" / "fl_lightning"


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, [math.nan], [object()], {"a": {1}}])
def test_what_json_would_change_is_not_kept(value):
    keep("thing", 0, value)
    assert kept("thing", 0) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"value": 2, "sha256": "0"}'])
def test_a_damaged_file_is_none_and_is_written_anew(content):
    keep("thing", 0, 1)
    place("thing", 0).write_bytes(content)
    assert kept("thing", 0) is None
    keep("thing", 0, 1)
    assert kept("thing", 0) == 1


def test_a_digit_that_flips_is_noticed():
    keep("thing", 0, 1)
    file = place("thing", 0)
    file.write_text(file.read_text().replace('"value": 1', '"value": 3'))
    assert kept("thing", 0) is None


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    keep("thing", 0, 1)
    assert kept("thing", 0) is None


def test_the_fingerprint_is_of_every_source(tmp_path, monkeypatch):
    package, configs = tmp_path / "package", tmp_path / "configs"
    (package / "wing").mkdir(parents=True)
    configs.mkdir()
    for file in (package / "a.py", package / "wing" / "b.py", configs / "c.yaml"):
        file.write_text("x = 1\n")
    found = [fingerprint(package, configs)]
    assert fingerprint(package, configs) == found[0]
    (package / "wing" / "b.py").write_text("x = 12\n")
    found.append(fingerprint(package, configs))
    os.utime(package / "a.py", ns=(0, 1))
    found.append(fingerprint(package, configs))
    (configs / "d.yaml").write_text("")
    found.append(fingerprint(package, configs))
    monkeypatch.setattr(cache, "version", lambda _: "9.9")
    found.append(fingerprint(package, configs))
    shutil.copytree(package, tmp_path / "copy")
    found.append(fingerprint(tmp_path / "copy", configs))
    assert len(set(found)) == len(found)


def test_what_other_versions_kept_is_removed(monkeypatch):
    root().mkdir(parents=True, exist_ok=True)
    (root() / "tokens").mkdir()  # is no version's
    os.utime(root() / "tokens", (0, 0))
    for number in range(9):
        monkeypatch.setattr(cache, "_fingerprint", lambda number=number: str(number) * 64)
        cache.prune.cache_clear()
        assert kept("thing", 0) is None
        keep("thing", 0, 1)
        os.utime(place("thing", 0).parent, (number, number))
    assert sorted(path.name[0] for path in root().iterdir()) == ["5", "6", "7", "8", "t"]


def test_the_oldest_entries_go_first(monkeypatch):
    monkeypatch.setattr(cache, "MOST_ENTRIES", 3)
    for number in range(6):
        cache.prune.cache_clear()
        keep("thing", number, number)
        os.utime(place("thing", number), (number, number))
    assert [number for number in range(6) if kept("thing", number) is not None] == [2, 3, 4, 5]
