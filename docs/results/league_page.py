"""Collect the league's runs, and write its pages' tables and heat maps.

python docs/results/league_page.py RUNS [RUNS ...]      # of `sweep --runs`, or files of `pack`: into league.csv, too
python docs/results/league_page.py                      # pages and pictures alone, from league.csv

Blocks between `<!-- from league.csv: NAME -->` and `<!-- end -->` are written by this script, the rest by hand.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import blocks
import pandas as pd
from matplotlib.figure import Figure

from fl_lightning.experiments.figures import same_bytes, svg
from fl_lightning.experiments.final import Final
from fl_lightning.experiments.league import acc_lost, attacked
from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.paper_figures import value_map
from fl_lightning.experiments.results import read_results
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.experiments.tables import markdown, number

HERE = Path(__file__).parent
SWEEPS = HERE.parents[1] / "configs" / "sweeps" / "league"
TASKS = {"phishing": "Phishing, stand-in", "digits": "Digits", "cifar10": "CIFAR-10"}
KEYS = ["task", "rule", "attack", "seed"]
COLUMNS = [*KEYS, "state", "acc", "asr_end", "asr_last", "acc_lost", "auroc", "lived", "lived_most", "seconds", "run"]
MEASURES = {
    "asr": ("asr_end", "ASR right after the last attack"),
    "acc_lost": ("acc_lost", "Acc lost against the same rule without attack"),
    "auroc": ("auroc", "AUROC of the rule's verdict"),
    "lifespan": ("lived", "Rounds before ASR first fell to .5"),
}
"""What is drawn of a task, by the end of the picture's name: column and title."""

DRAWN = ("phishing", "digits")
"""Tasks that have heat maps: those that are complete, as each map has half a megabyte."""

OPEN = 0.5
"""The ASR from which on an attack has got through, where its trigger has none untaught."""

UNTAUGHT = {"untaught": "digits"}
"""By the task that rows of untaught.yaml have, the one that they tell of."""

BY_SEED = ("FreqFed", "MultiMetrics", "RFLBAT", "SignSGD", "DnC", "FoolsGold", "AndMask", "Invariant")
"""Rules of which league_surprises.md speaks seed by seed."""

UNTARGETED = ["ALIE", "IPM", "MinMax", "MinSum", "GaussianNoise"]

NONE = "none"
"""The attack of those that nobody attacks."""


def collect(roots: list[Path]) -> pd.DataFrame:
    """A row per finished run of any sweep in these folders whose name ends in `-` and a task, as those of the league do."""
    found = [of_sweep(file.parent, root) for root in roots for file in sorted(root.glob("sweeps/*/sweep.json"))]
    frame = pd.concat(found, ignore_index=True)
    return frame[frame["state"] == "finished"].drop_duplicates(KEYS)[COLUMNS].sort_values(KEYS)


def of_sweep(folder: Path, root: Path) -> pd.DataFrame:
    """The runs of a sweep."""
    results = read_results(folder, root / "pool")
    runs = results.runs
    seconds = [sum(run.record.get("seconds", {}).values()) for run in results.folders]
    told = {
        "task": results.name.rpartition("-")[2],
        "asr_end": attacked(results, Final.LAST),
        "asr_last": runs["asr"],
        "acc_lost": acc_lost(results, Final.LAST),
        "auroc": runs.get("detection_auroc", math.nan),
        "lived": runs.get("lifespan_first_fall", math.nan),
        "lived_most": runs.get("lifespan_first_fall_most", math.nan),
        "seconds": seconds,
        "run": runs["id"],
    }
    return runs.assign(**told)


# ---- the pages -------------------------------------------------------------------------------------------------------


