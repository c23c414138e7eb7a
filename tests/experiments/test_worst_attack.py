"""Settings by their worst attack: against a slow search, on made-up runs."""

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fl_lightning import ConfigurationError
from fl_lightning.experiments import worst_case
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.report import write_report
from fl_lightning.experiments.results import read_results, write_index
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.experiments.sweep import Run, parse_sweep
from fl_lightning.experiments.tables import number
from fl_lightning.experiments.worst_report import maps

RULES = {"Krum": ["Krum 1", "Krum 2", "Krum 3"], "FLAME": ["FLAME"]}
LABELS = [label for labels in RULES.values() for label in labels]
ATTACKS = ["DBA", "PGD", "Neurotoxin"]
SEEDS = [0, 1, 2, 3, 4]
MACHINE = {"hardware": {"device": "cpu"}, "versions": {"torch": "2.x"}, "world_size": 1}


def drawn(seed: int) -> pd.DataFrame:
    """Runs with Acc and ASR at random."""
    draws = np.random.default_rng(seed)
    rows = [{"rule": label, "attack": attack, "seed": k} for label, attack, k in product(LABELS, ATTACKS, SEEDS)]
    return pd.DataFrame([{**row, "acc": draws.uniform(0.8, 1), "asr": draws.uniform()} for row in rows])


def by_hand(frame: pd.DataFrame, labels: list[str], seeds: list[int], max_loss: float) -> str:
    """The setting with the lowest highest mean ASR, among those that are accurate enough if there are any."""

    def mean(label: str, attack: str, measure: str) -> float:
        values = [
            row[measure]
            for _, row in frame.iterrows()
            if row["rule"] == label and row["attack"] == attack and row["seed"] in seeds
        ]
        return sum(values) / len(values)

    best = {attack: max(mean(label, attack, "acc") for label in LABELS) for attack in ATTACKS}
    good = [label for label in labels if all(mean(label, attack, "acc") >= best[attack] - max_loss for attack in ATTACKS)]
    return min(good or labels, key=lambda label: max(mean(label, attack, "asr") for attack in ATTACKS))


