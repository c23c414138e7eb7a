"""What the benchmarks printed, as the page docs/performance.md, as its picture, and as tables of every row.

    python -m benchmarks.report                 # writes docs/performance.md and docs/performance.png from benchmarks/results
    python -m benchmarks.report rows.jsonl      # prints the tables of these rows

`benchmarks/results/DATE-MACHINE.jsonl` holds rows as they were printed. On the page a machine's newer rows take the place of
its older ones, which stay in their file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS, COMPILED, READ = "fl_lightning", "fl_lightning, compiled", "one read"

PAGE = """\
# Performance

What rules and rounds cost here, beside the fastest of the other packages and hand-written loops that were measured in the same
turn. A *ratio* of 3 means that we take a third of their time. The *limit* is the time of one read of all updates, which no rule
can beat, as a share of ours.

![Ratios of what others take to what we take](performance.png)

{table}

Medians; in brackets the distance between the quartiles as a share of the median. Seconds differ between hours of a machine by
up to half, ratios much less. Peers: ByzFL, Flower, pfl-research and FedJAX, in the versions that stand in the rows.

{machines}

[Every figure](explanation/figures.md) is there as a table, and [what lies behind them](explanation/speed.md) in words. This
page and its picture are written by `python -m benchmarks.report` from the lines in `benchmarks/results`.
"""


# ---- rows ------------------------------------------------------------------------------------------------------------


def read(files: list[Path]) -> list[Row]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.startswith("{")]


def by_machine() -> dict[str, list[Row]]:
    """The rows of each machine, those of its newest file first."""
    found: dict[str, list[Row]] = {}
    for file in sorted(RESULTS.glob("*.jsonl"), reverse=True):
        found.setdefault(file.stem[len("2026-01-01-") :], []).extend(read([file]))
    return dict(sorted(found.items()))


def matching(rows: list[Row], wanted: Mapping[str, Any]) -> list[Row]:
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def spread(value: Mapping[str, float] | None, factor: float = 1.0) -> str:
    """Median, and quartile spread in brackets; nothing where nothing was measured."""
    return "" if value is None else f"{factor * value['median']:.4g} ({value['spread']:.2f})"


# ---- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A row of the page: what was measured, ours, the best of the others, how many times as long that takes, the limit."""

    what: str
    ours: str
    peer: str
    ratio: float
    limit: float | None

    def cells(self) -> list[str]:
        limit = "" if self.limit is None else f"{self.limit:.2g}"
        return [self.what, self.ours, self.peer, f"{self.ratio:.3g}", limit]


COMPARED: list[tuple[str, str, int, int, str]] = [  # machine, rule, clients, coordinates, who of ours
    ("epyc-zen3", "trimmed mean", 20, 1_000_000, OURS),
    ("epyc-zen3", "median", 20, 1_000_000, OURS),
    ("epyc-zen3", "Krum", 20, 1_000_000, OURS),
    ("epyc-zen3", "Multi-Krum", 20, 1_000_000, OURS),
    ("epyc-zen3", "geometric median", 20, 1_000_000, OURS),
    ("epyc-zen3", "Invariant", 20, 1_000_000, OURS),
    ("epyc-zen3", "Invariant", 20, 1_000_000, COMPILED),
    ("epyc-zen3", "Invariant", 20, 11_173_962, COMPILED),
    ("epyc-zen3", "trimmed mean", 100, 1_000_000, OURS),
]


def of_rules(machines: Mapping[str, list[Row]]) -> Iterator[Line]:
    for machine, rule, clients, coordinates, who in COMPARED:
        wanted = {"benchmark": "peers", "work": rule, "clients": clients, "coordinates": coordinates}
        ours = matching(machines[machine], wanted | {"who": who})[0]
        turn = matching(machines[machine], wanted | {"run": ours["run"], "date": ours["date"]})
        factor = ours["of_ours"]["median"]
        others = [row for row in turn if row["who"] not in (OURS, COMPILED, READ)]
        best = min(others, key=lambda row: row["of_ours"]["median"])
        (floor,) = [row for row in turn if row["who"] == READ]
        yield Line(
            f"{rule}{', compiled' if who == COMPILED else ''}, {clients} x {coordinates:,}",
            f"{spread(ours['seconds'], 1e3)} ms",
            best["who"],
            best["of_ours"]["median"] / factor,
            floor["of_ours"]["median"] / factor,
        )


