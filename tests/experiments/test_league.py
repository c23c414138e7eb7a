"""Rules against attacks, on runs that nobody ran."""

import json
import math
import re
from pathlib import Path

import pytest
from made_sweeps import made
from test_results import Page

from fl_lightning.callbacks.lifespan import lifespan
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.league import acc_lost, attacked, boards
from fl_lightning.experiments.report import write_report
from fl_lightning.experiments.results import Results, read_results
from fl_lightning.experiments.run_folder import RunFolder, State

FREE = {"attack": "none"}


def again(root: Path) -> Results:
    return read_results(root / "sweeps" / "made", root / "pool")


def tell(root: Path, run: str, **found: object) -> None:
    """Add to a run's record."""
    folder = RunFolder(root / "pool" / run)
    (folder.path / "run.json").write_text(json.dumps({**folder.record, **found}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two rules, no attack and two attacks in the first two of four rounds, two seeds; the second rule judges clients."""
    calm = [(0.8, 0.0), (0.9, 0.0), (0.9, 0.0), (1.0, 0.0)]
    opened = [(0.7, 0.6), (0.6, 0.9), (0.9, 0.8), (0.9, 0.3)]
    kept = [(0.8, 0.1), (0.85, 0.2), (0.9, 0.1), (1.0, 0.0)]
    cells = {
        ("A", "none"): [calm, calm],
        ("A", "x"): [opened, kept],
        ("A", "y"): [opened, opened],
        ("B", "none"): [calm, calm],
        ("B", "x"): [kept, kept],
        ("B", "y"): [kept, State.PENDING],
    }
    made(tmp_path, cells, attack_free=FREE)
    for place, curves in enumerate(cells.values()):
        for seed, curve in enumerate(curves):
            if not isinstance(curve, State):
                attacked_rounds = () if place % 3 == 0 else (0, 1)
                entries = [{"round": t, "acc": acc, "asr": asr} for t, (acc, asr) in enumerate(curve, 1)]
                found = lifespan(entries, *attacked_rounds) if attacked_rounds else None
                tell(tmp_path, f"{place}-{seed}", lifespan={**NOBODY} if found is None else found.as_json())
    tell(tmp_path, "4-0", detection={"tpr": 1.0, "fpr": 0.0, "auroc": 0.75})
    tell(tmp_path, "4-1", detection={"tpr": 1.0, "fpr": 0.0, "auroc": 1.0})
    tell(tmp_path, "5-0", detection={"tpr": None, "fpr": None, "auroc": None})
    return tmp_path


NOBODY = {"state": "no attack", "asr_end": None, "retention": None, "mean": None, "attack_over": None} | dict.fromkeys(
    ("first_fall", "last_above", "half", "clean")
)


def test_asr_and_acc_are_those_right_after_the_last_attack(root):
    results = again(root)
    assert attacked(results, Final.LAST).tolist()[:10] == [0, 0, 0.9, 0.2, 0.9, 0.9, 0, 0, 0.2, 0.2]
    lost = acc_lost(results, Final.LAST)
    assert lost[:6] == pytest.approx([0, 0, 0.3, 0.05, 0.3, 0.3])  # after two rounds, not after four
    assert math.isnan(lost[11])
    part = results.only([("rule", "A"), ("attack", "x")])  # without the cell that it is compared with
    assert acc_lost(part, Final.LAST) == lost[2:4]


def test_boards_by_hand(root):
    asr, lost, auroc, life = boards(again(root), Final.LAST)
    assert [board.measure.name for board in (asr, lost, auroc, life)] == ["asr", "acc_lost", "auroc", "lifespan"]
    assert [[entry.text for entry in row] for row in asr.entries] == [[".000", ".550", ".900"], [".000", ".200", ".200"]]
    assert asr.entries[0][1].by_seed == ".900 / .200"
    assert asr.entries[1][2].by_seed == ".200 / -"
    assert [entry.text for entry in lost.entries[0]] == [".000", ".175", ".300"]
    assert [entry.text for entry in auroc.entries[1]] == ["-", ".875", "-"]
    assert [[entry.text for entry in row] for row in life.entries] == [["-", "1", "1"], ["-", "0", "0"]]
    assert life.entries[0][1].by_seed == "1 / 0"
    assert [(label, mean.text, worst.text) for label, _, mean, worst in asr.rows] == [
        ("A", ".483", ".900"),
        ("B", ".133", ".200"),
    ]
    assert [worst.text for _, _, _, worst in auroc.rows] == ["-", ".875"]
    assert asr.shades(1.0).endswith("#ffffff")
    assert asr.shades(0.0).endswith("#000000")
    assert asr.entries[1][2].cell == 5


def test_a_backdoor_that_outlived_the_run_says_so(root):
    found = lifespan([{"round": 2, "asr": 0.9}, {"round": 4, "asr": 0.8}], 0, 1)
    tell(root, "1-0", lifespan=found.as_json())
    tell(root, "1-1", lifespan=found.as_json())
    *_, life = boards(again(root), Final.LAST)
    assert life.entries[0][1].text == ">= 2"
    assert life.most == 2


def test_the_page_has_them_with_links_to_runs_and_heads_that_sort(root, tmp_path):
    write_report(again(root), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert {"Rules against attacks", "Acc lost", "AUROC of detection", "Lifespan"} <= set(page.words)
    for cell in range(6):
        assert text.count(f'<details id="cell-{cell}">') == 1
        assert text.count(f'href="#cell-{cell}"') == 4
    assert text.count('<table class="sortable') == 5
    assert len(re.findall(r"<script>", text)) == 1
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+|https?://purl\S+|http://creativecommons\S+", "", text)
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("*.svg")}
    assert {f"{name}_by_rule_and_attack-league" for name in ("asr", "acc_lost", "auroc", "lifespan")} <= drawn
    assert "detection_auroc" in (tmp_path / "out" / "runs.csv").read_text()


def test_a_sweep_with_asr_alone_has_none(tmp_path):
    cells = {(rule, attack): [[(0.5, 0.5)] * 4] for rule in "AB" for attack in "xy"}
    results = made(tmp_path, cells)
    assert not list(boards(results, Final.LAST))
    write_report(results, tmp_path / "out")
    assert "Rules against attacks" not in (tmp_path / "out" / "report.html").read_text()
