"""Write the tables of measured results into their pages, from the CSV files beside this one and packed runs.

python docs/results/tables_page.py

`paper.csv` has a row per cell of the paper's tables that was run, but for the tables of phishing, whose runs are packed: means,
sample standard deviations and ASR by seed of the last round, means of the last evaluations, ten at most, and their least and
largest ASR. The paper's own values are those of the files in configs/sweeps.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import blocks
import pandas as pd

from fl_lightning.experiments.packs import root_of
from fl_lightning.experiments.results import Results, read_results
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.experiments.tables import markdown, number, pair

HERE = Path(__file__).parent
SWEEPS = HERE.parents[1] / "configs" / "sweeps"


def cells() -> pd.DataFrame:
    """The table, a row per cell."""
    return pd.read_csv(HERE / "paper.csv", dtype={"table": str}, keep_default_na=False, na_values=[""])


def published(task: str, table: str) -> dict[str, dict[str, float]]:
    """Acc and ASR in the paper by a row's label."""
    sweep = read_sweep(SWEEPS / task / f"table{table}.yaml")
    return {next(iter(cell.labels.values())): cell.paper for cell in sweep.cells}


def spread(row: dict[str, Any], measure: str) -> str:
    """A mean and its deviation over the seeds, of one that has several."""
    deviation = row[f"{measure}_sd"]
    return number(row[measure]) + ("" if math.isnan(deviation) else f" ({number(deviation)})")


def by_seed(row: dict[str, Any]) -> str:
    return " / ".join(number(row[f"asr_{seed}"]) for seed in range(row["n"]))


def rows_of(setting: str, table: str) -> list[dict[str, Any]]:
    """Of `paper.csv`, or of packed runs."""
    if setting == "phishing" and table.isdigit():
        return packed_rows(table)
    frame = cells()
    frame = frame[(frame["setting"] == setting) & (frame["table"] == table)]
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def packed(file: str, sweep: str) -> Results:
    """A sweep of a file of runs."""
    root = root_of(HERE / "runs" / file)
    return read_results(root / "sweeps" / sweep, root / "pool")


# ---- phishing.md -----------------------------------------------------------------------------------------------------


def packed_rows(table: str) -> list[dict[str, Any]]:
    """The cells of a table as rows of `paper.csv`."""
    results = packed("phishing.jsonl.gz", f"phishing-table{table}")
    runs = results.runs[results.runs["state"] == "finished"]
    return [{"row": str(label), **summary(part)} for label, part in runs.groupby(results.axes[0], sort=False)]


def summary(part: pd.DataFrame) -> dict[str, Any]:
    """A cell's runs, a row per seed, in numbers."""
    row: dict[str, Any] = {"n": len(part), **{f"asr_{seed}": asr for seed, asr in zip(part["seed"], part["asr"], strict=True)}}
    row |= {name: part[name].mean() for name in ("acc", "asr", "acc_last10", "asr_last10")}
    return row | {f"{name}_sd": part[name].std() for name in ("acc", "asr")}


def phishing(table: str, axis: str) -> str:
    """One of the paper's tables, with its values, where it has any of phishing, and the differences from them."""
    paper, found = published("phishing", table), rows_of("phishing", table)
    asr = {row["row"]: row["asr"] for row in found}
    lines = []
    for row in found:
        line = {axis: row["row"], "Acc": spread(row, "acc"), "ASR": spread(row, "asr")}
        line |= {"Acc, last 10": number(row["acc_last10"]), "ASR, last 10": number(row["asr_last10"])}
        line |= {"ASR by seed": by_seed(row), "n": str(row["n"])}
        if theirs := paper[row["row"]]:
            line["paper Acc / ASR"] = pair(number(theirs["acc"]), number(theirs["asr"]))
            differences = (number(row[name] - theirs[name], sign=True) for name in ("acc", "asr"))
            line["difference"] = pair(*differences)
        if table == "1":
            reduction = asr["FedAvg"] - row["asr"]
            line["ASR reduction"] = number(reduction, sign=True)
            line["of the excess"] = f"{100 * reduction / (asr['FedAvg'] - asr['no attack']):.1f}%"
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def varied() -> dict[str, dict[str, dict[str, Any]]]:
    """Figure 6: by setting and value the cells that differ from what is shipped in that one alone."""
    results = packed("phishing.jsonl.gz", "phishing-figure6")
    center, runs = results.center, results.runs[results.runs["state"] == "finished"]
    found = {}
    for axis in results.axes:
        others = [other for other in results.axes if other != axis]
        alone = runs[(runs[others] == pd.Series(center)[others]).all(axis=1)]
        found[axis] = {str(value): summary(part) for value, part in alone.groupby(axis, sort=False)}
    return found