def board(frame: pd.DataFrame, task: str, column: str) -> pd.DataFrame:
    """Means over the seeds that are finished, rules by attacks, in the order of the sweep's file; NaN where none is."""
    part = frame[(frame["task"] == task) & frame[column].notna()]
    cells = read_sweep(SWEEPS / f"{task}.yaml").cells
    rules, attacks = (list(dict.fromkeys(cell.labels[axis] for cell in cells)) for axis in ("rule", "attack"))
    table = part.pivot_table(index="rule", columns="attack", values=column, aggfunc="mean")
    return table.reindex([rule for rule in rules if rule in table.index])[[name for name in attacks if name in table.columns]]


def heat_map(frame: pd.DataFrame, task: str, name: str) -> Figure:
    """A board as a picture."""
    column, title = MEASURES[name]
    table = board(frame, task, column)
    most = float(table.max().max()) if name == "lifespan" else 1.0
    shown = table.map(lambda value: "-" if math.isnan(value) else f"{value:.0f}" if name == "lifespan" else number(value))
    rows, columns = ("rule", list(table.index)), ("attack", list(table.columns))
    return value_map(table.to_numpy(), rows, columns, title, most=most, texts=shown.to_numpy().tolist())


def untaught(frame: pd.DataFrame, task: str) -> pd.Series:
    """By attack, the ASR that its trigger has if nobody teaches a model what it means; of those that were run so."""
    rows = frame[frame["task"].map(UNTAUGHT) == task]
    return rows.groupby("attack")["asr_end"].mean()


def least(frame: pd.DataFrame, task: str, attacks: pd.Index) -> pd.Series:
    """The ASR from which on attacks have got through: half or more of what is left to be taught."""
    return OPEN + (1 - OPEN) * untaught(frame, task).reindex(attacks).fillna(0.0)


