"""Who was turned away, as a report shows it and as a data frame, against the rules' definitions on a real run."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from test_results import make

from fl_lightning import (
    ClientRecord,
    CohortSampler,
    ConfigurationError,
    DetectionMetrics,
    LocalTraining,
    Simulation,
    experiments,
)
from fl_lightning.aggregators import FLAME, FLTrust, Krum
from fl_lightning.attacks import ModelReplacement, PixelTrigger
from fl_lightning.callbacks.client_record import schema
from fl_lightning.data import IID, Digits
from fl_lightning.data.root import RootSet
from fl_lightning.experiments.detection import list_rounds, rates_by_round, sections, verdicts
from fl_lightning.experiments.report import write_report
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.run_folder import RunFolder
from fl_lightning.files.round_tables import RoundTables
from fl_lightning.models import MLP

# ---- a real run ----------------------------------------------------------------------------------------------------------


class Kept(L.Callback):
    """Every round's updates and root, whole."""

    def __init__(self) -> None:
        self.rounds: list[tuple[np.ndarray, np.ndarray | None]] = []

    def on_aggregate(self, federation: Any, shard: Any, aggregate: Any) -> None:
        root = None if shard.root is None else shard.root.double().numpy().copy()
        self.rounds.append((shard.values.double().numpy().copy(), root))


def krum(rows: np.ndarray, root: Any) -> list[float]:
    """Of eight clients, two of them malicious, the one whose four nearest are nearest."""
    distances = [[float(((a - b) ** 2).sum()) for b in rows] for a in rows]
    scores = [sum(sorted(d for j, d in enumerate(of) if j != i)[:4]) for i, of in enumerate(distances)]
    return [float(i == scores.index(min(scores))) for i in range(len(rows))]


def fl_trust(rows: np.ndarray, root: np.ndarray) -> list[float]:
    trust = [max(0.0, float(row @ root) / float(np.linalg.norm(row) * np.linalg.norm(root))) for row in rows]
    return [value / max(trust) for value in trust]