def figure6() -> str:
    lines = []
    for axis, values in varied().items():
        for value, row in values.items():
            line = {"setting": axis, "value": value, "Acc": spread(row, "acc"), "ASR": spread(row, "asr")}
            lines.append(line | {"ASR by seed": by_seed(row)})
    return markdown(pd.DataFrame(lines))


def other_rules() -> str:
    rows = rows_of("phishing", "other rules")
    lines = [{"rule": r["row"], "Acc": spread(r, "acc"), "ASR": spread(r, "asr"), "ASR by seed": by_seed(r)} for r in rows]
    return markdown(pd.DataFrame(lines))


# ---- cifar10_cnn.md, cifar10_resnet18.md -----------------------------------------------------------------------------


def cnn() -> str:
    paper, lines = published("cifar10", "1"), []
    for row in rows_of("cifar10, CNN", "1"):
        theirs = paper[row["row"]]
        line = {"rule": row["row"], "Acc / ASR, last round": pair(number(row["acc"]), number(row["asr"]))}
        line["mean of the last ten evaluations, rounds 55 to 100"] = pair(number(row["acc_last10"]), number(row["asr_last10"]))
        line["ASR in these"] = f"{number(row['asr_least'])} to {number(row['asr_most'])}"
        line["paper, last round"] = pair(number(theirs["acc"]), number(theirs["asr"]))
        lines.append(line | {"weights": row["weights"]})
    return markdown(pd.DataFrame(lines))


def resnet() -> str:
    (row,) = rows_of("cifar10, ResNet-18", "1")
    theirs = published("cifar10", "1")[row["row"]]
    lines = [
        ["last round", number(row["acc"]), number(row["asr"])],
        ["mean of the last ten evaluations, rounds 255 to 300", number(row["acc_last10"]), number(row["asr_last10"])],
        ["paper, last round", number(theirs["acc"]), number(theirs["asr"])],
    ]
    return markdown(pd.DataFrame(lines, columns=["", "Acc", "ASR"]))


def resnet_by_round() -> str:
    curve = pd.read_csv(HERE / "cifar10_resnet18.csv")
    lines = [[title, *map(number, curve[name])] for title, name in (("Acc", "acc"), ("ASR", "asr"))]
    return markdown(pd.DataFrame(lines, columns=["round", *map(str, curve["round"])]))


SAMPLES = 300 * 20 * 500
"""What clients of configs/cifar10/cpu.yaml train on in all rounds, at one local epoch."""


def cpu_networks() -> str:
    """What a core does with each network, by the time of its fastest step."""
    lines = []
    for row in pd.read_csv(HERE / "cifar10_cpu_networks.csv").to_dict("records"):
        a_second = 1000 * row["batch"] / row["milliseconds"]
        line = {"network": row["network"], "parameters": f"{row['parameters']:,}", "samples a second": f"{a_second:,.0f}"}
        lines.append(line | {"hours for 300 rounds of one epoch": f"{SAMPLES / a_second / 3600:.1f}"})
    return markdown(pd.DataFrame(lines))


def cpu_choice() -> str:
    """The cells of choose_cpu.yaml that were run."""
    runs = packed("cifar10_cpu.jsonl.gz", "cifar10-choose-cpu").runs
    found = runs[runs["state"] == "finished"]
    lines = [
        {"network": row["network"], "rate": row["rate"], "epochs": row["epochs"], "Acc, round 10": number(row["acc"])}
        for row in found.to_dict("records")
    ]
    return markdown(pd.DataFrame(lines))


def cpu_curves() -> pd.DataFrame:
    """Acc and ASR of runs without attack by `rate`, `epochs` and `round`; the last ones are what was chosen."""
    return pd.read_csv(HERE / "cifar10_cpu.csv", dtype={"rate": str, "epochs": str})


def cpu_forty() -> str:
    """What rates and epochs were chosen by."""
    curves = cpu_curves()
    told = curves[curves["round"].between(25, 40)].groupby(["rate", "epochs"], sort=False)["acc"].mean().map(number)
    return markdown(told.rename("Acc, mean of rounds 25 to 40").reset_index())


def cpu_by_round() -> str:
    """The chosen configuration, every twentieth round and the last one."""
    curves = cpu_curves()
    rate, epochs, last = curves.iloc[-1][["rate", "epochs", "round"]]
    found = curves[(curves["rate"] == rate) & (curves["epochs"] == epochs)]
    found = found[(found["round"] % 20 == 0) | (found["round"] == last)]
    lines = [[title, *map(number, found[name])] for title, name in (("Acc", "acc"), ("ASR", "asr"))]
    return markdown(pd.DataFrame(lines, columns=["round", *map(str, found["round"])]))


# ---- twitter.md ------------------------------------------------------------------------------------------------------