@pytest.mark.parametrize("max_loss", [0.02, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_setting_is_that_of_a_slow_search(seed, max_loss):
    frame = drawn(seed)
    found = worst_case(frame, settings={"Krum": RULES["Krum"]}, choose_on=[1, 3], max_loss=max_loss)
    assert dict(zip(found.chosen["rule"], found.chosen["setting"], strict=True)) == {
        rule: by_hand(frame, labels, [1, 3], max_loss) for rule, labels in RULES.items()
    }
    for row in found.reported.itertuples():
        cell = frame[(frame["rule"] == row.setting) & (frame["attack"] == row.attack) & frame["seed"].isin([0, 2, 4])]
        assert row.n == 3
        assert row.asr == pytest.approx(cell["asr"].mean())
        assert row.acc_sd == pytest.approx(cell["acc"].std(ddof=1))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_reported_changes_no_choice(seed):
    frame = drawn(seed)
    other = frame.copy()
    told = ~other["seed"].isin([0, 1])
    other.loc[told, "asr"] = 1 - other.loc[told, "asr"]
    settings = {"Krum": RULES["Krum"]}
    one, two = (worst_case(runs, settings=settings, choose_on=[0, 1]) for runs in (frame, other))
    columns = ["rule", "setting", "worst_attack", "within_loss"]
    assert one.chosen[columns].equals(two.chosen[columns])
    assert not one.reported.equals(two.reported)


def test_a_rule_that_learns_nothing_is_not_the_best():
    frame = drawn(0)
    frame.loc[frame["rule"] == "Krum 1", ["acc", "asr"]] = [0.1, 0.0]
    found = worst_case(frame, settings={"Krum": RULES["Krum"]}, choose_on=[0], max_loss=0.5)
    krum = found.chosen.set_index("rule").loc["Krum"]
    assert krum["setting"] != "Krum 1"
    assert krum["within_loss"]
    alone = worst_case(frame, choose_on=[0], max_loss=0.5).chosen.set_index("rule").loc["Krum 1"]
    assert not alone["within_loss"], "nothing else to take, and it is said"


def test_a_setting_with_a_missing_cell_is_not_chosen():
    frame = drawn(0)
    missing = (frame["rule"] == "Krum 2") & (frame["attack"] == "PGD") & (frame["seed"] == 0)
    frame.loc[frame["rule"] == "Krum 2", "asr"] = 0.0
    frame.loc[missing, ["acc", "asr"]] = math.nan  # failed, say
    found = worst_case(frame, settings={"Krum": RULES["Krum"]}, choose_on=[0], max_loss=1.0)
    assert found.chosen.set_index("rule").loc["Krum", "setting"] in ("Krum 1", "Krum 3")
    nothing = frame[frame["rule"] == "Krum 2"]
    found = worst_case(nothing, choose_on=[0], max_loss=1.0)
    assert found.chosen["setting"].tolist() == [""]
    assert found.reported.empty


def test_further_axes_are_problems_of_their_own(tmp_path):
    parts = [drawn(seed).assign(share=share) for seed, share in ((0, 0.1), (1, 0.2))]
    columns = ["rule", "attack", "share", "seed", "acc", "asr"]
    pd.concat(parts)[columns].to_csv(tmp_path / "runs.csv", index=False)
    found = worst_case(tmp_path, settings={"Krum": RULES["Krum"]}, choose_on=[0])
    for share, part in zip((0.1, 0.2), parts, strict=True):
        alone = worst_case(part[[c for c in columns if c != "share"]], settings={"Krum": RULES["Krum"]}, choose_on=[0])
        there = found.chosen[found.chosen["share"] == share].drop(columns="share").reset_index(drop=True)
        pd.testing.assert_frame_equal(there, alone.chosen)


def test_an_axis_behind_the_seed_is_refused_and_not_averaged_over():
    frame = pd.concat([drawn(0).assign(share=0.1), drawn(1).assign(share=0.2)], ignore_index=True)
    assert list(frame.columns).index("share") > list(frame.columns).index("seed")
    with pytest.raises(ConfigurationError, match=r"several runs have rule = .*, attack = .*, seed = 0; .* before seed"):
        worst_case(frame, choose_on=[0])
    with pytest.raises(ConfigurationError, match=r"several runs have rule = [^\n]*, attack = [^\n]*, seed = 0; leave one"):
        worst_case(pd.concat([drawn(0), drawn(0)]), choose_on=[0])  # rows of the same number


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "rules"}, "no column rules; did you mean rule"),
        ({"attack": "rule"}, "both the axis rule"),
        ({"choose_on": [7]}, "seed 7, of which there is no run; seeds: 0, 1, 2, 3, 4"),
        ({"choose_on": SEEDS}, "none is left to report"),
        ({"choose_on": []}, "must be a list of seeds"),
        ({"choose_on": [True]}, "must be a list of seeds"),
        ({"max_loss": -0.1}, r"max_loss must lie in \[0, 1\], got -0.1"),
        ({"max_loss": math.nan}, r"max_loss must lie in \[0, 1\], got nan"),
        ({"settings": {"Krum": ["Krum 9"]}}, "no label Krum 9; did you mean Krum 1"),
        ({"settings": {"Krum": ["Krum 1"], "Other": ["Krum 1"]}}, "Krum 1 is a setting of Krum and of Other"),
    ],
)
def test_what_cannot_be_chosen_is_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        worst_case(drawn(0), **{"choose_on": [0], **settings})


def test_no_report_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"there is no .*runs\.csv; `fl-lightning report` writes"):
        worst_case(tmp_path, choose_on=[0])


# ---- in a sweep's file -----------------------------------------------------------------------------------------------

AXES = {"rule": dict.fromkeys(LABELS), "attack": dict.fromkeys(ATTACKS), "seed": SEEDS}
PLAN: dict[str, Any] = {"rule": "rule", "attack": "attack", "choose_on": [0, 1], "settings": {"Krum": RULES["Krum"]}}


