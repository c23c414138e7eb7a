"""The page of a sweep's file has every key that the parser knows, and its examples are valid."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fl_lightning import ConfigurationError
from fl_lightning.experiments.sweep import KEYS, MEASURES, PREFIX_KEYS, SETTING_KEYS, parse_sweep
from fl_lightning.experiments.worst_case_plan import KEYS as PLAN_KEYS
from fl_lightning.experiments.worst_case_plan import MAX_LOSS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "sweep_file.md").read_text()
ROWS = {key: cells.split(" | ") for key, cells in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", PAGE, flags=re.MULTILINE)}
"""Key -> type, default, meaning, example."""

AXES: dict[str, Any] = {
    "rule": {"FedAvg": None, "no attack": {"model": {"cohort": {"malicious_fraction": 0}}}},
    "alpha": {"setting": "model.aggregator.init_args.alpha", "values": [0.1, 0.25]},
}

INNER = {"paper": MEASURES, "worst_case": PLAN_KEYS, "prefix": PREFIX_KEYS}
"""Keys of entries that are mappings."""


def test_there_is_a_row_for_every_key_and_no_other():
    of_axes = ["axes.NAME.LABEL", *(f"axes.NAME.{key}" for key in SETTING_KEYS), "axes.seed"]
    inner = [f"{key}.{name}" for key, names in INNER.items() for name in names]
    assert sorted(ROWS) == sorted([*KEYS, *of_axes, *inner])
    assert all(len(cells) == 4 for cells in ROWS.values())


@pytest.mark.parametrize("key", ROWS)
def test_examples_are_valid(key):
    example = yaml.safe_load(ROWS[key][3].strip("`"))
    (name,) = example
    assert name == key.split(".")[0]
    sweep = parse_sweep({"axes": {**AXES, "seed": [0, 1]}, **example}, Path("some.yaml"))
    assert sweep.cells


def test_defaults_are_those_of_the_page():
    sweep = parse_sweep({"axes": AXES}, Path("some.yaml"))
    assert ROWS["axes.seed"][1] == f"`{sweep.seeds}`"
    assert (ROWS["name"][1], sweep.name) == ("the file's name without extension", "some")
    assert (ROWS["title"][1], sweep.title) == ("the name", "some")
    assert (ROWS["center"][1], len(sweep.cells)) == ("all combinations", 4)
    assert (ROWS["base"][1], sweep.cells[0].layers[:1]) == (
        "nothing",
        [{"model": {"aggregator": {"init_args": {"alpha": 0.1}}}}],
    )
    assert [ROWS[key][1] for key in ("exclude", "paper")] == ["`[]`"] * 2
    assert (ROWS["priority"][1], sweep.priority) == ("`[]`: the file's order", [])
    assert not any(cell.paper for cell in sweep.cells)
    assert (sweep.baseline, sweep.attack_free, sweep.worst_case, sweep.prefix) == ({}, {}, None, None)
    assert ROWS["worst_case.max_loss"][1] == f"`{MAX_LOSS}`"
    with pytest.raises(ConfigurationError, match="a sweep needs `axes`"):
        parse_sweep({}, Path("some.yaml"))
