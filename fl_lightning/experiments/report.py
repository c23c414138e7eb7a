"""A sweep's report: tables, figures and one page of HTML that needs no network."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from fl_lightning.experiments import ran_on, worst_report
from fl_lightning.experiments.detection import Section, sections
from fl_lightning.experiments.figures import curves, numeric_axes, same_bytes, sensitivity, svg
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.league import Board, boards
from fl_lightning.experiments.lifespans import lifespan_table
from fl_lightning.experiments.paper_tables import latex_tables, plain_table
from fl_lightning.experiments.pictures import Picture, latex_figures, pictures
from fl_lightning.experiments.plain_text import as_csv, markdown_cell
from fl_lightning.experiments.results import Results, records
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.tables import markdown, table
from fl_lightning.experiments.worst_attack import WorstCase
from fl_lightning.files.run_files import own_file, write_whole
from fl_lightning.files.sealed import altered, without_digest

FILES = ("report.html", "table.md", "table.tex", "figures.tex", "cells.csv", "runs.csv", "times.csv")
"""What a report consists of. All but `times.csv` depend on the runs' results alone, so the same results give the same bytes."""

FOLDERS = ("figures", "curves", "sensitivity")

PICTURES = "pictures.txt"
"""Names the pictures in these folders that are the report's."""

MOST_CELLS = 200
"""Cells of which each has a picture, a line and a bar: nobody looks at those of more, which take minutes to draw."""


@dataclass(frozen=True)
class Machine:
    """A machine and what ran on it."""

    hardware: str
    versions: str
    ranks: int
    runs: int


@dataclass(frozen=True)
class Shown:
    """What a report shows of a sweep.

    Args:
        results: of the sweep.
        table: a row per cell, as text.
        lives: lifespans of backdoors, a row per cell, as text; None where no run has one.
        worst: rules under their worst attack, None where the sweep has no plan for that.
        boards: rules against attacks, a board per measure; empty where there is ASR alone to show.
        pictures: the figures for a paper.
        curves: a picture per cell; empty where there are more than `MOST_CELLS`.
        detection: whom the rule turned away, of cells that recorded it; empty likewise.
        sensitivities: by axis, a picture of Acc and ASR by its values.
    """

    results: Results
    table: pd.DataFrame
    lives: pd.DataFrame | None
    worst: WorstCase | None
    boards: list[Board]
    pictures: list[Picture]
    curves: list[str]
    detection: list[Section]
    sensitivities: dict[str, str]


