"""Sweeps and reports without torch, and what is kept of the cells of a sweep."""

from pathlib import Path

import pytest
from light_process import HEAVY, ROOT, run
from made_sweeps import made

from fl_lightning.cli import main

SWEEP = f"""
base: {ROOT}/configs/quickstart.yaml
axes:
  rule: {{FedAvg: {{model: {{aggregator: FedAvg}}}}, Median: {{model: {{aggregator: Median}}}}}}
  seed: [0, 1]
"""


def test_a_report_needs_no_torch(tmp_path):
    made(tmp_path, {("Krum", "DBA"): [[(0.5, 0.25)] * 3], ("Median", "DBA"): [[(0.5, 0.5)] * 3]})
    left, text, modules = run("report", str(tmp_path / "sweeps" / "made"))
    assert (left, "report.html" in text) == (0, True)
    assert not modules & HEAVY


@pytest.mark.parametrize("option", ["--dry-run", "--status"])
def test_a_sweep_whose_cells_are_known_needs_no_torch(tmp_path, option, capsys):
    Path("some.yaml").write_text(SWEEP)
    main(["sweep", "some.yaml", option])  # here, where torch is there
    left, text, modules = run("sweep", "some.yaml", option)
    assert (left, text) == (0, capsys.readouterr().out)
    assert "4 pending" in text
    assert not modules & HEAVY