def got_through(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """Rules by attacks: whether they have, by the mean ASR; NaN where nothing was run."""
    asr = board(frame, task, "asr_end").drop(columns=NONE, errors="ignore")
    return (asr >= least(frame, task, asr.columns)).where(asr.notna())


def by_rule(frame: pd.DataFrame, task: str) -> str:
    """What each rule withstood, over the attacks that were run; the lowest of the highest ASR of a single run first."""
    asr, lost, auroc, lived = (
        board(frame, task, column).drop(columns=NONE, errors="ignore") for column, _ in MEASURES.values()
    )
    through = got_through(frame, task)
    quiet = frame[(frame["task"] == task) & (frame["attack"] == NONE)].groupby("rule")["acc"].mean()
    single = frame[(frame["task"] == task) & (frame["attack"] != NONE)].groupby("rule")["asr_end"].max()
    lines: list[dict[str, Any]] = []
    for rule in single.sort_values(kind="stable").index:
        line = {
            "rule": rule,
            "in one run": number(single[rule]),
            "worst attack": worst(asr, rule),
            "attacks that get through": of_those(through.loc[rule]),
        }
        line |= {"Acc without attack": number(quiet.get(rule, math.nan)), "most Acc lost": worst(lost, rule)}
        line["AUROC, mean"] = number(auroc.loc[rule].mean()) if rule in auroc.index else "-"
        lines.append(line | {"longest life": f"{lived.loc[rule].max():.0f}" if rule in lived.index else "-"})
    names = {"in one run": "highest ASR of a run", "worst attack": "highest mean ASR"}
    return markdown(pd.DataFrame(lines).rename(columns=names))


def of_those(through: pd.Series) -> str:
    """How many have got through, of how many that were run."""
    return f"{int(through.sum())} of {through.count()}"


def worst(table: pd.DataFrame, rule: str) -> str:
    """The largest value of a rule and whose it is."""
    row = table.T[rule].dropna() if rule in table.index else pd.Series(dtype=float)
    told = "-" if row.empty else number(row.max())
    return told if told in ("-", number(0.0), number(-0.0)) else f"{told}, {row.idxmax()}"


def by_attack(frame: pd.DataFrame, task: str) -> str:
    """What each attack achieved, over the rules that were run against it."""
    asr, auroc = (board(frame, task, column).drop(columns=NONE, errors="ignore") for column in ("asr_end", "auroc"))
    through, alone = got_through(frame, task), untaught(frame, task)
    lines = []
    for attack in asr.columns:
        line = {"attack": attack, "rules that it gets through": of_those(through[attack])}
        line |= {"ASR, median rule": number(asr[attack].median())}
        if len(alone):
            line["ASR untaught"] = number(alone[attack]) if attack in alone.index else "-"
        line["AUROC, median rule"] = number(auroc[attack].median()) if attack in auroc.columns else "-"
        line["which rules"] = ", ".join(through.index[through[attack].fillna(False).astype(bool)]) or "-"
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def surprises(frame: pd.DataFrame) -> str:
    """The figures behind what league_surprises.md says, a column per task."""
    told = {TASKS[task]: figures(frame, task) for task in DRAWN}
    names = dict.fromkeys(name for of_task in told.values() for name in of_task)
    rows = [[name, *(of_task.get(name, "-") for of_task in told.values())] for name in names]
    return markdown(pd.DataFrame(rows, columns=["what", *told]))


def figures(frame: pd.DataFrame, task: str) -> dict[str, str]:
    """What surprised on a task, by what is told."""
    asr, lost, auroc, _ = (board(frame, task, column).drop(columns=NONE, errors="ignore") for column, _ in MEASURES.values())
    through = got_through(frame, task)
    runs = frame[(frame["task"] == task) & (frame["attack"] != NONE)]
    runs = runs.assign(through=runs["asr_end"] >= runs["attack"].map(least(frame, task, asr.columns)))
    few, many = sorted(rule for rule in asr.index if rule.startswith("MultiKrum f"))

    def opened(*rules: str) -> str:
        return "; ".join(of_those(through.T[rule]) for rule in rules)

    def by_seed(rule: str) -> str:
        of_rule = runs[runs["rule"] == rule]
        return ", ".join(str(count) for count in of_rule["through"].groupby(of_rule["seed"]).sum())

    def highest(*rules: str) -> str:
        return "; ".join(worst(asr, rule) for rule in rules)

    costly, of_runs = lost["SignFlip"], runs.set_index(["attack", "seed"])
    alike = of_runs[of_runs["rule"] == "DeepSight"]["asr_end"] == of_runs[of_runs["rule"] == "NormClipping"]["asr_end"]
    tuned = {attack: of_none for attack, of_none in untaught(frame, task).items() if attack in ("IBA", "A3FL", "EdgeCase")}
    under = "untaught; under the rule that holds best, the median rule, the invariant aggregator, the trimmed mean"
    alone = {
        f"{attack}: ASR {under}": "; ".join(map(number, (of_none, of.min(), of.median(), of["Invariant"], of["TrimmedMean"])))
        for attack, of_none in tuned.items()
        for of in [asr[attack]]
    }
    quiet = frame[(frame["task"] == task) & (frame["attack"] == NONE)].groupby("rule")["acc"].mean()
    return {
        "a trimmed mean alone, and behind buckets of two: attacks that get through": opened("TrimmedMean", "Bucketing"),
        "Multi-Krum told of half the attackers, of all, of half as many again: attacks that get through": opened(
            few, "MultiKrum", many
        ),
        **{f"{rule}: attacks that get through, by seed": by_seed(rule) for rule in BY_SEED},
        "ALIE, IPM, MinMax, MinSum, GaussianNoise: highest ASR under any rule": number(asr[UNTARGETED].max().max()),
        "SignFlip: Acc lost under FedAvg, under FLDetector, and under the next": "; ".join(
            [number(costly["FedAvg"]), number(costly["FLDetector"]), number(costly.drop(["FedAvg", "FLDetector"]).max())]
        ),
        "MinSum: rules with an AUROC, and those with one below .4": "; ".join(
            [str(auroc["MinSum"].count()), str((auroc["MinSum"] < 0.4).sum())]
        ),
        "FLDetector and FedAvg: attacks that get through": opened("FLDetector", "FedAvg"),
        "FLDetector: highest AUROC under any attack": number(auroc.T["FLDetector"].max()),
        "runs under attack in which DeepSight has the ASR of NormClipping": f"{alike.sum()} of {alike.count()}",
        "highest mean ASR under the invariant aggregator, the trimmed mean, the mask alone": highest(
            "Invariant", "TrimmedMean", "AndMask"
        ),
        "these: attacks that get through": opened("Invariant", "TrimmedMean", "AndMask"),
        "attacks under which the first, and the second of these has the lower ASR": "; ".join(
            f"{(asr.loc[one] < asr.loc[other]).sum()} of {asr.shape[1]}"
            for one, other in (("Invariant", "TrimmedMean"), ("TrimmedMean", "Invariant"))
        ),
        "MaskedReplacement: highest ASR under any rule": worst(asr.T, "MaskedReplacement"),
        "Lockdown: attacks that get through; its Acc without attack, and FedAvg's": "; ".join(
            [opened("Lockdown"), number(quiet["Lockdown"]), number(quiet["FedAvg"])]
        ),
        **alone,
    }


def progress(frame: pd.DataFrame) -> str:
    """Planned and finished runs, and what they took."""
    rows = []
    for task, title in TASKS.items():
        sweep = read_sweep(SWEEPS / f"{task}.yaml")
        part = frame[frame["task"] == task]
        rules, attacks = (len({cell.labels[axis] for cell in sweep.cells}) for axis in ("rule", "attack"))
        planned = len(sweep.cells) * len(sweep.seeds)
        seeds = ", ".join(f"{seed}: {count}" for seed, count in part["seed"].value_counts().sort_index().items()) or "-"
        hours = f"{part['seconds'].sum() / 3600:.2f}"
        rows.append([title, rules, attacks, planned, len(part), seeds, planned - len(part), hours])
    names = ["task", "rows of rules", "attacks (with none)", "runs", "finished", "by seed", "pending", "hours of training"]
    return markdown(pd.DataFrame(rows, columns=names).astype(str))


def pictures(_: pd.DataFrame, task: str) -> str:
    """The heat maps of a task."""
    return "\n\n".join(f"![{title}](league_{task}_{name}.svg)" for name, (_, title) in MEASURES.items())


PAGES: dict[str, dict[str, Callable[[pd.DataFrame], str]]] = {
    "league.md": {"progress": progress},
    "league_surprises.md": {"surprises": surprises},
    **{
        f"league_{task}.md": {"by rule": partial(by_rule, task=task), "by attack": partial(by_attack, task=task)}
        | ({"pictures": partial(pictures, task=task)} if task in DRAWN else {})
        for task in ("phishing", "digits")
    },
}
"""What writes each block, by page."""


def written(page: str, frame: pd.DataFrame) -> str:
    """A page with its blocks as the table has them."""
    found = {name: partial(block, frame) for name, block in PAGES[page].items()}
    return blocks.written((HERE / page).read_text(), "league.csv", found)


def runs() -> pd.DataFrame:
    """The table, a row per finished run."""
    return pd.read_csv(HERE / "league.csv", keep_default_na=False, na_values=[""])  # an attack is called none


def main(*roots: str) -> None:
    if roots:
        found = pd.concat([collect([root_of(Path(root)) for root in roots]), runs()]).drop_duplicates(KEYS)
        found.sort_values(KEYS).to_csv(HERE / "league.csv", index=False, float_format="%.5g")
    frame = runs()
    for page in PAGES:
        (HERE / page).write_text(written(page, frame))
    with same_bytes():
        for task in DRAWN:
            for name in MEASURES:
                (HERE / f"league_{task}_{name}.svg").write_text(svg(heat_map(frame, task, name)))


if __name__ == "__main__":
    main(*sys.argv[1:])