def write_report(results: Results, folder: Path, final: Final = Final.LAST) -> list[Path]:
    """Write the files of `FILES`, the figures for a paper (`figures/<what it shows>.pdf` and `.svg`), `curves/<cell>.svg` and
    `sensitivity/<axis>.svg` into a folder; returns their paths. A sweep with `worst_case` has `worst_case.csv`, a row per rule,
    and `worst_case_cells.csv`, a row per rule and attack, too.

    Runs that have not finished stand in the tables as what they are; their curves are shown as far as they go.

    Args:
        results: of the sweep.
        folder: where to write; it need not be there.
        final: which Acc and ASR the LaTeX tables, bars and heat maps have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_cell, of_leagues = len(results.cells) <= MOST_CELLS, list(boards(results, final))
    with same_bytes():
        shown = Shown(
            results,
            table(results),
            lifespan_table(results),
            worst_report.worst_cases(results, final),
            of_leagues,
            pictures(results, final, of_leagues, by_cell=by_cell),
            [svg(curves(results.group(cell), "")) for cell in range(len(results.cells))] if by_cell else [],
            sections(results) if by_cell else [],
            {axis: svg(sensitivity(results, axis)) for axis in numeric_axes(results)},
        )
    as_text = {
        "table.md": f"# {markdown_cell(results.title)}\n\n{markdown(shown.table)}\n{of_prefixes(results)}{of_pools(results)}",
        "table.tex": latex_tables(results, final),
        "figures.tex": latex_figures(shown.pictures, results.name, "figures"),
        "cells.csv": as_csv(results.cells.assign(**of_machines(ran_on.by_cell(results)))),
        "runs.csv": as_csv(results.runs.assign(**of_machines(ran_on.by_run(results)))),
        "times.csv": times(results),
        "report.html": page(shown),
    }
    if shown.lives is not None:
        title = f"{results.title}: lifespan of the backdoor, in rounds after the last attack, by seed"
        as_text["table.md"] += f"\n## Lifespan of the backdoor, by seed\n\n{markdown(shown.lives)}\n"
        as_text["table.tex"] += "\n" + plain_table(shown.lives, title, f"{results.name}-lifespan")
    written: dict[str, str | bytes] = {**as_text}
    written |= {f"figures/{picture.name}.pdf": picture.pdf for picture in shown.pictures}
    written |= {f"figures/{picture.name}.svg": picture.svg for picture in shown.pictures}
    written |= {f"curves/{cell:03d}.svg": picture for cell, picture in enumerate(shown.curves)}
    written |= {f"sensitivity/{axis}.svg": picture for axis, picture in shown.sensitivities.items()}
    if shown.worst is not None:
        written |= {"worst_case.csv": as_csv(shown.worst.chosen), "worst_case_cells.csv": as_csv(shown.worst.reported)}
    for name, content in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_whole(folder / name, content)
    remove_former(folder, written)
    return [folder / name for name in written]


def remove_former(folder: Path, written: Collection[str]) -> None:
    """Remove pictures of an earlier report that this one has no more, as of labels that are called otherwise now.

    What the report has written stands in `PICTURES`, so that somebody's own files beside it are left alone.
    """
    drawn = sorted(name for name in written if PurePath(name).suffix in (".pdf", ".svg"))
    listed = folder / PICTURES
    for name in listed.read_text().splitlines() if listed.is_file() else ():
        path = PurePath(name)
        if name not in drawn and len(path.parts) == 2 and path.parts[0] in FOLDERS and path.suffix in (".pdf", ".svg"):
            (folder / name).unlink(missing_ok=True)
    write_whole(listed, "".join(f"{name}\n" for name in drawn))


def of_prefixes(results: Results) -> str:
    """The prefixes that runs begin with, in Markdown; they are no cells of the table."""
    rows = [
        f"| {p['id']} | {p['seed']} | {markdown_cell(str(p['rule']))} | {p['shared']} | {p['rounds']} | {p['state']} |"
        for p in records(results.prefixes)
    ]
    head = "\nPrefixes, run once for the runs that begin with them:\n\n| prefix | seed | rule | runs | rounds | state |\n"
    return f"{head}|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


def of_pools(results: Results) -> str:
    """What is to be said of runs that lie in several pools, in Markdown."""
    return "".join(f"\n{markdown_cell(note)}\n" for note in results.notes)


def of_machines(names: list[str]) -> dict[str, list[str]]:
    """A column of machines, where there are several."""
    return {ran_on.COLUMN.replace(" ", "_"): names} if names else {}


# ---- the page, section by section ------------------------------------------------------------------------------------


def page(shown: Shown) -> str:
    """The HTML page. Each of `SECTIONS` gives what its part of the template reads."""
    environment = Environment(
        loader=PackageLoader("fl_lightning.experiments", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    given: dict[str, Any] = {}
    for section in SECTIONS:
        given |= section(shown)
    return environment.get_template("report.html.jinja").render(given)


def overview(shown: Shown) -> dict[str, Any]:
    """Title, and how many runs are in which state."""
    results = shown.results
    states = results.runs["state"].value_counts()
    return {
        "title": results.title,
        "axes": results.axes,
        "seeds": results.seeds,
        "states": {str(state): int(states.get(state, 0)) for state in State if states.get(state, 0)},
    }


def table_of_cells(shown: Shown) -> dict[str, Any]:
    """The long table."""
    return {"columns": list(shown.table.columns), "rows": shown.table.to_numpy().tolist()}


def lifespans(shown: Shown) -> dict[str, Any]:
    """How long backdoors live."""
    lives = shown.lives
    return {"lives": None if lives is None else {"columns": list(lives.columns), "rows": lives.to_numpy().tolist()}}


def first_rounds(shown: Shown) -> dict[str, Any]:
    """The prefixes that runs begin with."""
    return {"prefixes": records(shown.results.prefixes)}


def unfinished(shown: Shown) -> dict[str, Any]:
    """What failed or stopped, and why."""
    runs = records(shown.results.runs)
    by_state = {state: [run for run in runs if run["state"] == state] for state in (State.FAILED, State.STOPPED)}
    return {"failures": by_state[State.FAILED], "stopped": by_state[State.STOPPED]}


def figures(shown: Shown) -> dict[str, Any]:
    """The figures for a paper: rules over each other by round, and the others."""
    overlays = [picture for picture in shown.pictures if picture.kind == "by_round"]
    others = [picture for picture in shown.pictures if picture.kind in ("by_rule", "against")]
    return {"overlays": overlays, "pictures": others}


def league(shown: Shown) -> dict[str, Any]:
    """Rules against attacks, a board per measure."""
    return {"boards": shown.boards}


def under_worst_attacks(shown: Shown) -> dict[str, Any]:
    """Each rule at the setting that is best under its worst attack."""
    heads, rows = ([], []) if shown.worst is None else worst_report.rows(shown.worst, shown.results.axes)
    worst = [picture for picture in shown.pictures if picture.kind == "worst_case"]
    return {"worst_heads": heads, "worst_rows": rows, "worst_pictures": worst, "plan": shown.results.worst_case}


def by_setting(shown: Shown) -> dict[str, Any]:
    """Acc and ASR by the values of axes of numbers."""
    return {"sensitivities": shown.sensitivities}


def by_cell(shown: Shown) -> dict[str, Any]:
    """Curves and configurations of each cell."""
    results = shown.results
    cells = [{"name": results.label(i), "runs": list(configurations(results.group(i)))} for i in range(len(results.cells))]
    return {"cells": cells, "curves": shown.curves, "most_cells": MOST_CELLS}


def where_it_ran(shown: Shown) -> dict[str, Any]:
    """Machines and versions, and where runs of several machines contradict each other."""
    found = machines([folder.record for folder in shown.results.folders])
    return {"machines": found, "notes": shown.results.notes}


def detection(shown: Shown) -> dict[str, Any]:
    """Which clients the rule turned away, of runs that recorded it."""
    return {"detection": shown.detection}


SECTIONS: tuple[Callable[[Shown], dict[str, Any]], ...] = (
    overview,
    league,
    figures,
    table_of_cells,
    lifespans,
    under_worst_attacks,
    first_rounds,
    unfinished,
    by_setting,
    by_cell,
    detection,
    where_it_ran,
)


def configurations(folders: list[RunFolder]) -> Iterator[dict[str, str]]:
    """Folder, state, digest of the final weights and settings of each run."""
    for folder in folders:
        config = without_digest(own_file(folder.config).read_text(errors="replace")) if folder.config.exists() else ""
        if config and altered(folder.config):
            config = f"# damaged or edited: this is not what was written, and what the run had is in its run.json\n{config}"
        digest = folder.record.get("weights_sha256") or ""
        yield {"id": folder.path.name, "state": str(folder.state), "digest": digest, "config": config}


def machines(records: list[dict[str, Any]]) -> list[Machine]:
    """The different machines and versions among the runs' records, each with the number of runs."""
    found: dict[tuple[str, str, int], int] = {}
    for record in records:
        if "hardware" in record:
            hardware = ", ".join(f"{name} {value}" for name, value in record["hardware"].items())
            versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
            key = hardware, versions, int(record["world_size"])
            found[key] = found.get(key, 0) + 1
    return [Machine(*key, runs) for key, runs in found.items()]


def times(results: Results) -> str:
    """Seconds per phase, client updates per second and peak memory of every run, as CSV."""
    rows = []
    for run, folder in zip(records(results.runs), results.folders, strict=True):
        record = folder.record
        row = {name: run[name] for name in (*results.axes, "seed", "id")}
        row |= {f"{phase}_seconds": seconds for phase, seconds in record.get("seconds", {}).items()}
        row |= {name: record.get(name) for name in ("client_updates_per_second", "peak_memory_bytes", "world_size")}
        rows.append(row)
    return as_csv(pd.DataFrame(rows))
