"""The picture of a round on the first page: `python docs/round_picture.py` draws docs/round.svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

BENIGN, MALICIOUS, SERVER = "#2f6f9f", "#c0392b", "#3f7f4f"


def box(axes: Any, x: float, y: float, width: float, height: float, label: str, colour: str) -> None:
    shape = FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.06", facecolor=colour, edgecolor="none"
    )
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, label, ha="center", va="center", fontsize=9, color="white")


def grid(axes: Any, x: float, y: float, rows: list[int], columns: int, cell: float) -> None:
    """Rows of updates, a column for each group of coordinates."""
    for place, malicious in enumerate(rows):
        for column in range(columns):
            colour = MALICIOUS if malicious else BENIGN
            corner = (x + column * cell, y + (len(rows) - 1 - place) * cell)
            axes.add_patch(Rectangle(corner, cell * 0.92, cell * 0.92, facecolor=colour, alpha=0.45 + 0.5 * malicious))


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.3})


def draw(file: Path) -> None:
    """Two ranks with three clients each: training, exchange, attack, rule, server step."""
    mpl.rcParams["svg.fonttype"] = "path"
    mpl.rcParams["svg.hashsalt"] = "round"  # the same drawing gives the same file
    figure, axes = plt.subplots(figsize=(9.6, 4.0))
    axes.set(xlim=(0, 12), ylim=(0, 5))
    axes.axis("off")
    captions = [
        (1.15, "1  train", "each rank its clients,\nold - new weights"),
        (4.05, "2  exchange", "all clients,\na part of the coordinates"),
        (6.75, "3  attack", "malicious rows\nare rewritten"),
        (8.75, "4  aggregate", "the rule maps\nN rows to one"),
        (10.95, "5  step", "gathered on every rank,\na server optimizer's gradient"),
    ]
    for x, title, below in captions:
        axes.text(x, 4.78, title, ha="center", va="center", fontsize=11, weight="bold", color="#555555")
        axes.text(x, 0.25, below, ha="center", va="center", fontsize=8, color="#777777")
    clients = [(0, 1, 0), (0, 0, 1)]
    for rank, base in enumerate((2.75, 0.8)):
        axes.text(0.05, base + 1.62, f"rank {rank}", fontsize=8, color="#777777", va="center")
        for place, malicious in enumerate(clients[rank]):
            name = f"client {3 * rank + place + 1}"
            box(axes, 0.15, base + 1.0 - 0.5 * place, 1.1, 0.36, name, MALICIOUS if malicious else BENIGN)
        grid(axes, 1.5, base + 0.0, list(clients[rank]), 4, 0.36)
        rows = [*clients[0], *clients[1]]
        grid(axes, 3.7, base - 0.05, rows, 2, 0.24)
        arrow(axes, (4.4, base + 0.65), (6.0, base + 0.65))
        for place, malicious in enumerate(rows):
            corner = (6.5, base - 0.05 + (5 - place) * 0.24)
            colour = MALICIOUS if malicious else BENIGN
            axes.add_patch(Rectangle(corner, 0.46, 0.22, facecolor=colour, alpha=0.95 if malicious else 0.45))
        arrow(axes, (7.15, base + 0.65), (8.05, base + 0.65))
        box(axes, 8.15, base + 0.4, 1.2, 0.5, "rule", SERVER)
        arrow(axes, (9.5, base + 0.65), (10.2, 2.55 + (0.15 if rank == 0 else -0.15)))
    for start in (2.75, 0.8):
        for end in (2.75, 0.8):
            arrow(axes, (3.0, start + 0.6), (3.65, end + 0.65))
    box(axes, 10.3, 2.25, 1.35, 0.6, "global model", SERVER)
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(file, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_name("round.svg"))
