from pathlib import Path

import pytest

from fl_lightning.updates.cache import FALLBACK_BYTES, LEAST_BYTES, MOST_BYTES, count_listed, working_set_bytes

measure = working_set_bytes.__wrapped__


def caches(folder: Path, *described: tuple[str, str, str]) -> Path:
    for i, (level, size, cores) in enumerate(described):
        index = folder / f"index{i}"
        index.mkdir(parents=True)
        for name, text in (("level", level), ("size", size), ("shared_cpu_list", cores)):
            (index / name).write_text(text + "\n")
    return folder


def test_half_of_a_cores_share_of_the_outer_caches(tmp_path: Path) -> None:
    assert measure(caches(tmp_path, ("1", "32K", "0"), ("2", "1024K", "0,8"), ("3", "16M", "0-3,8-11"))) == (2**19 + 2**21) // 2


def test_bounds(tmp_path: Path) -> None:
    assert measure(caches(tmp_path / "small", ("2", "64K", "0"))) == LEAST_BYTES
    assert measure(caches(tmp_path / "large", ("3", "1G", "0"))) == MOST_BYTES


@pytest.mark.parametrize("described", [("two", "1M", "0"), ("2", "1X", "0"), ("2", "", "0"), ("2", "1M", "")])
def test_what_cannot_be_read_gives_a_middling_size(tmp_path: Path, described: tuple[str, str, str]) -> None:
    assert measure(caches(tmp_path, described)) == FALLBACK_BYTES
    assert measure(tmp_path / "nowhere") == FALLBACK_BYTES


def test_count_listed() -> None:
    assert [count_listed(text) for text in ("0", "0-3", "0-3,8,10-11")] == [1, 4, 7]
