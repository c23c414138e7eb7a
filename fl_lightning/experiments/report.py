"""A sweep's report: tables, curves and one page of HTML that needs no network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from fl_lightning.experiments.figures import curves, numeric_axes, same_bytes, sensitivity, svg
from fl_lightning.experiments.plain_text import as_csv, markdown_cell
from fl_lightning.experiments.results import Results, records
from fl_lightning.experiments.run_folder import RunFolder, State
from fl_lightning.experiments.tables import latex, markdown, table
from fl_lightning.files.run_files import own_file, write_whole
from fl_lightning.files.sealed import altered, without_digest

FILES = ("report.html", "table.md", "table.tex", "cells.csv", "runs.csv", "times.csv")
"""What a report consists of. All but `times.csv` depend on the runs' results alone, so the same results give the same bytes."""


@dataclass(frozen=True)
class Machine:
    """A machine and what ran on it."""

    hardware: str
    versions: str
    ranks: int
    runs: int


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write the files of `FILES`, and `curves/<cell>.svg` and `sensitivity/<axis>.svg`, into a folder; returns their paths.

    Runs that have not finished stand in the tables as what they are; their curves are shown as far as they go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = table(results)
    with same_bytes():
        cell_curves = [svg(curves(results.group(cell), "")) for cell in range(len(shown))]
        sensitivities = {axis: svg(sensitivity(results, axis)) for axis in numeric_axes(results)}
    written = {
        "table.md": f"# {markdown_cell(results.title)}\n\n{markdown(shown)}\n{of_prefixes(results)}",
        "table.tex": latex(shown, results.title),
        "cells.csv": as_csv(results.cells),
        "runs.csv": as_csv(results.runs),
        "times.csv": times(results),
        "report.html": page(results, shown, cell_curves, sensitivities),
    }
    written |= {f"curves/{cell:03d}.svg": picture for cell, picture in enumerate(cell_curves)}
    written |= {f"sensitivity/{axis}.svg": picture for axis, picture in sensitivities.items()}
    for name, text in written.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_whole(folder / name, text)
    return [folder / name for name in written]


def of_prefixes(results: Results) -> str:
    """The prefixes that runs begin with, in Markdown; they are no cells of the table."""
    rows = [
        f"| {p['id']} | {p['seed']} | {markdown_cell(str(p['rule']))} | {p['shared']} | {p['rounds']} | {p['state']} |"
        for p in records(results.prefixes)
    ]
    head = "\nPrefixes, run once for the runs that begin with them:\n\n| prefix | seed | rule | runs | rounds | state |\n"
    return f"{head}|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


def page(results: Results, shown: pd.DataFrame, cell_curves: list[str], sensitivities: dict[str, str]) -> str:
    """The HTML page; `shown` is the table."""
    environment = Environment(
        loader=PackageLoader("fl_lightning.experiments", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    states = results.runs["state"].value_counts()
    return environment.get_template("report.html.jinja").render(
        title=results.title,
        columns=list(shown.columns),
        rows=shown.to_numpy().tolist(),
        axes=results.axes,
        states={str(state): int(states.get(state, 0)) for state in State if states.get(state, 0)},
        cells=[
            {"name": results.label(i), "curve": cell_curves[i], "runs": list(configurations(results.group(i)))}
            for i in range(len(shown))
        ],
        sensitivities=sensitivities,
        seeds=results.seeds,
        prefixes=records(results.prefixes),
        failures=[run for run in records(results.runs) if run["state"] == State.FAILED],
        stopped=[run for run in records(results.runs) if run["state"] == State.STOPPED],
        machines=machines([folder.record for folder in results.folders]),
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