def of_rounds(machines: Mapping[str, list[Row]]) -> Iterator[Line]:
    for network in ("MLP", "CNN"):
        wanted = {"benchmark": "peers", "work": f"rounds, {network}"}
        ours = matching(machines["epyc-zen3"], wanted | {"who": OURS})[0]
        turn = matching(machines["epyc-zen3"], wanted | {"date": ours["date"]})
        best = min((row for row in turn if row["who"] != OURS), key=lambda row: row["of_ours"]["median"])
        rate = f"{spread(ours['updates_per_second'])} clients/s"
        yield Line(f"a round of the {network}, one core", rate, best["who"], best["of_ours"]["median"], None)
    loop = matching(machines["h100"], {"benchmark": "rounds", "run": "places refilled"})[0]
    rate = f"{spread(loop['federation_updates_per_second'])} clients/s"
    yield Line("a round of ResNet-18, H100", rate, "hand-written loop", loop["ratio"]["median"], None)
    kernel = {"benchmark": "aggregators", "clients": 20, "coordinates": 11_173_962}
    names = ("Invariant, compiled", "torch.sort, trimmed mean", READ)
    ours, sort, floor = (matching(machines["h100"], kernel | {"rule": name})[0] for name in names)
    seconds = ours["seconds"]["median"]
    yield Line(
        "Invariant, compiled, 20 x 11,173,962, H100",
        f"{spread(ours['seconds'], 1e3)} ms",
        "torch.sort, trimmed mean",
        sort["seconds"]["median"] / seconds,
        floor["seconds"]["median"] / seconds,
    )


def lines() -> list[Line]:
    machines = by_machine()
    return [*of_rules(machines), *of_rounds(machines)]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])


def page() -> str:
    """docs/performance.md."""
    table = markdown(["what", "ours", "best peer", "ratio", "limit"], [line.cells() for line in lines()])
    machines = []
    for name, rows in by_machine().items():
        first = rows[0]
        at = f"{first['device']}, {first['cores']} cores; Python {first['python']}, torch {first['torch']}"
        machines.append(f"- `{name}`: {at}, Lightning {first['lightning']}; {first['date']}")
    return PAGE.format(table=table, machines="\n".join(machines))


