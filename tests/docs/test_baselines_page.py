"""The table of accuracies without attack is what the runs kept say, of runs in which nobody attacks."""

from pathlib import Path

from results_pages import RESULTS, script

from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.sweep import read_sweep

PAGE = script("baselines_page")
CONFIGS = RESULTS.parents[1] / "configs"


def test_the_table_is_what_runs_say() -> None:
    text = (RESULTS / "baselines.md").read_text()
    assert PAGE["blocks"].names(text, PAGE["FILE"]) == ["baselines"]
    assert PAGE["written"](text) == text, "write it anew: python docs/results/baselines_page.py"


def test_every_row_has_a_configuration() -> None:
    for _, _, config, *_ in PAGE["ROWS"]:
        assert (CONFIGS / f"{config}.yaml").is_file(), config


def test_packed_runs_are_all_of_their_sweeps_without_an_attacker() -> None:
    root = root_of(RESULTS / "runs" / "without_attack.jsonl.gz")
    for file in sorted(Path(CONFIGS / "sweeps" / "without_attack").glob("*.yaml")):
        sweep = read_sweep(file)
        found = read_results(root / "sweeps" / sweep.name, root / "pool")
        assert len(found.runs) == len(sweep.seeds)
        assert all(run.finished for run in found.folders)
        shares = [run.record["config"]["model"]["cohort"]["malicious_fraction"] for run in found.folders]
        assert shares == [0.0] * len(sweep.seeds)
