"""What the paper claims, and what came out of it here: each claim judged from the CSV files beside this one.

A claim has checks, inequalities that it says should hold, the first of which is its point. Where all hold it agrees; where its
point does not hold, or nothing does, the result contradicts it; else it agrees partly. Without a run there is no verdict.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tables_page
import torch

from fl_lightning.aggregators import FedAvg, Invariant, Median, TrimmedMean
from fl_lightning.analysis.theory import Setting, figure3, theorem10, theorem10_printed
from fl_lightning.experiments.tables import number

HERE = Path(__file__).parent
NEAR = 0.1
"""How far an ASR may lie from the paper's and still be as there."""

NONE = 0.05
"""An ASR, or a difference between two, that counts as none."""

LEAST = 0.02
"""A difference of two ASRs that does not tell two rules apart."""

ACC_LOST = 0.035
"""The most Acc that the invariant aggregator loses against FedAvg in the paper's Table 1, on Twitter."""

TASKS = {"phishing": "phishing stand-in", "digits": "digits, not the paper's task"}
PAGES = {"phishing": "phishing_settings.md", "digits": "map.md"}
USUAL: dict[str, dict[str, Any]] = {
    "digits": {"tau": 0.2, "alpha": 0.25, "clients": 10, "epochs": 2, "trigger": 2},
}
FIXED: dict[str, Any] = {"momentum": 0.9, "decay": 0.0, "participation": "fixed_share", "per_batch": False, "share": 0.2}
FIXED |= {"skew": "IID", "poisoned": 0.2, "inclusive": False, "ignore_zeros": False, "state": "finished"}


@dataclass
class Result:
    """What came out of a claim in one setting.

    Attributes:
        item: the paper's table or figure.
        claim: in a sentence.
        setting: where it was looked at.
        found: what came out.
        checks: what the claim says should hold, and whether it does; the first is its point.
        page: where more of it stands.
    """

    item: str
    claim: str
    setting: str
    found: str
    checks: list[bool] = field(default_factory=list)
    page: str = ""

    @property
    def verdict(self) -> str:
        if not self.checks:
            return "not yet measured"
        if all(self.checks):
            return "agrees"
        return "partly" if self.checks[0] else "contradicts"


# ---- Tables 1, 4 and 5: the paper's own runs -------------------------------------------------------------------------

CLAIMS = {
    "Table 1": "The invariant aggregator has a lower ASR than other rules, near that without attack, and loses hardly any Acc.",
    "Table 4": "Neither the mask alone nor the trimmed mean alone keeps the back door shut; together they do.",
    "Table 5": "Whatever attackers do, ASR under the invariant aggregator stays near that without attack.",
    "Table 6": "Colluding attackers get further under FLTrust, RFA and FLIP than under the invariant aggregator.",
    "Table 7": "So do attackers who adapt to the mask.",
    "Table 8": "ASR stays near 0 for shares of malicious clients up to 20%, at the same Acc.",
    "Table 9": "A trigger two and four times as large gets no further.",
    "Table 10": "ASR stays near 0 whatever the label skew.",
    "Figure 2b": "Noise turns two of five benign signs: mean, median and trimmed mean follow two attackers, the mask does not.",
    "Figure 3": "FLTrust can be led astray from an angle of .4 pi on.",
    "Figure 4": "Benign loss rises along the malicious direction, the faster the more edge cases benign clients hold.",
    "Figure 5": "A back door lies in few, large entries: an update that is benign but for 1,000 of them serves nearly as well.",
    "Figure 6": "Wide ranges of tau and alpha work, and ten clients a round do.",
    "Theorem 10": "Attackers turn a coordinate less probably than under the trimmed mean alone; both are given as sums.",
    "Appendix D.3": "The malicious minimum lies outside of the convex hull of benign ones.",
}


def rows(setting: str, table: str) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in tables_page.rows_of(setting, table)}


NAMES = {"TrimmedMean": "Trimmed-Mean", "AndMask": "AND-mask"}
"""Rows of the paper's tables by the rule that a sweep of choices names."""


def rows_of_choice(grid: str, choice: str) -> dict[str, dict[str, Any]]:
    """The same, of runs with another setting where the paper leaves it open; nothing until all have three seeds."""
    frame = pd.read_csv(HERE / "choices.csv")
    frame = frame[(frame["grid"] == grid) & (frame["choice"] == choice)]
    found = {
        NAMES.get(str(rule), str(rule)): {
            "acc_last10": part["acc_last10"].mean(),
            "asr_last10": part["asr_last10"].mean(),
            "n": len(part),
        }
        for rule, part in frame.groupby("rule")
    }
    return found if len(found) == 5 and all(row["n"] == 3 for row in found.values()) else {}