def draw(picture: Path) -> None:
    """How many times as long as we the best of the others takes, a bar for each row of the page."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = lines()[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(shown) + 0.8), layout="constrained")
    bars = axes.barh([line.what for line in shown], [line.ratio for line in shown], color="tab:blue")
    axes.bar_label(bars, [f"{line.ratio:.3g} x  {line.peer}" for line in shown], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlim=(0.8, 400), xlabel="time of the best peer, of ours")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110, metadata={"Software": None})
    plt.close(figure)


# ---- every row -------------------------------------------------------------------------------------------------------


COLUMNS: dict[str, dict[str, Callable[[Row], Any]]] = {
    "peers: rules": {
        "run": lambda row: row.get("run", ""),
        "rule": lambda row: row["work"],
        "updates": lambda row: f"{row['clients']} x {row['coordinates']:,}",
        "who": lambda row: row["who"],
        "ms": lambda row: spread(row.get("seconds"), 1e3),
        "of ours": lambda row: spread(row["of_ours"]),
    },
    "peers: rounds": {
        "network": lambda row: row["work"].removeprefix("rounds, "),
        "who": lambda row: row["who"],
        "client updates/s": lambda row: spread(row["updates_per_second"]),
        "time, of ours": lambda row: spread(row["of_ours"]),
    },
    "rounds": {
        "run": lambda row: row.get("run", ""),
        "task": lambda row: row["task"],
        "rule": lambda row: row["rule"],
        "asked for": lambda row: row["asked"],
        "taken": lambda row: row["executor"],
        "loop": lambda row: spread(row["plain_updates_per_second"]),
        "Federation": lambda row: spread(row["federation_updates_per_second"]),
        "ratio": lambda row: spread(row["ratio"]),
        "difference": lambda row: f"{row['largest_difference']:.0e}" if "largest_difference" in row else "",
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
        "of FedAvg": lambda row: row.get("of_fedavg", ""),
        "of one read": lambda row: row.get("of_one_read", ""),
        "of torch.sort": lambda row: row.get("of_torch_sort", ""),
        "peak MB": lambda row: row.get("peak_mb", ""),
    },
    "memory": {
        "clients": lambda row: row["clients"],
        "coordinates": lambda row: f"{row['coordinates']:,}",
        "rule": lambda row: row["rule"],
        "predicted MB": lambda row: f"{row['predicted_mb']:,.0f}",
        "measured MB": lambda row: f"{row['measured_mb']:,.0f}" if "measured_mb" in row else "refused before it began",
        "ratio": lambda row: row.get("ratio", ""),
        "of K_r d + N bucket": lambda row: row.get("of_law", ""),
    },
    "many_clients": {
        "run": lambda row: row.get("run", ""),
        "clients": lambda row: f"{row['clients']:,}",
        "a round, ms": lambda row: spread(row["round_seconds"], 1e3),
        "ratio": lambda row: spread(row["ratio"]),
        "start, ms": lambda row: f"{row['start_seconds'] * 1e3:.0f}",
        "dealing out, s": lambda row: spread(row["dealing_seconds"]),
        "it takes, MB": lambda row: f"{row['dealing_bytes'] / 1e6:.0f}",
        "data, MB": lambda row: f"{row['data_bytes'] / 1e6:.1f}",
        "process at most, MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
        "checkpoint, kB": lambda row: f"{row['checkpoint_bytes'] / 1e3:.1f}",
        "record a round, kB": lambda row: f"{row['record_bytes'] / 1e3:.1f}",
    },
    "run": {
        "run": lambda row: row["run"],
        "clients side by side": lambda row: row["places"],
        "part": lambda row: row["part"],
        "s": lambda row: row["seconds"],
    },
}
"""By benchmark, the columns of its table."""


def kind(row: Row) -> str:
    """The table that a row belongs to; none for what has no table, such as errors."""
    if "error" in row:
        return ""
    return f"peers: {'rounds' if 'updates_per_second' in row else 'rules'}" if row["benchmark"] == "peers" else row["benchmark"]


def tables(rows: list[Row], level: str = "##") -> str:
    """A table for every kind of row."""
    found = []
    for name, columns in COLUMNS.items():
        of_kind = [row for row in rows if kind(row) == name]
        if of_kind:
            body = [[str(cell(row)) for cell in columns.values()] for row in of_kind]
            found.append(f"{level} {name}\n\n{markdown(list(columns), body)}\n")
    return "\n".join(found)


def figures() -> str:
    """A page of every row in benchmarks/results, by machine."""
    head = "# Every figure\n\nMedians, in brackets the quartiles' distance as a share of the median; see [](speed.md).\n"
    files = sorted(RESULTS.glob("*.jsonl"))
    return "\n".join([head, *(f"## {file.stem}\n\n{tables(read([file]), '###')}" for file in files)])


def main() -> None:
    parser = argparse.ArgumentParser(description="The page about performance, or tables of rows.")
    parser.add_argument("rows", type=Path, nargs="*", help="files of JSON lines, to print as tables")
    options = parser.parse_args()
    if options.rows:
        print(tables(read(options.rows)))
    else:
        (ROOT / "docs" / "performance.md").write_text(page())
        draw(ROOT / "docs" / "performance.png")


if __name__ == "__main__":
    main()
