"""Put the runs of the map's sweeps into one table, a row per run.

python docs/results/map_runs.py RUNS [RUNS ...]

RUNS are folders as `fl-lightning sweep --runs` was given. A run that several sweeps have is one row. What was not finished has
its state and no numbers. Runs of map.csv beside this file that are not finished in these folders keep the rows that they have.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from fl_lightning.analysis.theory import Setting, theorem10
from fl_lightning.errors import ConfigurationError

HERE = Path(__file__).parent
RECORDED = {
    "kept": "diagnostics/kept_fraction",
    "flip": "diagnostics/flip_rate",
    "direction": "diagnostics/malicious_direction",
    "norm_benign": "diagnostics/update_norm_benign",
    "norm_malicious": "diagnostics/update_norm_malicious",
}
"""Columns of the table, and what they are means of over the rounds of a run."""


def main(*roots: str) -> None:
    rows: dict[str, dict[str, Any]] = {}
    for root in map(Path, roots):
        for file in sorted(root.glob("sweeps/map-*/sweep.json")):
            index = json.loads(file.read_text())
            grid = index["name"].removeprefix("map-")
            for cell in index["cells"]:
                for seed, run in cell["runs"].items():
                    found = rows.setdefault(run, row(root / "pool" / run, grid.partition("_")[0], int(seed)))
                    found["grids"] = " ".join(sorted({*found.get("grids", "").split(), grid.partition("_")[2]}))
                    found["run"] = run
    frame = with_earlier(pd.DataFrame(rows.values()), pd.read_csv(HERE / "map.csv", dtype={"run": str}))
    order = ["task", "grids", *(column for column in frame.columns if column not in ("task", "grids", "run")), "run"]
    frame = frame[order].sort_values(["task", "grids", "rule", "run"], na_position="last")
    frame.to_csv(HERE / "map.csv", index=False, float_format="%.5g")
    print(frame.groupby("task")["state"].value_counts().to_string())


def with_earlier(found: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """A row per run: the one that is finished, and of two such the one that was found now."""
    both = pd.concat([found, earlier], ignore_index=True)
    grids = both.groupby("run")["grids"].agg(lambda named: " ".join(sorted({*" ".join(named).split()})))
    both["grids"] = both["run"].map(grids)
    return both.sort_values("state", key=lambda states: states != "finished", kind="stable").drop_duplicates("run")


def row(folder: Path, task: str, seed: int) -> dict[str, Any]:
    """A run's row."""
    found: dict[str, Any] = {"task": task, "seed": seed, "state": "pending"}
    status, record = folder / "status.json", folder / "run.json"
    if status.is_file():
        found["state"] = json.loads(status.read_text()).get("state", "pending")
    if not record.is_file():
        return found
    content = json.loads(record.read_text())
    if content.get("state") != "finished":
        return found
    found |= {"state": "finished", **settings(content["config"]), "acc": content["acc"], "asr": content["asr"]}
    log = pd.read_csv(next(folder.glob("csv/*/metrics.csv")))
    found |= {name: float(log[column].mean()) for name, column in RECORDED.items() if column in log}
    found |= dict(bounds(found))
    return found | {"seconds": round(sum(content["seconds"].values()), 2)}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """What the grids vary."""
    model, rule = config["model"], config["model"]["aggregator"]
    init, partition = rule["init_args"], config["data"]["init_args"]["partition"]
    attack, optimizer = model["attacks"][0]["init_args"], model["client"]["init_args"]["optimizer"]["init_args"]
    return {
        "rule": name(rule),
        "tau": init.get("tau"),
        "alpha": init.get("alpha"),
        "inclusive": init.get("inclusive", False),
        "ignore_zeros": init.get("ignore_zeros", False),
        "share": model["cohort"]["malicious_fraction"],
        "clients": model["cohort"]["clients_per_round"],
        "participation": model["cohort"]["participation"],
        "epochs": model["local"]["epochs"],
        "skew": "IID" if name(partition) == "IID" else f"Dirichlet {partition['init_args']['alpha']:g}",
        "momentum": optimizer["momentum"],
        "decay": optimizer["weight_decay"],
        "trigger": attack["height"] if "height" in attack else attack["value"],
        "poisoned": attack["poison_fraction"],
        "per_batch": attack["per_batch"],
    }


def name(part: dict[str, Any]) -> str:
    return part["class_path"].rpartition(".")[2]


def bounds(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Theorem 10's p- and p+ at the run's mean flip rate, of the invariant aggregator with the usual vote."""
    malicious = round(found["share"] * found["clients"])
    if found["rule"] != "Invariant" or found["ignore_zeros"]:
        return
    try:
        setting = Setting(found["clients"], malicious, found["alpha"], found["tau"], inclusive=found["inclusive"])
    except ConfigurationError:  # more attackers than the theorem takes
        return
    told = theorem10(setting, found["flip"])
    yield "p_minus", told.benign
    yield "p_plus", told.malicious


if __name__ == "__main__":
    main(*sys.argv[1:])
