"""Tables, pictures and page of made-up results."""

import html.parser
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from fl_lightning import ConfigurationError
from fl_lightning.experiments import report as report_module
from fl_lightning.experiments.command import report as report_command
from fl_lightning.experiments.figures import by_round, numeric_axes
from fl_lightning.experiments.plain_text import latex_cell
from fl_lightning.experiments.report import FILES, write_report
from fl_lightning.experiments.results import Results, read_results, write_index
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.sweep import Cell, Run, Sweep
from fl_lightning.experiments.tables import markdown, number, table

MACHINE = {"hardware": {"device": "cpu", "name": "<Fast> & small"}, "versions": {"torch": "2.x"}, "world_size": 2}


def finish(folder: RunFolder, acc: float, asr: float) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    history = [{"round": t, "acc": acc * t / 4, "asr": asr} for t in (1, 2, 3, 4)]
    record = {
        "state": "finished",
        "finished": True,
        "acc": acc,
        "asr": asr,
        "acc_last10": acc / 2,
        "asr_last10": asr,
        "acc_last10_rounds": [1, 2, 3, 4],
        "rounds": 4,
    }
    seconds = {"local_training": 1.5}
    (folder.path / "run.json").write_text(json.dumps({**record, **MACHINE, "seconds": seconds, "weights_sha256": "a" * 64}))
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))


def make(root: Path, tau: tuple[str, ...] = ("0.1", "0.2", "0.4")) -> Path:
    """A sweep with a rule without attack, an undefended one and three defended ones, two seeds each; what is not done is so."""
    cells = [Cell({"rule": "FedAvg", "tau": "-"}, [], {"acc": 0.5, "asr": 0.75}), Cell({"rule": "calm", "tau": "-"}, [])]
    cells += [Cell({"rule": r"Invariant_1 & <b> $\foo$", "tau": value}, []) for value in tau]
    sweep = Sweep("some", "Some & <all>", cells, [0, 1], {}, {"rule": "FedAvg", "tau": "-"}, {"rule": "calm", "tau": "-"})
    runs = []
    for index, cell in enumerate(cells):
        for seed in sweep.seeds:
            folder = RunFolder(root / "pool" / f"{index}{seed}")
            folder.path.mkdir(parents=True)
            folder.config.write_text(yaml.safe_dump({"seed_everything": seed}))
            runs.append(Run(cell, seed, {}, folder))
    finish(runs[0].folder, 0.5, 1.0)
    finish(runs[1].folder, 0.75, 0.5)
    finish(runs[2].folder, 1.0, 0.25)
    finish(runs[3].folder, 1.0, 0.25)
    finish(runs[4].folder, 1.0, 0.5)
    runs[5].folder.write_status(State.FAILED, message="error: <tau> is wrong")
    write_index(root / "sweeps" / "some", sweep, runs)
    return root / "sweeps" / "some"


def results(root: Path) -> Results:
    return read_results(make(root), root / "pool")


def test_cells_have_means_deviations_and_differences(tmp_path):
    cells = results(tmp_path).cells
    fedavg = cells.iloc[0]
    assert (fedavg["acc"], fedavg["asr"], fedavg["n"]) == (0.625, 0.75, 2)
    assert fedavg["acc_sd"] == pytest.approx(0.25 / math.sqrt(2))  # the sample's, so of n - 1
    assert fedavg["acc_se"] == pytest.approx(0.125)
    assert (fedavg["acc_paper"], fedavg["acc_difference"], fedavg["asr_difference"]) == (0.5, 0.125, 0.0)
    assert fedavg["acc_last10"] == 0.3125
    one = cells.iloc[2]
    assert (one["asr"], one["n"], one["planned"]) == (0.5, 1, 2)
    assert math.isnan(one["asr_sd"])
    assert math.isnan(one["asr_paper"])
    assert (one["asr_reduction"], one["excess_reduction"]) == (0.25, 0.5)  # .25 of the .5 beyond the attack-free .25
    assert math.isnan(cells.iloc[3]["acc"])


