"""Entries as tables, pages, or JSON: drawn to fit a terminal, and as plain lines where they go into a file or a pipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from textwrap import fill, indent
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fl_lightning.catalogue.entries import Argument, Entry, in_short

Row = Sequence[str]

ROOMY = 120
"""Columns of a terminal from which on papers have one of their own; else they stand below what an entry is about."""


def show_entries(console: Console, entries: Sequence[Entry]) -> None:
    """Print a line or a few per entry, without columns that are empty throughout."""
    papers = [next(iter(entry.addresses), "").removeprefix("https://") for entry in entries]
    columns = {
        "name": [entry.name for entry in entries],
        "about": [entry.about for entry in entries],
        "arguments": [", ".join(map(str, entry.arguments)) for entry in entries],
        "paper": papers,
    }
    if console.is_terminal and console.width < ROOMY:
        columns["about"] = [f"{about}\n{paper}".rstrip() for about, paper in zip(columns["about"], papers, strict=True)]
        columns["paper"] = []
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    show_table(console, list(filled), list(zip(*filled.values(), strict=True)))


def show_table(console: Console, headings: Row, rows: Sequence[Row]) -> None:
    """Print a table; into a pipe a line per row, with tabs between the cells and no headings."""
    if not console.is_terminal:
        print(*("\t".join(row) for row in rows), sep="\n", file=console.file)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def show_page(console: Console, entry: Entry) -> None:
    """Print all that there is to say of an entry."""
    parts = [
        ("", f"{entry.name} ({entry.kind}): {entry.about}\n{entry.place}"),
        ("", entry.text),
        ("Arguments", "\n".join(map(described, entry.arguments))),
        ("Papers", "\n".join(entry.papers)),
        ("In the file" if entry.kind in ("configuration", "sweep") else "In a configuration", entry.yaml.rstrip()),
    ]
    for heading, body in parts:
        if not body:
            continue
        text = indent(body, "  ") if heading else body
        if console.is_terminal:
            text = "\n".join(fitted(line, console.width) for line in text.splitlines())
            heading = f"\x1b[1m{heading}\x1b[0m" if heading else ""
        print(*([heading] if heading else []), text, "", sep="\n", file=console.file)


def fitted(line: str, width: int) -> str:
    """A line as several that are no wider, all indented as it was.

    >>> fitted("  one two three", 9)
    '  one two\\n  three'
    """
    indentation = line[: len(line) - len(line.lstrip())]
    return fill(line, width, subsequent_indent=indentation) if line.strip() else ""


def described(argument: Argument) -> str:
    """
    >>> described(Argument("tau", "float", False, 0.2, "a threshold"))
    'tau: float = 0.2\\n    a threshold'
    """
    default = "" if argument.required else f" = {in_short(argument.default, whole=True)}"
    about = f"\n    {argument.about}" if argument.about else ""
    return f"{argument.name}: {argument.type}{default}{about}"


def as_json(value: Entry | Sequence[Entry] | dict[str, Any]) -> str:
    """Entries, or other plain data, for tools."""
    plain = (
        asdict(value) if isinstance(value, Entry) else value if isinstance(value, dict) else [asdict(each) for each in value]
    )
    return json.dumps(plain, indent=2)