def flame(rows: np.ndarray, root: Any) -> list[float]:
    """As the distance falls, the last group of more than half that is linked; those are cut to the median norm."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances, core = 1 - units @ units.T, set(range(len(rows)))
    for cut in sorted(set(distances.ravel()), reverse=True):
        groups: list[set[int]] = []
        for i in core:
            linked = [group for group in groups if any(distances[i, j] < cut for j in group)]
            groups = [group for group in groups if group not in linked] + [{i}.union(*linked)]
        if len(largest := max(groups, key=len)) <= len(rows) // 2:
            break
        core = largest
    norms = np.linalg.norm(rows, axis=1)
    return [min(1.0, float(np.median(norms) / norms[i])) if i in core else 0.0 for i in range(len(rows))]


@pytest.mark.parametrize(("rule", "oracle"), [(Krum(), krum), (FLTrust(), fl_trust), (FLAME(), flame)])
def test_verdicts_of_a_run_are_those_of_the_oracle_client_by_client(tmp_path: Path, rule: Any, oracle: Any) -> None:
    kept = Kept()
    root = RootSet(samples=80) if rule.needs_root else None
    Simulation(
        lambda: MLP(sizes=[64, 16, 10]),
        rule,
        Digits(IID(num_clients=12), root=root),
        attacks=[PixelTrigger(target_label=2, poison_fraction=0.5), ModelReplacement()],
        cohort=CohortSampler(clients_per_round=8, malicious_fraction=0.25, start_round=1),
        local=LocalTraining(epochs=1, batch_size=16),
        rounds=3,
        folder=tmp_path / "run",
        callbacks=[DetectionMetrics(), ClientRecord(), kept],
        enable_progress_bar=False,
    ).run()
    frame = experiments.clients(tmp_path)
    assert len(frame) == 3 * 8
    for t, (rows, of_root) in enumerate(kept.rounds):
        found = frame[frame["round"] == t]
        assert found["verdict"].tolist() == pytest.approx(oracle(rows, of_root), rel=1e-5, abs=1e-9)
        assert found["norm"].tolist() == pytest.approx(np.linalg.norm(rows, axis=1).tolist(), rel=1e-12)
        assert found["malicious"].sum() == (2 if t else 0)
    turned_away = frame[frame["verdict"] == 0].groupby("round").size().reindex(range(3), fill_value=0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "detection.jsonl").read_text().splitlines()]
    assert [line["away_malicious"] + line["away_benign"] for line in lines] == turned_away.tolist()
    folder = RunFolder(tmp_path / "run")
    by_round = rates_by_round(folder, verdicts(folder))
    (tmp_path / "run" / "detection.jsonl").unlink()
    assert rates_by_round(folder, verdicts(folder)) == by_round  # the table of clients says the same


# ---- frames and reports of made-up runs -------------------------------------------------------------------------------------


def record(folder: Path, rounds: int = 3, *, judged: bool = True) -> None:
    """Clients 3 and 5, of whom 5 is malicious and turned away in every round but the first."""
    rows = [
        {
            "round": t,
            "client": c,
            "malicious": c == 5,
            "samples": 10,
            "norm": 1.0,
            "cosine": 0.5,
            "excluded": False,
            "verdict": (0.0 if c == 5 and t else 1.0) if judged else None,
            "logged": [("loss", 0.5), *([("extra", 2.0)] if c == 5 else [])],
        }
        for t in range(rounds)
        for c in (3, 5)
    ]
    RoundTables(folder / "clients", schema(), 0).add(rows)


def test_a_row_per_client_and_round(tmp_path: Path) -> None:
    for name in ("a", "b/c", "without"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    record(tmp_path / "a")
    record(tmp_path / "b" / "c", 1, judged=False)
    frame = experiments.clients(tmp_path)
    assert frame["run"].tolist() == ["a"] * 6 + ["b/c"] * 2
    assert frame.query("run == 'a' and round == 2 and verdict == 0")[["client", "malicious"]].to_numpy().tolist() == [[5, True]]
    assert frame.query("run == 'b/c'")["verdict"].isna().all()
    assert frame["client/extra"].notna().tolist() == [False, True] * 4
    with pytest.raises(
        ConfigurationError,
        match=r"no run in .*without has rows of clients.*add the callback ClientRecord.*killed .* as it goes on",
    ):
        experiments.clients(tmp_path / "without")
    file = next((tmp_path / "a" / "clients").iterdir())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match=r"from-round-0000000\.parquet is damaged"):
        experiments.clients(tmp_path)


def test_a_report_has_a_section_where_runs_have_records(tmp_path: Path) -> None:
    sweep = make(tmp_path)
    results = read_results(sweep, tmp_path / "pool")
    assert sections(results) == []
    write_report(results, tmp_path / "out")
    assert "Who was turned away" not in page(tmp_path)
    record(tmp_path / "pool" / "01")
    record(tmp_path / "pool" / "10", judged=False)
    line = {"malicious": 2, "benign": 2, "away_malicious": 1, "away_benign": 0, "below_malicious": 2, "below_benign": 0}
    (tmp_path / "pool" / "20" / "detection.jsonl").write_text(
        json.dumps({"round": 0, **line, "pairs": 4, "pairs_told": 3}) + "\n"
    )
    (tmp_path / "pool" / "30" / "detection.jsonl").write_text(json.dumps({"round": 0, "malicious": 2}) + "\n")
    found = sections(results)
    assert [section.name.partition(",")[0] for section in found] == ["FedAvg", *[r"Invariant_1 & <b> $\foo$"] * 2]
    assert found[0].run == "01"
    assert list(found[0].rounds) == [(0, "-", "-", "5"), (1, "5", "-", "-"), (2, "5", "-", "-")]
    assert [bool(section.clients) for section in found] == [True, False, False]
    assert [bool(section.rates) for section in found] == [True, True, False]
    assert "is no line of DetectionMetrics; delete it" in found[2].problem
    write_report(results, tmp_path / "out")
    first = page(tmp_path)
    assert first.count("Who was turned away") == 1
    assert "every client of <code>01</code>" in first
    write_report(results, tmp_path / "out")
    assert page(tmp_path) == first


def page(folder: Path) -> str:
    return (folder / "out" / "report.html").read_text()


def test_rates_without_a_record_of_clients(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert rates_by_round(run, verdicts(run)) == {}
    record(tmp_path)
    table = verdicts(run)
    assert rates_by_round(run, table)[0] == {"tpr": 0, "fpr": 0, "tpr_below": 0, "fpr_below": 0, "auroc": 0.5}
    assert rates_by_round(run, table)[2] == {"tpr": 1, "fpr": 0, "tpr_below": 1, "fpr_below": 0, "auroc": 1}
    assert [malicious for _, malicious, _, _ in list_rounds(table)] == ["-", "5", "5"]
