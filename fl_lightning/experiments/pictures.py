"""The figures of a sweep as files: each as PDF and SVG under a name that says what it shows, and with a caption."""

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from fl_lightning.experiments.figures import NAMES, svg
from fl_lightning.experiments.final import Final, measured
from fl_lightning.experiments.groups import Group, groups
from fl_lightning.experiments.league import Board
from fl_lightning.experiments.paper_figures import bars, heat_map, overlay
from fl_lightning.experiments.plain_text import latex_cell
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.worst_report import maps

LONGEST_NAME = 80
"""Characters of a file's name, beside its extension and number."""


@dataclass(frozen=True)
class Picture:
    """A figure, drawn.

    Args:
        kind: "by_round", "by_rule", "against", "league" or "worst_case".
        name: of its files, without extension; no two of a sweep have the same, also where capitals do not count.
        group: which of its kind it is; empty where it is the only one.
        text: what it shows.
        caption: the same after the sweep's title, for a paper.
        svg: an `<svg>` element.
        pdf: the same as PDF, with its fonts in it.
    """

    kind: str
    name: str
    group: str
    text: str
    caption: str
    svg: str
    pdf: bytes


def pictures(results: Results, final: Final, of_leagues: Iterable[Board], *, by_cell: bool = True) -> list[Picture]:
    """All figures of a sweep: rules by round, bars, one axis against another where there are two, leagues and worst cases.

    Args:
        results: of the sweep.
        final: which Acc and ASR they have.
        of_leagues: its boards.
        by_cell: whether there are those that have a line or a bar for every cell.
    """
    taken: set[str] = set()
    found = []
    for kind, shown, group, figure, text in drawn(results, final, of_leagues, by_cell):
        name = file_name("-".join(filter(None, (shown, group.suffix))), taken)
        as_svg = svg(figure)
        figure.set_layout_engine("none")  # it stays as it was laid out: that takes as long as drawing
        found.append(Picture(kind, name, group.name, text, f"{begun(results, group)}{text}", as_svg, pdf(figure)))
    return found


def drawn(
    results: Results, final: Final, of_leagues: Iterable[Board], by_cell: bool
) -> Iterator[tuple[str, str, Group, Figure, str]]:
    """Kind, what is shown (for its name), group, figure and caption of each."""
    of_one, of_two = groups(results, two_axes=False), groups(results, two_axes=True)
    # A cell that is alone has its curve anyway.
    of_one = [group for group in of_one if len(group.cells) > 1] or of_one if by_cell else []
    for group in of_one:
        band = "; means over seeds, bands from the smallest to the largest" if len(results.seeds) > 1 else ""
        text = f"Acc and ASR by round and {group.compares}{band}."
        yield "by_round", "acc_and_asr_by_round", group, overlay(results, group), text
    for group in of_one:
        text = f"Acc and ASR by {group.compares}: {measured(results, group, final)}."
        yield "by_rule", f"acc_and_asr_by_{group.compares}", group, bars(results, group, final), text
    for group in of_two:
        for measure, name in NAMES.items() if group.columns else ():
            text = f"{name} by {group.compares}: {measured(results, group, final)}."
            shown = f"{measure}_by_{group.rows}_and_{group.columns}"
            yield "against", shown, group, heat_map(results, group, measure, final), text
    for board in of_leagues:
        shown = f"{board.measure.name}_by_{board.group.rows}_and_{board.group.columns}-league"
        yield "league", shown, board.group, board.picture(), f"{board.measure.title}. {board.measure.text}"
    for group, measure, figure, text in maps(results, final):
        yield "worst_case", f"{measure}_by_{group.rows}_and_{group.columns}-worst_case", group, figure, text


def begun(results: Results, group: Group) -> str:
    """How a caption begins: the sweep, and which of its groups."""
    return f"{results.title}{f' ({group.name})' if group.name else ''}. "


def file_name(text: str, taken: set[str]) -> str:
    """A name of letters, digits, `_` and `-`, which TeX and every file system take; put among those that are taken.

    >>> file_name("asr_by_round-alpha 0.25", set()), file_name("A", {"a"})
    ('asr_by_round-alpha_0_25', 'A-2')
    """
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", text)[:LONGEST_NAME].strip("_-") or "figure"
    name, number = plain, 2
    while name.lower() in taken:
        name, number = f"{plain}-{number}", number + 1
    taken.add(name.lower())
    return name


def pdf(figure: Figure) -> bytes:
    """A figure as PDF; within `same_bytes`, fonts are TrueType, so that its text can be searched and edited."""
    content = io.BytesIO()
    figure.savefig(content, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return content.getvalue()


def latex_figures(found: Iterable[Picture], sweep: str, folder: str) -> str:
    """A `figure` per picture, with its caption, for a paper that has `\\usepackage{graphicx}`.

    Args:
        found: the pictures.
        sweep: its name, which the labels begin with.
        folder: where the files are.
    """
    lines = [
        r"% Needs \usepackage{graphicx}, and \graphicspath{{FOLDER/}} for the folder of this file, if it is not the paper's.",
        "% A wide figure may be a figure* in a paper of two columns.",
    ]
    for picture in found:
        width = r"\linewidth" if picture.kind not in ("against", "league", "worst_case") else r"0.6\linewidth"
        lines += [
            r"\begin{figure}",
            r"\centering",
            rf"\includegraphics[width={width}]{{{folder}/{picture.name}.pdf}}",
            rf"\caption{{{latex_cell(picture.caption)}}}",
            rf"\label{{fig:{sweep}-{picture.name}}}",
            r"\end{figure}",
            "",
        ]
    return "\n".join(lines)
