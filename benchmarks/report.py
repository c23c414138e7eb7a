"""What the benchmarks printed, as tables in Markdown, and a picture of the comparison with peers.

python -m benchmarks.report rows.jsonl --picture docs/performance.png > tables.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]

OURS, OTHERS, FLOOR = "tab:blue", "tab:gray", "tab:green"


def panel(axes: Any, title: str, values: Mapping[str, float], label: str) -> None:
    """One bar per candidate, ours in another colour; times on a logarithmic axis, as they differ by factors."""
    names = sorted(values, key=lambda name: values[name], reverse="ms" in label)
    colours = [OURS if name.startswith("fl_lightning") else FLOOR if name == "one read" else OTHERS for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(bars, labels=[f"{values[name]:.3g}" for name in names], padding=2, fontsize=8)
    axes.set_xscale("log" if label == "ms" else "linear")
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(rows: list[Row], picture: Path) -> None:
    """Milliseconds of each rule and client updates per second of each network, ours and peers'."""
    panels: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row["benchmark"] != "peers" or "error" in row:
            continue
        if "updates_per_second" in row:
            panels.setdefault((row["work"], "client updates/s"), {})[row["who"]] = row["updates_per_second"]["median"]
        else:
            title = f"{row['work']}, {row['clients']} x {row['coordinates']:,}"
            panels.setdefault((title, "ms"), {})[row["who"]] = 1e3 * row["seconds"]["median"]
    height = -(-len(panels) // 2)
    figure, grid = plt.subplots(height, 2, figsize=(11, 2.6 * height), squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((title, label), values) in zip(grid.flat, panels.items(), strict=False):
        panel(axes, title, values, label)
    figure.savefig(picture, dpi=110)


def spread(value: Mapping[str, float], factor: float = 1.0) -> str:
    """Median, and quartile spread in brackets."""
    return f"{factor * value['median']:.4g} ({value['spread']:.2f})"


COLUMNS: dict[str, dict[str, Callable[[Row], Any]]] = {
    "peers: rules": {
        "rule": lambda row: row["work"],
        "updates": lambda row: f"{row['clients']} x {row['coordinates']:,}",
        "who": lambda row: row["who"],
        "ms": lambda row: spread(row["seconds"], 1e3),
        "of ours": lambda row: spread(row["of_ours"]),
    },
    "peers: rounds": {
        "network": lambda row: row["work"].removeprefix("rounds, "),
        "who": lambda row: row["who"],
        "client updates/s": lambda row: spread(row["updates_per_second"]),
        "time, of ours": lambda row: spread(row["of_ours"]),
    },
    "rounds": {
        "task": lambda row: row["task"],
        "rule": lambda row: row["rule"],
        "asked for": lambda row: row["asked"],
        "taken": lambda row: row["executor"],
        "loop": lambda row: spread(row["plain_updates_per_second"]),
        "Federation": lambda row: spread(row["federation_updates_per_second"]),
        "ratio": lambda row: spread(row["ratio"]),
        "difference": lambda row: f"{row['largest_difference']:.0e}",
    },
    "scaling": {
        "task": lambda row: row["task"],
        "ranks": lambda row: row["ranks"],
        "one rank": lambda row: spread(row["one_updates_per_second"]),
        "several": lambda row: spread(row["several_updates_per_second"]),
        "ratio": lambda row: spread(row["ratio"]),
    },
    "exchange": {
        "updates": lambda row: f"{row['clients']} x {row['coordinates']:,}",
        "ranks": lambda row: row["ranks"],
        "all_to_all, ms": lambda row: spread(row["all_to_all_seconds"], 1e3),
        "exchange, ms": lambda row: spread(row["exchange_seconds"], 1e3),
        "rule, ms": lambda row: spread(row["rule_seconds"], 1e3),
        "both, ms": lambda row: spread(row["with_rule_seconds"], 1e3),
        "both, of one after the other": lambda row: spread(row["with_rule_of_one_by_one"]),
    },
    "aggregators": {
        "rule": lambda row: row["rule"],
        "updates": lambda row: f"{row['clients']} x {row['coordinates']:,}",
        "ms": lambda row: spread(row["seconds"], 1e3),
        "of FedAvg": lambda row: row["of_fedavg"],
        "of one read": lambda row: row["of_one_read"],
        "of torch.sort": lambda row: row["of_torch_sort"],
        "peak MB": lambda row: row["peak_mb"],
    },
}
"""By benchmark, the columns of its table."""


def table(name: str, rows: list[Row]) -> str:
    columns = COLUMNS[name]
    lines = [list(columns), ["---"] * len(columns), *([str(cell(row)) for cell in columns.values()] for row in rows)]
    return "\n".join([f"### {name}", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def kind(row: Row) -> str:
    """The table that a row belongs to; none for what has no table, such as errors."""
    if "error" in row:
        return ""
    return f"peers: {'rounds' if 'updates_per_second' in row else 'rules'}" if row["benchmark"] == "peers" else row["benchmark"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tables and a picture of benchmarks' rows.")
    parser.add_argument("rows", type=Path, nargs="+", help="files of JSON lines")
    parser.add_argument("--picture", type=Path, help="where to draw the rows of benchmarks.peers")
    options = parser.parse_args()
    lines = [line for file in options.rows for line in file.read_text().splitlines() if line.startswith("{")]
    rows = [json.loads(line) for line in lines]
    for name in COLUMNS:
        if of_kind := [row for row in rows if kind(row) == name]:
            print(table(name, of_kind))
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
