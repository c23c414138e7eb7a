"""What the README shows must run as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", PYTHON, ids=["own-model-and-data", "rule-on-a-tensor"])
def test_python_blocks_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    shown = capsys.readouterr().out
    if "cross_entropy" in block:
        (accuracy,) = re.findall(r"^(?:tensor\()?([\d.]+)", shown, flags=re.MULTILINE)
        assert float(accuracy) > 0.8
    else:
        assert "torch.Size([1000])" in shown


def test_the_page_about_python_runs_from_top_to_bottom(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "howto" / "python.md").read_text(), flags=re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/howto/python.md", "exec"), {"__name__": "page"})
    shown = capsys.readouterr().out
    assert "Results: runs/pixels/run.json" in shown
    assert "torch.Size([1, 10])" in shown


def test_the_two_commands_are_there():
    assert "pip install -e . && torchrun --nproc-per-node 2 -m fl_lightning fit --config configs/quickstart.yaml" in README
    assert "pip install -e '.[test]' && pytest -n 2" in README


def test_files_that_are_named_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for config in re.findall(r"configs/[\w/]+\.yaml", README):
        assert (ROOT / config).exists(), config