def test_reductions_are_from_the_cell_with_the_same_other_labels(tmp_path):
    cells = [Cell({"task": task, "rule": rule}, []) for task in ("s", "t") for rule in ("FedAvg", "calm", "Krum")]
    sweep = Sweep("two", "Two", cells, [0], {}, {"rule": "FedAvg"}, {"rule": "calm"})
    runs = [Run(cell, 0, {}, RunFolder(tmp_path / "pool" / str(i))) for i, cell in enumerate(cells)]
    for run, asr in zip(runs, (1.0, 0.5, 0.75, 0.25, 0.25, 0.0), strict=True):
        finish(run.folder, 1.0, asr)
    write_index(tmp_path / "sweeps" / "two", sweep, runs)
    found = read_results(tmp_path / "sweeps" / "two", tmp_path / "pool").cells
    assert found["asr_reduction"].tolist() == [0.0, 0.5, 0.25, 0.0, 0.0, 0.25]
    assert found["excess_reduction"].tolist()[:3] == [0.0, 1.0, 0.5]
    assert found["excess_reduction"].isna().tolist() == [False] * 3 + [True] * 3  # there is no excess


def test_a_sweeps_folder_is_of_one_set_of_settings(tmp_path):
    sweep = Sweep("one", "One", [Cell({"rule": "a"}, [])], [0])
    runs = [Run(sweep.cells[0], 0, {}, RunFolder(tmp_path / "pool" / "0"))]
    write_index(tmp_path / "one", sweep, runs, ["--trainer.max_epochs", "5"])
    write_index(tmp_path / "one", sweep, runs, ["--trainer.max_epochs", "5"])
    with pytest.raises(ConfigurationError, match=r"with --trainer\.max_epochs 5, not with none; give the other a --name"):
        write_index(tmp_path / "one", sweep, runs)


def test_the_table_says_what_is_not_there(tmp_path):
    shown = table(results(tmp_path))
    assert shown["ASR by seed"].tolist() == [
        "1.000 / .500",
        ".250 / .250",
        ".500 / failed",
        "pending / pending",
        "pending / pending",
    ]
    assert shown["n"].tolist() == ["2", "2", "1 of 2", "0 of 2", "0 of 2"]
    assert shown["Acc"].tolist() == [".625 (.177)", "1.000 (.000)", "1.000", "-", "-"]
    assert shown["paper Acc / ASR"].tolist() == [".500 / .750", "-", "-", "-", "-"]
    assert shown["difference"].tolist()[0] == "+.125 / +.000"
    assert shown["of the excess"].tolist()[2] == "50.0%"


def test_means_say_of_how_many_evaluations_they_are_and_of_which_rounds(tmp_path):
    found = results(tmp_path)
    assert table(found)["mean of"].tolist() == ["4, rounds 1 to 4"] * 3 + ["-"] * 2
    assert found.cells["last10_evaluations"].tolist()[:3] == [4, 4, 4]
    run = found.folders[0]
    (run.path / "run.json").write_text(json.dumps({**run.record, "acc_last10_rounds": [2, 3, 9]}))
    shown = table(read_results(tmp_path / "sweeps" / "some", tmp_path / "pool"))
    assert shown["mean of"].tolist()[0] == "3, rounds 1 to 9"


@pytest.mark.parametrize(("evaluations", "mean"), [(2, "-"), (3, ".625")])
@pytest.mark.parametrize("kept", ["run.json", "metrics.jsonl"])
def test_records_of_earlier_versions_are_read_and_means_of_too_few_are_not(tmp_path, evaluations, mean, kept):
    """They held the evaluations, and a mean of however few."""
    folder = make(tmp_path)
    history = [{"round": t, "acc": 0.5, "asr": 0.5} for t in range(1, evaluations + 1)]
    for name, acc in (("00", 0.5), ("01", 0.75)):
        run = RunFolder(tmp_path / "pool" / name)
        record = {"finished": True, "acc": acc, "asr": acc, "acc_last10": acc, "asr_last10": acc, "rounds": evaluations}
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
        if kept == "run.json":
            record["history"] = history
            (run.path / "metrics.jsonl").unlink()
        (run.path / "run.json").write_text(json.dumps(record))
    found = table(read_results(folder, tmp_path / "pool"))
    assert found["Acc"].tolist()[0] == ".625 (.177)"
    assert found["Acc, mean"].tolist()[0] == mean
    assert found["mean of"].tolist()[0] == ("-" if mean == "-" else "3, rounds 1 to 3")