def table1(found: dict[str, dict[str, Any]], title: str, task: str, page: str) -> Result:
    """Means of the last evaluations: a single ASR swings from one to the next."""
    paper = tables_page.published(task, "1")
    found = {name: row for name, row in found.items() if name in paper}
    mine, theirs = found["Invariant"], paper["Invariant"]
    beaten = [name for name in found if name != "Invariant" and paper[name]["asr"] > theirs["asr"] + NONE]
    below = [name for name in beaten if found[name]["asr_last10"] < mine["asr_last10"] - LEAST]
    told = f"ASR {number(mine['asr_last10'])}, Acc {number(mine['acc_last10'])}"
    told += f" (paper {number(theirs['asr'])}, {number(theirs['acc'])})"
    even = [name for name in beaten if abs(found[name]["asr_last10"] - mine["asr_last10"]) <= LEAST]
    checks = [not below, not even] if beaten else []
    checks.append(mine["asr_last10"] <= theirs["asr"] + NEAR)
    if "FedAvg" in found:
        fedavg = found["FedAvg"]
        told += f"; FedAvg {number(fedavg['asr_last10'])}, {number(fedavg['acc_last10'])}"
        checks.append(fedavg["acc_last10"] - mine["acc_last10"] <= ACC_LOST)
    if beaten:
        told += f"; of {len(beaten)} rules that the paper has above it {len(below)} lie below{among(below)}, {len(even)} even"
        told += among(even)
    else:
        told += "; no other rule was run"
    told += f"; {mine['n']} seed{'s' if mine['n'] > 1 else ''}"
    return Result("Table 1", CLAIMS["Table 1"], title, told, checks, page)


