"""What `report` leaves for a paper, and where its page shows it."""

import re

import pytest
from made_sweeps import made

from fl_lightning.cli import main
from fl_lightning.experiments.run_folder import State


@pytest.fixture
def sweep(tmp_path):
    rising = [(t / 20, 1 - t / 20) for t in range(1, 13)]
    flat = [(0.5, 0.5)] * 12
    cells = {(rule, attack): [flat, rising] for rule in ("A", "B") for attack in ("x", "y")}
    made(tmp_path / "runs", {**cells, ("B", "y"): [State.PENDING] * 2})
    return tmp_path / "runs" / "sweeps" / "made"


def test_files_for_a_paper_and_their_places_on_the_page(sweep, tmp_path, capsys):
    main(["report", str(sweep), "--measure", "mean", "--output", str(tmp_path / "out")])
    out = tmp_path / "out"
    assert (
        f"For a paper: {out / 'table.tex'}, {out / 'figures.tex'} and 6 figures in {out / 'figures'}" in capsys.readouterr().out
    )
    overlays = ["acc_and_asr_by_round-x", "acc_and_asr_by_round-y"]
    others = ["acc_and_asr_by_rule-x", "acc_and_asr_by_rule-y", "acc_by_rule_and_attack", "asr_by_rule_and_attack"]
    names = [*overlays, *others]
    assert sorted(path.name for path in (out / "figures").iterdir()) == sorted(
        f"{name}.{ending}" for name in names for ending in ("pdf", "svg")
    )
    assert all((out / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF-") for name in names)
    included = re.findall(r"\\includegraphics\[.*?\]\{(.*?)\}", (out / "figures.tex").read_text())
    assert included == [f"figures/{name}.pdf" for name in names]
    assert "mean of the last 10 evaluations (rounds 3 to 12)" in (out / "table.tex").read_text()
    assert "mean of the last 10 evaluations (rounds 3 to 12)" in (out / "figures.tex").read_text()

    page = (out / "report.html").read_text()
    place = {name: page.index(f"<code>{name}</code>") for name in names}
    table = page.index("<h2>Results</h2>")
    assert place[overlays[0]] < page.index("<summary>1 more: attack y</summary>") < place[overlays[1]] < table
    assert [name for name in names if place[name] > table] == others
    for name in names:
        assert page.count((out / "figures" / f"{name}.svg").read_text()) == 1


def test_pictures_of_labels_that_are_gone_are_removed_and_nothing_else(sweep, tmp_path):
    output = tmp_path / "out"
    report = ["report", str(sweep), "--output", str(output)]
    main(report)
    before = {path.relative_to(output) for path in output.rglob("*.svg")}
    own = output / "figures" / "drawn_by_hand.svg"
    own.write_text("<svg/>")
    former = output / "figures" / "rule_of_old.svg"
    former.write_text("<svg/>")
    listed = output / "pictures.txt"
    listed.write_text(f"{listed.read_text()}figures/rule_of_old.svg\n../elsewhere.svg\n")
    outside = tmp_path / "elsewhere.svg"
    outside.write_text("<svg/>")
    main(report)
    assert not former.exists()
    assert own.exists()
    assert outside.exists()
    assert {path.relative_to(output) for path in output.rglob("*.svg")} == before | {own.relative_to(output)}
