"""Sweeps and reports without torch, and what is kept of the cells of a sweep."""

from pathlib import Path

import pytest
from light_process import HEAVY, ROOT, run
from made_sweeps import made

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
def test_a_sweep_whose_cells_are_known_needs_no_torch(tmp_path, option):
    Path("some.yaml").write_text(SWEEP)
    first, second = run("sweep", "some.yaml", option), run("sweep", "some.yaml", option)
    assert first[:2] == second[:2]
    assert "4 pending" in second[1]
    assert "torch" in first[2]
    assert not second[2] & HEAVY