def test_a_sweeps_plan_comes_back_from_its_folder(tmp_path):
    sweep = parse_sweep({"axes": AXES, "worst_case": PLAN}, Path("some.yaml"))
    assert sweep.worst_case is not None
    assert sweep.worst_case.owner("Krum 2") == "Krum"
    assert sweep.worst_case.owner("FLAME") == "FLAME"
    runs = [
        Run(cell, seed, {}, RunFolder(tmp_path / "pool" / f"{i}-{seed}"))
        for i, cell in enumerate(sweep.cells)
        for seed in SEEDS
    ]
    write_index(tmp_path / "sweeps" / "some", sweep, runs)
    assert read_results(tmp_path / "sweeps" / "some", tmp_path / "pool").worst_case == sweep.worst_case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "rules"}, "worst_case.rule: there is no axis rules; did you mean rule"),
        ({"choose": [0]}, "worst_case: unknown key choose; did you mean choose_on"),
        ({"choose_on": [9]}, "seed 9, of which there is no run"),
        ({"choose_on": None}, "must be a list of seeds"),
        ({"settings": {"Krum": "Krum 1"}}, "must give a list of labels for each rule"),
        ({"settings": {"Krum": ["Krum 7"]}}, "rule has no label Krum 7"),
        ({"settings": []}, "must give a list of labels for each rule"),
    ],
)
def test_plans_that_do_not_fit_the_sweep_are_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        parse_sweep({"axes": AXES, "worst_case": {**PLAN, **change}}, Path("some.yaml"))


@pytest.mark.parametrize("plan", [[], "rule", {"rule": "rule"}])
def test_a_plan_is_a_mapping_with_all_that_is_needed(plan):
    with pytest.raises(ConfigurationError, match=r"worst_case(\.attack)? (must be a mapping|is missing)"):
        parse_sweep({"axes": AXES, "worst_case": plan}, Path("some.yaml"))


# ---- in a report -----------------------------------------------------------------------------------------------------


def made(root: Path, frame: pd.DataFrame) -> Path:
    """A finished sweep with this Acc and ASR; returns its folder."""
    sweep = parse_sweep({"axes": AXES, "worst_case": PLAN}, root / "some.yaml")
    measured = {(row.rule, row.attack, row.seed): (row.acc, row.asr) for row in frame.itertuples()}
    runs = []
    for i, cell in enumerate(sweep.cells):
        for seed in SEEDS:
            folder = RunFolder(root / "pool" / f"{i}-{seed}")
            folder.path.mkdir(parents=True)
            acc, asr = measured[cell.labels["rule"], cell.labels["attack"], seed]
            record = {"state": "finished", "finished": True, "acc": acc, "asr": asr, "rounds": 1, "weights_sha256": "a"}
            (folder.path / "run.json").write_text(json.dumps({**record, "seconds": {}, **MACHINE}))
            runs.append(Run(cell, seed, {}, folder))
    write_index(root / "sweeps" / "some", sweep, runs)
    return root / "sweeps" / "some"


def test_the_report_has_what_was_chosen(tmp_path):
    frame = drawn(0)
    folder = made(tmp_path, frame)
    write_report(read_results(folder, tmp_path / "pool"), folder)
    expected = worst_case(frame, settings=PLAN["settings"], choose_on=PLAN["choose_on"])
    assert worst_case(folder, settings=PLAN["settings"], choose_on=PLAN["choose_on"]).chosen.equals(expected.chosen)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "worst_case.csv"), expected.chosen)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "worst_case_cells.csv"), expected.reported)
    page = (folder / "report.html").read_text()
    assert "Under the worst attack" in page
    assert f">{expected.chosen['setting'][0]}<" in page
    assert "Chosen on seeds\n0, 1; Acc and ASR are of the other seeds." in page
    for measure in ("acc", "asr"):
        assert (folder / "figures" / f"{measure}_by_rule_and_attack-worst_case.pdf").read_bytes().startswith(b"%PDF")


def test_the_map_shows_the_reported_seeds(tmp_path):
    frame = drawn(1)
    folder = made(tmp_path, frame)
    expected = worst_case(frame, settings=PLAN["settings"], choose_on=PLAN["choose_on"]).reported
    shown = {measure: figure for _, measure, figure, _ in maps(read_results(folder, tmp_path / "pool"), Final.LAST)}
    texts = [text.get_text() for text in shown["asr"].axes[0].texts]
    assert texts == [number(value) for value in expected["asr"]]


def test_an_unfinished_sweep_says_so(tmp_path):
    folder = made(tmp_path, drawn(0))
    for record in (tmp_path / "pool").rglob("run.json"):
        record.unlink()
    write_report(read_results(folder, tmp_path / "pool"), folder)
    assert "none is finished" in (folder / "report.html").read_text()
