"""Tables for a paper, in LaTeX: rules against attacks, or whatever two axes a sweep has."""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from fl_lightning.experiments.figures import NAMES
from fl_lightning.experiments.final import Final, mean, measured, why
from fl_lightning.experiments.groups import ATTACKS, Group, groups
from fl_lightning.experiments.pictures import begun, file_name
from fl_lightning.experiments.plain_text import is_number, latex_cell
from fl_lightning.experiments.results import Results
from fl_lightning.experiments.tables import number

BESIDE = 3
"""Labels of the columns that fit beside each other on a page, each with Acc and ASR; further ones go below."""

BEST = {"acc": max, "asr": min}


@dataclass
class Notes:
    """Reasons below a table, each with its letter."""

    letters: dict[str, str] = field(default_factory=dict)

    def mark(self, reason: str) -> str:
        """What points to a reason, without a width of its own, so that columns stay aligned; nothing where there is none.

        >>> notes = Notes()
        >>> [notes.mark(reason) for reason in ("not run", "", "failed", "not run")]
        ['\\\\rlap{$^{a}$}', '', '\\\\rlap{$^{b}$}', '\\\\rlap{$^{a}$}']
        """
        if not reason:
            return ""
        count = len(self.letters)
        letters = string.ascii_lowercase
        letter = self.letters.setdefault(reason, letters[count % 26] * (count // 26 + 1))
        return rf"\rlap{{$^{{{letter}}}$}}"

    @property
    def text(self) -> str:
        return "; ".join(f"$^{{{letter}}}$\\,{latex_cell(reason)}" for reason, letter in self.letters.items())


def latex_tables(results: Results, final: Final) -> str:
    """A `table` per group, for a paper that has `\\usepackage{booktabs}`.

    Means, and sample standard deviations where there are several seeds. In every column the highest Acc and the lowest ASR are
    bold, as printed, so that what looks equal is bold alike; not where attacks are compared, or one row alone has a value, and
    the rule without attack does not compete. Where there is no value, or not of all seeds, a note says why.
    """
    taken: set[str] = set()
    found = groups(results, two_axes=True)
    tables = [
        latex_table(results, group, final, file_name("-".join(filter(None, (results.name, group.suffix))), taken))
        for group in found
    ]
    return "\n".join([r"% Needs \usepackage{booktabs}", *tables])


def latex_table(results: Results, group: Group, final: Final, label: str) -> str:
    """The table of a group."""
    panels = panelled(group.column_labels)
    width = len(panels[0])
    notes = Notes()
    body, bold = [], False
    for panel in panels:
        columns = [
            [entry(results, group, row, column, m, final) for row in group.row_labels] for column in panel for m in NAMES
        ]
        best = [contest(values, m) for values, m in zip(columns, list(NAMES) * len(panel), strict=True)]
        bold |= any(map(any, best))
        body += heading(group, panel, width)
        for place, row in enumerate(group.row_labels):
            cells = [printed(values[place], win[place], notes) for values, win in zip(columns, best, strict=True)]
            body.append(line([text_cell(row), *cells, *[""] * (2 * (width - len(panel)))]))
    environment = "table*" if width > 1 else "table"  # which is the same in a paper of one column
    return "\n".join(
        [
            rf"\begin{{{environment}}}",
            r"\centering",
            rf"\caption{{{caption(results, group, final, bold=bold)}}}",
            rf"\label{{tab:{label}}}",
            r"\smallskip",
            *([r"\small", r"\setlength{\tabcolsep}{4pt}"] if width > 1 else []),
            rf"\begin{{tabular}}{{l{'r' * 2 * width}}}",
            r"\toprule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(["", r"\smallskip", rf"{{\footnotesize {notes.text}.}}"] if notes.letters else []),
            rf"\end{{{environment}}}",
            "",
        ]
    )


def plain_table(frame: pd.DataFrame, title: str, label: str) -> str:
    """A frame of text as it stands, such as one that has a row per cell, for a paper with `booktabs`."""
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{latex_cell(title)}}}",
            rf"\label{{tab:{label}}}",
            r"\smallskip",
            r"\small",
            rf"\begin{{tabular}}{{{'l' * len(frame.columns)}}}",
            r"\toprule",
            line([text_cell(str(column)) for column in frame.columns]),
            r"\midrule",
            *(line([text_cell(str(cell)) for cell in cells]) for cells in frame.to_numpy().tolist()),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def panelled(labels: Sequence[str]) -> list[Sequence[str]]:
    """The columns' labels in as few panels as hold them, of about the same width.

    >>> panelled("ab"), panelled("abcd")
    (['ab'], ['ab', 'cd'])
    """
    width = math.ceil(len(labels) / math.ceil(len(labels) / BESIDE))
    return [labels[start : start + width] for start in range(0, len(labels), width)]