def test_a_run_that_stopped_is_no_result_and_says_why(tmp_path):
    folder = make(tmp_path)
    run = RunFolder(tmp_path / "pool" / "00")
    stopped = {"state": "stopped", "finished": False, "reason": "max_time was over after round 3", "rounds": 3, "acc": 0.5}
    (run.path / "run.json").write_text(json.dumps(stopped))
    found = read_results(folder, tmp_path / "pool")
    assert table(found)["ASR by seed"].tolist()[0] == "stopped / .500"
    assert table(found)["n"].tolist()[0] == "1 of 2"
    row = found.runs.iloc[0]
    assert (row["state"], row["rounds"], row["message"]) == ("stopped", 3, "max_time was over after round 3")
    write_report(found, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "1 stopped" in " ".join(Page(text).words)
    assert "max_time was over after round 3" in text


def test_rounds_of_a_run_under_way_are_those_of_its_evaluations(tmp_path):
    folder = make(tmp_path)
    run = RunFolder(tmp_path / "pool" / "00")
    (run.path / "run.json").write_text(json.dumps({"state": "running", "finished": False, "rounds": 0}))
    assert read_results(folder, tmp_path / "pool").runs["rounds"].tolist()[0] == 4  # as metrics.jsonl has them


def test_columns_that_a_sweep_has_nothing_for_are_left_out(tmp_path):
    plain = results(tmp_path)
    plain = replace(plain, paper=[{} for _ in plain.paper], baseline={}, attack_free={})
    assert not {"paper Acc / ASR", "difference", "ASR reduction", "of the excess"} & set(table(plain).columns)


@pytest.mark.parametrize(
    ("value", "sign", "text"),
    [(0.6794, False, ".679"), (1, False, "1.000"), (0, False, ".000"), (-0.0001, True, "+.000"), (-0.25, True, "-.250")],
)
def test_numbers_look_as_in_the_paper(value, sign, text):
    assert number(value, sign=sign) == text


def test_numbers_of_numpy_are_rounded_as_pythons():
    assert number(np.float64(0.8625)) == number(0.8625) == ".863"  # NumPy alone makes .862 of it


def test_markdown_and_latex_escape_what_they_would_read_as_their_own():
    frame = pd.DataFrame({"rule": ["a|b_c & 50%"], "n": ["3"]})
    assert markdown(frame).splitlines()[2] == r"| a\|b_c & 50% | 3 |"
    assert latex_cell("a|b_c & 50%") == r"a\textbar{}b\_c \& 50\%"
    assert latex_cell("\u03c4 \u2265 .6 \u00b1 .1") == r"$\tau$ $\geq$ .6 $\pm$ .1"


def test_curves_are_of_the_rounds_in_which_any_run_was_evaluated(tmp_path):
    finish(RunFolder(tmp_path / "a"), 1.0, 0.5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text('{"round": 2, "acc": 0.25}\n{"round": 6, "acc": null}\n')
    rounds, values = by_round([RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"), RunFolder(tmp_path / "none")], "acc")
    assert rounds.tolist() == [1, 2, 3, 4]
    assert values[1, :2].tolist() == [0.5, 0.25]
    assert [math.isnan(value) for value in values[0]] == [False, True, True]


def test_an_axis_of_numbers_gets_a_picture(tmp_path):
    found = results(tmp_path)
    assert numeric_axes(found) == []  # tau is "-" for two rules
    numbers = replace(found, runs=found.runs.assign(tau=found.runs["tau"].replace("-", "0.0")))
    assert numeric_axes(numbers) == ["tau"]
    written = write_report(numbers, tmp_path / "out")
    assert tmp_path / "out" / "sensitivity" / "tau.svg" in written


class Page(html.parser.HTMLParser):
    """Text and addresses of a page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Results, the folder of their report, and its files."""
    root = tmp_path_factory.mktemp("sweep")
    found = results(root)
    return found, root / "out", write_report(found, root / "out")


def test_the_page_is_whole_and_needs_no_network(report):
    _, out, written = report
    assert all(path.exists() for path in written)
    text = (out / "report.html").read_text()
    page = Page(text)
    shown = " ".join(page.words)
    for expected in (
        "Some & <all>",
        "Invariant_1 & <b>",
        "1.000 / .500",
        "error: <tau> is wrong",
        "<Fast> & small",
        "5 finished",
    ):
        assert expected in shown, expected
    assert "seed_everything: 0" in shown
    assert "no evaluation yet" in text
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "url(http" not in text
    assert text.count("<script") == text.count("<script>") == 1  # which sorts tables; none is fetched
    assert not re.search("fetch|XMLHttpRequest|import|eval|src=", text.partition("<script>")[2])


def test_the_same_results_give_the_same_bytes(tmp_path, report):
    found, _, first = report
    second = write_report(found, tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len(first) == len(FILES) + 5 + 2 * 4  # a curve per cell, four figures as PDF and SVG


def test_a_part_of_a_sweep_is_compared_as_in_the_whole(tmp_path):
    whole = results(tmp_path)
    part = whole.only([("tau", "0.4"), ("tau", "0.1")])
    assert part.cells["tau"].tolist() == ["0.1", "0.4"]
    pd.testing.assert_frame_equal(part.cells, whole.cells.iloc[[2, 4]].reset_index(drop=True))
    assert part.cells["asr_reduction"].tolist()[:1] == [0.25]  # from FedAvg, which is not shown
    assert [folder.path.name for folder in part.group(1)] == part.runs["id"].tolist()[2:] == ["40", "41"]
    assert whole.only([]) is whole
    for only, message in (
        ([("alpha", "1")], "--only alpha: there is no such axis"),
        ([("tau", "0.3")], "--only tau=0.3: there is no such run; did you mean"),
        ([("seed", "0")], "--only seed: there is no such axis"),
        ([("rule", "calm"), ("tau", "0.1")], "no run has all of these labels"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            whole.only(only)


def test_of_many_cells_single_ones_are_drawn_where_they_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report_module, "MOST_CELLS", 2)
    folder = make(tmp_path)
    (folder / "curves").mkdir(parents=True)
    (folder / "pictures.txt").write_text("curves/000.svg\n")
    (folder / "curves" / "000.svg").write_text("of a report before")
    report_command([str(folder)])
    said = capsys.readouterr().out
    assert "Curves and bars are drawn of 2 cells at most; these are 5: choose with --only" in " ".join(said.split())
    page = " ".join((folder / "report.html").read_text().split())
    assert "are drawn of 2 cells at most, and here are 5" in page
    assert "By round" not in page
    assert page.count("seed_everything: 0") == 5
    assert not [*(folder / "curves").iterdir()]
    with pytest.raises(ConfigurationError, match="--only needs --output"):
        report_command([str(folder), "--only", "rule=calm"])
    report_command([str(folder), "--only", "rule=calm", "--only", "rule=FedAvg", "--output", str(tmp_path / "part")])
    assert sorted(path.name for path in (tmp_path / "part" / "curves").iterdir()) == ["000.svg", "001.svg"]
    assert "cells at most" not in (tmp_path / "part" / "report.html").read_text()


def test_csv_files_can_be_read_back(report):
    _, out, _ = report
    assert pd.read_csv(out / "cells.csv")["acc"].tolist()[:3] == [0.625, 1.0, 1.0]
    assert pd.read_csv(out / "runs.csv")["state"].value_counts().to_dict() == {
        "finished": 5,
        "pending": 4,
        "failed": 1,
    }
    assert pd.read_csv(out / "times.csv")["local_training_seconds"].dropna().tolist() == [1.5] * 5


def test_a_folder_without_a_sweep(tmp_path):
    with pytest.raises(ConfigurationError, match=r"is not the folder of a sweep: there is no sweep\.json in it"):
        read_results(tmp_path, tmp_path)
