"""The tables of measured results are what their CSV files say."""

import json

import pytest
import yaml
from results_pages import RESULTS, script

from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.sweep import read_sweep

PAGE = script("tables_page")


@pytest.mark.parametrize("page", PAGE["PAGES"])
def test_every_table_is_what_its_file_says(page: str) -> None:
    text = (RESULTS / page).read_text()
    for file, blocks in PAGE["PAGES"][page].items():
        assert PAGE["blocks"].names(text, file) == list(blocks)
    assert PAGE["written"](page) == text, "write it anew: python docs/results/tables_page.py"


def test_a_row_of_the_papers_table_has_its_values_and_what_lies_between() -> None:
    rows = {row["row"]: row for row in PAGE["rows_of"]("phishing", "1")}
    assert set(rows) == set(PAGE["published"]("phishing", "1"))
    line = next(line for line in PAGE["phishing"]("1", "rule").splitlines() if line.startswith("| Trimmed-Mean"))
    assert "| .999 / .999 | +.000 / -.960 | +.954 | 96.2% |" in line


def test_packed_tables_of_phishing_are_whole_and_agree_where_they_share_a_cell() -> None:
    as_shipped, cells = {"1": "Invariant", "4": "Invariant", "5": "trigger", "8": "0.20"}, []
    for table in ("1", "4", "5", "6", "7", "8", "10"):
        rows = {row["row"]: row for row in PAGE["rows_of"]("phishing", table)}
        assert list(rows) == list(PAGE["published"]("phishing", table))
        assert all(row["n"] == 3 for row in rows.values())
        cells += [rows[as_shipped[table]]] if table in as_shipped else []
    figure = PAGE["varied"]()
    cells += [figure[axis][value] for axis, value in (("tau", "0.6"), ("alpha", "0.25"), ("clients", "20"))]
    assert {axis: len(values) for axis, values in figure.items()} == {"tau": 9, "alpha": 10, "clients": 6}
    assert len(cells) == 7
    assert len({tuple(cell[f"asr_{seed}"] for seed in range(3)) for cell in cells}) == 1


def test_a_file_without_a_block_of_a_page_changes_nothing() -> None:
    text = "<!-- from a.csv: one -->\nold\n<!-- end --> <!-- from b.csv: one -->\nkept\n<!-- end -->"
    told = PAGE["blocks"].written(text, "a.csv", {"one": lambda: "new"})
    assert told == "<!-- from a.csv: one -->\n\nnew\n\n<!-- end --> <!-- from b.csv: one -->\nkept\n<!-- end -->"


def test_what_is_shipped_for_a_cpu_is_what_was_best_without_an_attack() -> None:
    config = yaml.safe_load((RESULTS.parents[1] / "configs" / "cifar10" / "cpu.yaml").read_text())["model"]
    rate = str(config["client"]["init_args"]["optimizer"]["init_args"]["lr"])
    curves = PAGE["cpu_curves"]()
    means = curves[curves["round"].between(25, 40)].groupby(["rate", "epochs"])["acc"].mean()
    assert means.idxmax() == (rate, str(config["local"]["epochs"]))
    assert tuple(curves.iloc[-1][["rate", "epochs"]]) == means.idxmax()


def test_packed_runs_for_a_cpu_are_cells_of_their_grid_and_attacked_by_nobody() -> None:
    root = root_of(RESULTS / "runs" / "cifar10_cpu.jsonl.gz")
    found = read_results(root / "sweeps" / "cifar10-choose-cpu", root / "pool")
    grid = [cell.labels for cell in read_sweep(PAGE["SWEEPS"] / "cifar10" / "choose_cpu.yaml").cells]
    assert [{axis: row[axis] for axis in found.axes} for row in found.runs.to_dict("records")] == grid
    records = [run.record for run in found.folders if run.finished]
    assert len(records) == 5
    assert all(record["config"]["model"]["attacks"] == [] for record in records)
    networks = {row["network"] for row in found.runs[found.runs["state"] == "finished"].to_dict("records")}
    best = found.runs.loc[found.runs["acc"].idxmax(), "network"]
    assert len(networks) == 3
    assert best == "CNN 16-32-64"


def test_the_curve_of_what_is_shipped_for_a_cpu_is_that_of_its_packed_run() -> None:
    root = root_of(RESULTS / "runs" / "cifar10_cpu.jsonl.gz")
    found = read_results(root / "sweeps" / "cifar10-table1-cpu", root / "pool")
    (run,) = (run for run in found.folders if run.finished)
    assert (run.record["rounds"], run.record["config"]["model"]["cohort"]["malicious_fraction"]) == (300, 0)
    lines = [json.loads(line) for line in (root / "pool" / run.path.name / "metrics.jsonl").read_text().splitlines()]
    curves = PAGE["cpu_curves"]()
    rate, epochs = curves.iloc[-1][["rate", "epochs"]]
    shown = curves[(curves["rate"] == rate) & (curves["epochs"] == epochs)]
    assert [line["round"] for line in lines] == shown["round"].tolist()
    assert [line["acc"] for line in lines] == pytest.approx(shown["acc"].tolist(), abs=1e-4)
    assert [line["asr"] for line in lines] == pytest.approx(shown["asr"].tolist(), abs=1e-4)
