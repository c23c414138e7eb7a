"""Write the page for a reader of the paper, index.md, and its picture, from the CSV files beside this one.

python docs/results/paper_page.py
"""

from collections.abc import Callable
from pathlib import Path

import blocks
import claims
import numpy as np
import pandas as pd
import tables_page
from matplotlib.figure import Figure

from fl_lightning.experiments.figures import same_bytes, svg
from fl_lightning.experiments.tables import markdown, number

HERE = Path(__file__).parent
PICTURE = "paper.svg"
PANELS = {
    "phishing": ("1", "phishing", "Table 1, phishing stand-in"),
    "cifar10, CNN": ("1", "cifar10", "Table 1, CIFAR-10, small CNN"),
    "cifar10, ResNet-18": ("1", "cifar10", "Table 1, CIFAR-10, ResNet-18"),
}


def claims_table() -> str:
    """A row per claim and setting; a claim is told once."""
    lines, last = [], ""
    for found in claims.results():
        told = "" if found.item == last else found.claim
        where = f"[{found.setting}]({found.page})" if found.page else found.setting
        lines.append([found.item, told, where, found.found, f"**{found.verdict}**"])
        last = found.item
    table = markdown(pd.DataFrame(lines, columns=["paper", "claim", "looked at in", "what came out", "verdict"]))
    return table.replace("\\*", "*").replace("\\[", "[").replace("\\]", "]").replace("\\_", "_")


def counted() -> str:
    """How many verdicts there are of each kind."""
    verdicts = [found.verdict for found in claims.results()]
    kinds = ("agrees", "partly", "contradicts", "not yet measured")
    return ", ".join(f"{kind}: {verdicts.count(kind)}" for kind in kinds) + "."


def thresholds() -> str:
    """How a verdict comes about, in words."""
    none, near, lost, least = (number(value) for value in (claims.NONE, claims.NEAR, claims.ACC_LOST, claims.LEAST))
    return (
        "A verdict follows from inequalities, which `docs/results/claims.py` has. **Agrees**: all of a claim's hold. "
        "**Partly**: its point holds, and something else does not. **Contradicts**: its point does not hold. An ASR, or a "
        f"difference of two, counts as none up to {none}, and as near the paper's up to {near}; Acc may lie {lost} lower than "
        f"FedAvg's, the paper's largest loss. A rule lies below another by more than {least}."
    )


def picture() -> Figure:
    """ASR in the paper and here, of every cell of Table 1 that was run."""
    sizes = [len(tables_page.rows_of(setting, table)) for setting, (table, _, _) in PANELS.items()]
    figure = Figure(figsize=(6.5, 0.19 * sum(sizes) + 1.5), layout="constrained")
    panels = figure.subplots(len(PANELS), 1, sharex=True, height_ratios=[size + 1 for size in sizes])
    for panel, (setting, (table, task, title)) in zip(panels, PANELS.items(), strict=True):
        paper, found = tables_page.published(task, table), tables_page.rows_of(setting, table)
        at = np.arange(len(found))
        theirs, ours = [paper[row["row"]]["asr"] for row in found], [row["asr_last10"] for row in found]
        panel.hlines(at, theirs, ours, color="0.75", linewidth=2)
        panel.plot(theirs, at, "o", color="0.45", markersize=5, markerfacecolor="white", label="paper")
        panel.plot(ours, at, "o", color="tab:red", markersize=5, label="here, mean of the last evaluations")
        panel.set(title=title, ylim=(len(found) - 0.4, -0.6), xlim=(-0.03, 1.03))
        panel.set_yticks(at, [row["row"] for row in found], fontsize="small")
        panel.grid(axis="x", alpha=0.3)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    panels[-1].set_xlabel("ASR")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize="small", loc="outside upper center", ncols=2)
    return figure


BLOCKS: dict[str, Callable[[], str]] = {"claims": claims_table, "counts": counted, "thresholds": thresholds}


def written() -> str:
    """The page with its blocks as the tables have them."""
    return blocks.written((HERE / "index.md").read_text(), "all tables", BLOCKS)


def drawn() -> str:
    with same_bytes():
        return svg(picture())


def main() -> None:
    (HERE / PICTURE).write_text(drawn())
    (HERE / "index.md").write_text(written())


if __name__ == "__main__":
    main()