def among(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def table4(found: dict[str, dict[str, Any]], title: str, page: str) -> Result:
    asr = {name: row["asr_last10"] for name, row in found.items()}
    named = ("Invariant", "AND-mask", "Trimmed-Mean", "Mean-variance ratio")
    told = ", ".join(f"{name} {number(asr[name])}" for name in named if name in asr)
    alone = asr["AND-mask"], asr["Trimmed-Mean"]
    checks = [asr["Invariant"] < min(alone) - LEAST, min(alone) > NONE, asr["Invariant"] <= NONE]
    return Result("Table 4", CLAIMS["Table 4"], title, f"ASR: {told}", checks, page)


def table5() -> Result:
    found = rows("phishing", "5")
    asr = {name: row["asr_last10"] for name, row in found.items()}
    told = ", ".join(f"{name} {number(value)}" for name, value in asr.items())
    checks = [max(asr.values()) - asr["none"] <= NONE]
    return Result("Table 5", CLAIMS["Table 5"], TASKS["phishing"], f"ASR: {told}", checks, "phishing.md")


def table6(table: str) -> Result:
    """Of Table 6 or 7: attackers who collude, or adapt to the mask, against four rules."""
    asr = {name: row["asr_last10"] for name, row in rows("phishing", table).items()}
    told = ", ".join(f"{name} {number(value)}" for name, value in asr.items())
    mine, others = asr["Invariant"], [value for name, value in asr.items() if name != "Invariant"]
    checks = [mine < min(others) - LEAST, mine <= NONE]
    return Result(f"Table {table}", CLAIMS[f"Table {table}"], TASKS["phishing"], f"ASR: {told}", checks, PAGES["phishing"])


# ---- Tables 8 to 10 and Figure 6: on digits as far as the map has runs of them ---------------------------------------


def of_table(task: str, table: str, axis: str, measure: str = "asr") -> "pd.Series[float]":
    """Means over the seeds by a table's axis: of its own runs on phishing, else of the map's."""
    if task == "phishing":
        return pd.Series({name: row[measure] for name, row in rows(task, table).items()})
    return cells(task, axis, measure)


def cells(task: str, axis: str, measure: str = "asr", **others: Any) -> "pd.Series[float]":
    """Means over the seeds of the map's runs of `Invariant`, by what one axis is set to; all else is as shipped."""
    frame = pd.read_csv(HERE / "map.csv")
    frame = frame[(frame["task"] == task) & (frame["rule"] == "Invariant")]
    for name, value in {**FIXED, **USUAL[task], **others}.items():
        if name != axis:
            frame = frame[frame[name] == value]
    return frame.groupby(axis)[measure].mean()


def listed(values: "pd.Series[float]") -> str:
    """
    >>> listed(pd.Series({0.25: 0.5}))
    '0.25: .500'
    """
    return ", ".join(f"{key if isinstance(key, str) else f'{key:g}'}: {number(value)}" for key, value in values.items())


def table8(task: str) -> Result:
    asr, acc = (of_table(task, "8", "share", measure) for measure in ("asr", "acc"))
    asr.index = acc.index = asr.index.astype(float)
    asr, acc = asr[asr.index <= 0.2], acc[acc.index <= 0.2]
    checks = [asr.max() <= NONE, acc.max() - acc.min() <= 0.01]
    return Result("Table 8", CLAIMS["Table 8"], TASKS[task], f"ASR by share: {listed(asr)}", checks, PAGES[task])


def table9() -> Result:
    asr = cells("digits", "trigger")
    asr.index = (asr.index**2).astype(int)  # pixels, of a square
    checks = [asr[asr.index <= 4].max() - asr.min() <= NONE, asr.max() - asr.min() <= NONE]
    return Result("Table 9", CLAIMS["Table 9"], TASKS["digits"], f"ASR by pixels: {listed(asr)}", checks, "map.md")


def table10(task: str) -> Result:
    asr = of_table(task, "10", "skew")
    return Result("Table 10", CLAIMS["Table 10"], TASKS[task], f"ASR: {listed(asr)}", [asr.max() <= NONE], PAGES[task])


def figure6(task: str) -> Result:
    """From tau .2 and alpha .2 on, where the mask and the trimming do something."""
    if task == "phishing":
        alone = tables_page.varied()
        found = {axis: pd.Series({float(key): row["asr"] for key, row in found_at.items()}) for axis, found_at in alone.items()}
    else:
        found = {"tau": cells(task, "tau"), "alpha, 20 clients a round": cells(task, "alpha", clients=20)}
    found = {axis: asr[asr.index >= (10 if axis == "clients" else 0.2)] for axis, asr in found.items()}
    told = "; ".join(f"by {axis}: {listed(asr)}" for axis, asr in found.items())
    checks = [bool(asr.max() <= NONE) for asr in found.values()]
    return Result("Figure 6", CLAIMS["Figure 6"], TASKS[task], f"ASR {told}", checks, PAGES[task])


# ---- what can be computed --------------------------------------------------------------------------------------------

COLUMN = (0.30, 0.20, 0.10, -0.15, -0.20, -1.00, -1.20)
"""A coordinate of seven clients, the last two malicious; noise has turned two of five benign signs."""


def figure2b() -> Result:
    updates = torch.tensor(COLUMN)[:, None]
    rules = {"mean": FedAvg(), "median": Median(), "trimmed mean": TrimmedMean(alpha=0.25)}
    told = {name: float(rule(updates)) for name, rule in rules.items()}
    mine = float(Invariant(tau=1 / 7, alpha=0.25)(updates))
    checks = [mine == 0, max(told.values()) < 0]
    shown = ", ".join(f"{name} {number(value)}" for name, value in {**told, "invariant": mine}.items())
    return Result("Figure 2b", CLAIMS["Figure 2b"], "computed, tau 1/7", shown, checks)


def fltrust() -> Result:
    theta = np.linspace(0, np.pi, 315)
    drawn = figure3(theta, grid=501)
    error, root = float(np.abs(drawn.maximised - drawn.closed_form).max()), drawn.root / np.pi
    told = f"from {root:.3f} pi on; the maximum has a closed form, 1/2 - 3/2 cos(theta), within {error:.0e}"
    return Result("Figure 3", CLAIMS["Figure 3"], "computed", told, [abs(root - 0.4) < 0.01, error < 1e-4], "analyses.md")


def figure4() -> Result:
    frame = pd.read_csv(HERE / "figure4_digits.csv").set_index("p")
    rise = {name: frame[f"{name}_4"] - frame["benign_0"] for name in ("malicious", "random")}
    told = "; ".join(
        f"p {p:g}: +{rise['malicious'][p]:.2f} along malicious, +{rise['random'][p]:.2f} along random" for p in frame.index
    )
    steeper = rise["malicious"].is_monotonic_increasing
    checks = [bool(steeper), bool(rise["malicious"][0.0] <= 2 * rise["random"][0.0])]
    return Result("Figure 4", CLAIMS["Figure 4"], TASKS["digits"], f"benign loss at distance 4: {told}", checks, "analyses.md")


def figure5() -> Result:
    frame = pd.read_csv(HERE / "figure5.csv")
    theirs, mine = (
        frame[(frame["task"].str.startswith(name)) & (frame["kept"] == 1000)].iloc[0] for name in ("paper", "CIFAR")
    )
    few = [row["large"] / row["parameters"] for row in (mine, theirs)]
    told = f"{few[0]:.1e} of all entries above .01 (paper {few[1]:.1e}); cosine {number(mine['cosine_mimicry'])}"
    told += f" ({number(theirs['cosine_mimicry'])}); slowed by {100 * mine['slowdown']:.1f}% ({100 * theirs['slowdown']:.1f}%)"
    checks = [mine["slowdown"] <= theirs["slowdown"] + NONE, few[0] <= 10 * few[1], mine["cosine_mimicry"] >= 0.95]
    return Result("Figure 5", CLAIMS["Figure 5"], "CIFAR-10, small CNN", told, [bool(check) for check in checks], "analyses.md")


def ten() -> Result:
    setting = Setting(20, 4, alpha=0.25, tau=0.5, inclusive=True)
    exact = theorem10(setting, 0.1)
    printed = theorem10_printed(setting, 0.0).benign
    told = f"p+ {exact.malicious:.0e} against {number(exact.malicious_trimmed)} at p = .1, tau = 1 - 2 alpha"
    told += f"; the sums as printed are no probabilities (p- is {printed:g} at p = 0)"
    checks = [exact.malicious < exact.malicious_trimmed, printed <= 1]
    return Result("Theorem 10", CLAIMS["Theorem 10"], "computed, N = 20, 4 malicious", told, checks, "analyses.md")


def hulls() -> Iterator[Result]:
    for row in pd.read_csv(HERE / "separability.csv").to_dict("records"):
        benign = [row[f"benign_{i}"] for i in range(1, 6)]
        told = (
            f"distance by diameter {row['malicious']:.3g}; each benign one from the others' hull {min(benign)} to {max(benign)}"
        )
        checks = [row["malicious"] > 0, row["malicious"] > max(benign)]
        yield Result("Appendix D.3", CLAIMS["Appendix D.3"], row["task"], told, checks, "analyses.md")


# ---- all of them -----------------------------------------------------------------------------------------------------


def twitter() -> Result:
    last = pd.read_csv(HERE / "twitter_full_text.csv").iloc[-1]
    told = f"nothing under attack; without, Acc {number(last['acc'])} after {last['round']:.0f} of 300 rounds"
    return Result("Table 1", CLAIMS["Table 1"], "Twitter", told, [], "twitter.md")


def pending(item: str, setting: str) -> Result:
    return Result(item, CLAIMS[item], setting, "-")


def results() -> Sequence[Result]:
    """Every claim in every setting, in the paper's order."""
    trained, digits = rows_of_choice("phishing_training", "begin trained"), rows_of_choice("digits_training", "as shipped")
    from_trained = f"{TASKS['phishing']}, attacked from round 20 on"
    return [
        table1(rows("phishing", "1"), TASKS["phishing"], "phishing", "phishing.md"),
        *([table1(trained, from_trained, "phishing", "choices.md")] if trained else []),
        table1(rows("cifar10, CNN", "1"), "CIFAR-10, small CNN, 100 rounds", "cifar10", "cifar10_cnn.md"),
        table1(rows("cifar10, ResNet-18", "1"), "CIFAR-10, ResNet-18", "cifar10", "cifar10_resnet18.md"),
        twitter(),
        table4(rows("phishing", "4"), TASKS["phishing"], "phishing.md"),
        *([table4(trained, from_trained, "choices.md")] if trained else []),
        *([table4(digits, TASKS["digits"], "choices.md")] if digits else []),
        pending("Table 4", "CIFAR-10, Twitter"),
        table5(),
        pending("Table 5", "CIFAR-10, Twitter"),
        table6("6"),
        pending("Table 6", "CIFAR-10"),
        table6("7"),
        pending("Table 7", "CIFAR-10"),
        *(table8(task) for task in TASKS),
        pending("Table 8", "CIFAR-10, Twitter"),
        table9(),
        pending("Table 9", "CIFAR-10"),
        *(table10(task) for task in TASKS),
        pending("Table 10", "CIFAR-10"),
        figure2b(),
        fltrust(),
        figure4(),
        figure5(),
        *(figure6(task) for task in TASKS),
        pending("Figure 6", "CIFAR-10"),
        ten(),
        *hulls(),
    ]
