"""Lifespans in a sweep's report, and the attack's window in its curves."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_results import Page, make

from fl_lightning import CohortSampler
from fl_lightning.callbacks.lifespan import lifespan
from fl_lightning.configuration import resolve
from fl_lightning.experiments.figures import curves
from fl_lightning.experiments.lifespans import lifespan_table, window
from fl_lightning.experiments.report import write_report
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.settings import arguments
from fl_lightning.experiments.sweep import read_sweep

COHORT = {"malicious_fraction": 0.2, "start_round": 1, "end_round": 2, "rounds": []}


def live(run: RunFolder, asr: dict[int, float], **cohort: Any) -> None:
    """Give a finished run an attack in round 1, or as `cohort` has it, and an ASR by rounds done."""
    found = lifespan([{"round": t, "asr": value} for t, value in asr.items()], 1, 1, horizons=[2])
    config = {"model": {"attacks": ["PGD"], "cohort": {**COHORT, **cohort}}}
    (run.path / "run.json").write_text(json.dumps({**run.record, "lifespan": found.as_json(), "config": config}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """The sweep of made-up results, of which three finished runs have lifespans."""
    folder = make(tmp_path)
    live(RunFolder(tmp_path / "pool" / "00"), {2: 0.9, 3: 0.8, 4: 0.3})
    live(RunFolder(tmp_path / "pool" / "01"), {2: 0.7, 4: 0.6})
    live(RunFolder(tmp_path / "pool" / "20"), {2: 0.2, 4: 0.1})
    return folder


def test_lifespans_stand_side_by_side_by_seed(sweep, tmp_path):
    shown = lifespan_table(read_results(sweep, tmp_path / "pool"))
    assert shown is not None
    assert shown["first fall"].tolist() == ["1 / >= 2", "- / -", "not injected / -", "- / -", "- / -"]
    assert shown["last above"].tolist()[0] == "1 / >= 2"
    assert shown["ASR at the end"].tolist()[:3] == [".800", "-", ".200"]
    assert shown["half"].tolist()[2] == "0 to 1 / -"
    assert shown["as without attack"].tolist()[0] == "- / -"  # nobody knows that
    assert shown["left after 2"].tolist()[:3] == [".595", "-", ".500"]  # (.3 / .9 + .6 / .7) / 2


def test_runs_have_columns(sweep, tmp_path):
    runs = read_results(sweep, tmp_path / "pool").runs
    assert runs["lifespan_first_fall"].tolist()[:2] == [1, 2]
    assert runs["lifespan_first_fall_most"].isna().tolist()[:2] == [False, True]
    assert runs["lifespan"].tolist()[4] == "not injected"


def test_the_report_has_them_in_every_format(sweep, tmp_path):
    write_report(read_results(sweep, tmp_path / "pool"), tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert {"Lifespan of the backdoor", "1 / >= 2"} <= set(page.words)
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "## Lifespan of the backdoor, by seed" in markdown
    assert "1 / >= 2" in markdown
    assert (tmp_path / "out" / "table.tex").read_text().count(r"\begin{table") == 2


def test_a_sweep_without_them_says_nothing(tmp_path):
    results = read_results(make(tmp_path), tmp_path / "pool")
    assert lifespan_table(results) is None
    assert "lifespan" not in results.runs
    write_report(results, tmp_path / "out")
    assert "Lifespan" not in (tmp_path / "out" / "report.html").read_text()
    assert "Lifespan" not in (tmp_path / "out" / "table.md").read_text()


def test_the_shipped_sweep_adds_attacks_to_the_pixel_trigger():
    sweep = read_sweep(Path(__file__).parents[2] / "configs" / "sweeps" / "digits" / "lifespan.yaml")
    found = {}
    for cell in sweep.cells:
        config = resolve(["fit", *arguments(cell.layers)])
        found[cell.name] = [attack["class_path"].rpartition(".")[2] for attack in config["model"]["attacks"]]
        assert list(CohortSampler(**config["model"]["cohort"]).attacked_rounds(120)) == list(range(20, 40))
        assert config["trainer"]["callbacks"][0]["class_path"].endswith("BackdoorLifespan")
    further = ("Neurotoxin", "ConstrainAndScale")
    assert found == {"PixelTrigger": ["PixelTrigger"], **{name: ["PixelTrigger", name] for name in further}}


@pytest.mark.parametrize(
    ("cohort", "expected"),
    [
        ({"start_round": 3, "end_round": 5}, [(3, 5)]),
        ({"start_round": 3, "end_round": 50}, [(3, 9)]),  # as far as the run has come
        ({"start_round": 3, "end_round": None}, [(3, 9)]),
        ({"start_round": 3}, [(3, 9)]),  # records of before have no end
        ({"start_round": 0, "end_round": 4}, [(0, 4)]),
        ({"start_round": 0, "end_round": None}, []),
        ({"start_round": 9, "end_round": 12}, []),
        ({"malicious_fraction": 0.0, "start_round": 3}, []),
        ({"rounds": [7, 2, 2, 30]}, [(2, 3), (7, 8)]),
        ({}, []),
    ],
)
def test_where_an_attack_begins_and_ends(cohort, expected):
    assert window({"model": {"attacks": ["PGD"], "cohort": cohort}}, 9) == expected
    assert window({"model": {"attacks": [], "cohort": cohort}}, 9) == []


def test_the_attack_is_shaded_in_the_curves(sweep, tmp_path):
    pool = tmp_path / "pool"
    (shaded,) = curves([RunFolder(pool / "00")], "").axes[0].patches
    assert (shaded.get_x(), shaded.get_width()) == (1, 1)  # type: ignore[attr-defined]
    assert not curves([RunFolder(pool / "10")], "").axes[0].patches  # of which nothing is known
    write_report(read_results(sweep, pool), tmp_path / "out")
    assert "Brown: the attack" in (tmp_path / "out" / "report.html").read_text()