def twitter() -> str:
    """The curve without attack, with the paper's values as its last row."""
    curve, paper = pd.read_csv(HERE / "twitter_full_text.csv"), published("twitter", "1")["no attack"]
    lines = [[f"{row['round']:.0f}", number(row["acc"]), number(row["asr"])] for row in curve.to_dict("records")]
    lines.append(["paper, 300", number(paper["acc"]), number(paper["asr"])])
    return markdown(pd.DataFrame(lines, columns=["round", "Acc", "ASR"]))


# ---- analyses.md -----------------------------------------------------------------------------------------------------


def figure4() -> str:
    lines = []
    for row in pd.read_csv(HERE / "figure4_digits.csv").to_dict("records"):
        line = {
            "p": f"{100 * row['p']:.0f}%",
            "norm of u": f"{row['length']:.2f}",
            "benign loss at 0": f"{row['benign_0']:.3f}",
        }
        for title, name in (("malicious", "malicious"), ("random", "random")):
            line[f"along {title}: at 2 / 4 / 6"] = " / ".join(f"{row[f'{name}_{at}']:.3f}" for at in (2, 4, 6))
        line["backdoor loss along malicious: at 0 / 2 / 4 / 6"] = " / ".join(
            f"{row[f'backdoor_{at}']:.2f}" for at in (0, 2, 4, 6)
        )
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def figure5() -> str:
    lines = []
    for row in pd.read_csv(HERE / "figure5.csv").to_dict("records"):
        losses = [row[f"loss_{name}"] for name in ("before", "malicious", "mimicry")]
        line = {"task": row["task"], "entries above .01": f"{row['large']:,} of {row['parameters']:,}"}
        line |= {"cos(g, g')": number(row["cosine"]), "kept": f"{row['kept']:,}", "cos(g, g~)": number(row["cosine_mimicry"])}
        line["slow-down"] = f"{100 * row['slowdown']:.3g}%"
        shown = "" if math.isnan(losses[0]) else ", ".join(f"{loss:.3f}" for loss in losses)
        lines.append(line | {"backdoor loss: before, after g', after g~": shown})
    return markdown(pd.DataFrame(lines))


def separability() -> str:
    lines = []
    for row in pd.read_csv(HERE / "separability.csv").to_dict("records"):
        others = ", ".join(f"{row[f'benign_{i}']:.2f}" for i in range(1, 6))
        line = {"task": row["task"], "malicious": f"{row['malicious']:.3g}", "benign ones": others}
        line["distance of the malicious model, diameter"] = f"{row['distance']:.3f}, {row['diameter']:.3f}"
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def flatness() -> str:
    frame = pd.read_csv(HERE / "flatness_digits.csv").rename(columns={"flip_rate": "mean flip rate"})
    return markdown(frame.map(lambda value: value if isinstance(value, str) else f"{value:.3f}"))


PAGES: dict[str, dict[str, dict[str, Callable[[], str]]]] = {
    "phishing.md": {
        "runs/phishing.jsonl.gz": {
            "Table 1": partial(phishing, "1", "rule"),
            "Table 4": partial(phishing, "4", "rule"),
            "Table 5": partial(phishing, "5", "attack"),
        },
        "paper.csv": {"other rules": other_rules},
    },
    "phishing_settings.md": {
        "runs/phishing.jsonl.gz": {
            "Table 6": partial(phishing, "6", "rule"),
            "Table 7": partial(phishing, "7", "rule"),
            "Table 8": partial(phishing, "8", "share of malicious clients"),
            "Table 10": partial(phishing, "10", "data"),
            "Figure 6": figure6,
        }
    },
    "cifar10_cnn.md": {
        "paper.csv": {"CNN": cnn},
        "cifar10_cpu_networks.csv": {"networks": cpu_networks},
        "runs/cifar10_cpu.jsonl.gz": {"choice": cpu_choice},
        "cifar10_cpu.csv": {"forty rounds": cpu_forty, "by round": cpu_by_round},
    },
    "cifar10_resnet18.md": {"paper.csv": {"ResNet-18": resnet}, "cifar10_resnet18.csv": {"by round": resnet_by_round}},
    "twitter.md": {"twitter_full_text.csv": {"curve": twitter}},
    "analyses.md": {
        "figure4_digits.csv": {"Figure 4": figure4},
        "figure5.csv": {"Figure 5": figure5},
        "separability.csv": {"separability": separability},
        "flatness_digits.csv": {"flatness": flatness},
    },
}
"""What writes each block, by page and table."""


def written(page: str) -> str:
    """A page with its blocks as the tables have them."""
    text = (HERE / page).read_text()
    for file, found in PAGES[page].items():
        text = blocks.written(text, file, found)
    return text


def main() -> None:
    for page in PAGES:
        (HERE / page).write_text(written(page))


if __name__ == "__main__":
    main()
