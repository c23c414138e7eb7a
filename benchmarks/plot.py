"""A picture of what `benchmarks.peers` printed: milliseconds of each rule, client updates per second of each round.

python -m benchmarks.plot peers.jsonl docs/performance.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS, FLOOR = "tab:blue", "tab:gray", "tab:green"


def panel(axes: Any, title: str, values: Mapping[str, float], label: str) -> None:
    """One bar per candidate, ours in another colour; a logarithmic axis, as they differ by factors."""
    names = sorted(values, key=lambda name: values[name], reverse="ms" in label)
    colours = [OURS if name.startswith("fl_lightning") else FLOOR if name == "one read" else OTHERS for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(bars, labels=[f"{values[name]:.3g}" for name in names], padding=2, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the rows of benchmarks.peers.")
    parser.add_argument("rows", type=Path, help="file of JSON lines")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines() if line.startswith("{")]
    panels: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if row.get("benchmark") != "peers" or "error" in row:
            continue
        if "updates_per_second" in row:
            panels.setdefault((row["work"], "client updates/s"), {})[row["who"]] = row["updates_per_second"]["median"]
        else:
            title = f"{row['work']}, {row['clients']} x {row['coordinates']:,}"
            panels.setdefault((title, "ms"), {})[row["who"]] = 1e3 * row["seconds"]["median"]
    if not panels:
        parser.error(f"{options.rows} holds no rows of benchmarks.peers")
    height = -(-len(panels) // 2)
    figure, grid = plt.subplots(height, 2, figsize=(11, 2.6 * height), squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, ((title, label), values) in zip(grid.flat, panels.items(), strict=False):
        panel(axes, title, values, label)
    figure.savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
