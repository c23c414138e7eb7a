"""The README is short, and names the two commands that everything begins with; tests/test_pages.py runs what it shows."""

from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_two_commands_are_there() -> None:
    assert "pip install -e . && torchrun --nproc-per-node 2 -m fl_lightning fit --config configs/quickstart.yaml" in README
    assert "pip install -e '.[test]' && pytest -n 2" in README


def test_it_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) < 150