@dataclass(frozen=True)
class Entry:
    """A number of a table: mean, sample standard deviation, and why it is not there or not of all seeds."""

    value: float
    deviation: float
    reason: str
    competes: bool


def entry(results: Results, group: Group, row: str, column: str, measure: str, final: Final) -> Entry:
    """What a table has for these labels."""
    cell = group.cells.get((row, column))
    value, deviation = mean(results, cell, measure, final)
    competes = group.rows.lower() not in ATTACKS and row != results.attack_free.get(group.rows)
    return Entry(value, deviation, why(results, cell, measure, final), competes)


def contest(column: Sequence[Entry], measure: str) -> list[bool]:
    """Which entries of a column are its best, as printed; none where fewer than two compete."""
    competing = [round(e.value, 3) for e in column if e.competes and not math.isnan(e.value)]
    if len(competing) < 2:
        return [False] * len(column)
    best = BEST[measure](competing)
    return [e.competes and round(e.value, 3) == best for e in column]


def printed(entry: Entry, best: bool, notes: Notes) -> str:
    """An entry as LaTeX."""
    if math.isnan(entry.value):
        return f"--{notes.mark(entry.reason)}"
    value = rf"\textbf{{{number(entry.value)}}}" if best else number(entry.value)
    spread = "" if math.isnan(entry.deviation) else rf"{{\scriptsize$\pm${number(entry.deviation)}}}"
    return f"{value}{spread}{notes.mark(entry.reason)}"


def heading(group: Group, panel: Sequence[str], width: int) -> list[str]:
    """The rows above a panel of the table: the columns' labels, where there are columns, and the measures."""
    rows = [r"\midrule"] if panel[0] != group.column_labels[0] else []
    empty = width - len(panel)
    if group.columns:
        labels = [f"{group.columns} {label}" if is_number(label) else label for label in panel]
        spans = [rf"\multicolumn{{2}}{{c}}{{{latex_cell(label)}}}" for label in labels]
        rows.append(line(["", *spans, *[""] * 2 * empty]))
        rows.append(" ".join(rf"\cmidrule(lr){{{2 * i + 2}-{2 * i + 3}}}" for i in range(len(panel))))
    rows.append(line([text_cell(group.rows or "seeds"), *list(NAMES.values()) * len(panel), *[""] * 2 * empty]))
    return [*rows, r"\midrule"]


def line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def text_cell(text: str) -> str:
    """The first cell of a row: one that begins with [ or * would be read as the argument of the line break before it.

    >>> text_cell("[5, 10]"), text_cell("a_b")
    ('{}[5, 10]', 'a\\\\_b')
    """
    return "{}" * text.startswith(("[", "*")) + latex_cell(text)


def caption(results: Results, group: Group, final: Final, *, bold: bool) -> str:
    """What a table shows, of which rounds and how many seeds, and what is bold."""
    text = f"{begun(results, group)}Acc and ASR by {group.compares}: {measured(results, group, final)}."
    if bold:
        text += " Bold: the highest Acc and the lowest ASR of each column"
        free = results.attack_free.get(group.rows)
        text += f", {free} apart." if free in group.row_labels else "."
    return latex_cell(text)
