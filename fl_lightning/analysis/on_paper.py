"""The commands that compute from theory, or from what a run recorded, and train nothing."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fl_lightning.analysis import certify as certificates
from fl_lightning.analysis import theory
from fl_lightning.analysis.monte_carlo import simulate
from fl_lightning.analysis.output import Output
from fl_lightning.analysis.theory import Setting
from fl_lightning.analysis.world import settings
from fl_lightning.callbacks.flip_rates import read_flip_rates
from fl_lightning.errors import ConfigurationError

PAPER = {
    "theorem, alpha = N'/N": Setting(20, 4, alpha=0.2, tau=0.6, inclusive=True),
    "theorem, inclusive": Setting(20, 4, alpha=0.25, tau=0.5, inclusive=True),
    "theorem, strict": Setting(20, 4, alpha=0.25, tau=0.5),
    "CIFAR-10": Setting(20, 4, alpha=0.25, tau=0.2),
    "Twitter": Setting(15, 2, alpha=0.25, tau=0.6),
    "phishing": Setting(20, 4, alpha=0.25, tau=0.6),
}
"""The settings of Theorem 10 and of the paper's experiments."""


def figure3(points: int = 1571, output: str = "runs/analysis/figure3") -> None:
    """Figure 3: where FLTrust can be led astray, by maximisation and in closed form.

    Args:
        points: angles from 0 to pi/2, at least 2.
        output: folder for figure3.csv, figure3.json and figure3.png.
    """
    if points < 2:
        raise ConfigurationError(f"points must be at least 2, got {points}")
    out = Output(output)
    found = theory.figure3(np.linspace(0, np.pi / 2, points))
    rows = [
        {"theta / pi": float(t / np.pi), "f, maximised": float(f), "f, closed form": float(c)}
        for t, f, c in zip(found.theta, found.maximised, found.closed_form, strict=True)
    ]
    chosen = [rows[round(i * (points - 1) / 10)] for i in range(11)]
    out.table("f(theta) = 1/2 - 3/2 cos(theta)", chosen)
    out.rows("figure3", rows)
    worst = float(np.abs(found.maximised - found.closed_form).max())
    print(
        f"Largest difference: {worst:.2g}. f > 0 beyond {found.root / math.pi:.5f} pi ({math.degrees(found.root):.2f} degrees)."
    )
    out.numbers("figure3", {"largest_difference": worst, "root": found.root})
    with out.figure("figure3") as [axis]:
        axis.plot(found.theta / np.pi, found.closed_form, label="1/2 - 3/2 cos(theta)")
        axis.plot(found.theta[::50] / np.pi, found.maximised[::50], ".", label="maximised over theta'")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.axvline(found.root / np.pi, color="grey", linestyle=":", label="arccos(1/3)")
        axis.set(xlabel="theta / pi", ylabel="f(theta)")
        axis.legend()
    out.close()


def theorem10(
    clients: int = 20,
    malicious: int = 4,
    alpha: float = 0.25,
    tau: float = 0.2,
    inclusive: bool = False,
    p: list[float] = [0.1, 0.3],  # noqa: B006  jsonargparse shows it; it is not changed
    paper: bool = False,
    trials: int = 100_000,
    seed: int = 0,
    output: str = "runs/analysis/theorem10",
) -> None:
    """Theorem 10: how likely a coordinate moves with the benign clients, or against them.

    Args:
        clients: N.
        malicious: N'.
        alpha: share trimmed from each tail.
        tau: consistency threshold.
        inclusive: whether a consistency of tau is kept.
        p: flip probabilities of benign signs.
        paper: take the settings of the theorem and of the paper's experiments in place of these.
        trials: simulated coordinates; 0 for none.
        seed: of the simulation.
        output: folder for theorem10.csv, simulated.csv, theorem10.json and theorem10.png.
    """
    out = Output(output)
    chosen = PAPER if paper else {"given": Setting(clients, malicious, alpha, tau, inclusive)}
    rows, simulated, everything = [], [], []
    for name, setting in chosen.items():
        for flip in p:
            exact, printed = theory.theorem10(setting, flip), theory.theorem10_printed(setting, flip)
            row = {
                "setting": name,
                "x_min, b": f"{setting.majority}, {setting.trimmed}",
                "regime": "in" if setting.in_regime else "out",
                "p": flip,
                "p-": exact.benign,
                "p+": exact.malicious,
                "p+ trim": exact.malicious_trimmed,
                "p- print": printed.benign,
                "p+ print": printed.malicious,
            }
            entry: dict[str, Any] = {"setting": asdict(setting), "p": flip, "exact": exact, "printed": printed}
            if trials:
                seen = simulate(setting, flip, trials=trials, seed=seed)
                shares = {"p-": seen.benign, "p+": seen.malicious, "+": seen.opposed_benign, "-": seen.opposed_malicious}
                simulated.append({"setting": name, "p": flip, **{key: share.value for key, share in shares.items()}})
                entry["simulated"] = seen
            rows.append(row)
            everything.append(entry)
    out.table("Theorem 10, exact, of the trimmed mean alone, and as printed", rows, "theorem10")
    if simulated:
        out.table(f"{trials:,} coordinates; + and -: the output when all attackers send -1000", simulated, "simulated")
    out.numbers("theorem10", everything)
    flips = np.linspace(0, 0.5, 101)
    with out.figure("theorem10", panels=2) as axes:
        for name, setting in chosen.items():
            bounds = [theory.theorem10(setting, float(flip)) for flip in flips]
            axes[0].plot(flips, [b.benign for b in bounds], label=name)
            axes[1].semilogy(flips, [max(b.malicious, 1e-12) for b in bounds], label=name)
        axes[0].set(xlabel="flip probability p", ylabel="p-: the benign sign, at least")
        axes[1].set(xlabel="flip probability p", ylabel="p+: the other sign, at most", ylim=(1e-12, 2))
        axes[0].legend(fontsize=7)
    out.close()


def theorem11(
    benign: float = 0.6,
    malicious: float = 0.2,
    rounds: int = 300,
    distance: float = 1.0,
    smallest: float = 0.01,
    largest: float = 0.02,
    coordinates: int = 11_689_512,
    output: str = "runs/analysis/theorem11",
) -> None:
    """Theorem 11: how likely coordinates reach the benign minimum.

    Args:
        benign: p-.
        malicious: p+.
        rounds: T.
        distance: c, from the start to the minimum in one coordinate.
        smallest: eta_-, the smallest step.
        largest: eta^-, the largest.
        coordinates: d.
        output: folder for theorem11.csv and theorem11.json.
    """
    out = Output(output)
    given = {"rounds": rounds, "distance": distance, "smallest": smallest, "largest": largest, "coordinates": coordinates}
    found = theory.theorem11(benign, malicious, **given)
    row = {"p-": benign, "p+": malicious, "P1": found.corrected, "P1 as printed": found.printed}
    row |= {"log10 P1^d": found.log10_all, "union bound": found.union}
    out.table(f"Theorem 11: {rounds} rounds, {coordinates:,} coordinates", [row], "theorem11")
    out.numbers("theorem11", {"benign": benign, "malicious": malicious, **given, **asdict(found)})
    out.close()


def certify(
    config: list[str] = [],  # noqa: B006  jsonargparse shows it; it is not changed
    distance: float = 1.0,
    smallest: float = 0.01,
    largest: float = 0.02,
    output: str = "runs/analysis/certify",
    overrides: list[str] = [],  # noqa: B006  likewise
) -> None:
    """Whether a run lies where Theorem 10 holds, and its bounds at the flip rates that `FlipRates` recorded.

    Args:
        config: the config.yaml of a run; flip_rates.jsonl lies in its trainer.default_root_dir, or beside it.
        distance: c of Theorem 11.
        smallest: eta_- of Theorem 11.
        largest: eta^- of Theorem 11.
        output: folder for certify.csv, certify.json and certify.png.
        overrides: further options of `fit`.
    """
    resolved = settings(config, overrides)
    path = certificates.find_record(resolved, Path(config[-1]))
    record = read_flip_rates(path)
    if not record:
        raise ConfigurationError(f"{path} holds no round yet; run `fit` for a round at least")
    setting = certificates.setting_of(resolved, record)
    rounds = resolved["trainer"].get("max_epochs") or 0
    rounds = rounds if rounds > 0 else len(record)
    found = certificates.certify(setting, record, rounds=rounds, distance=distance, smallest=smallest, largest=largest)
    out = Output(output)
    for line in verdict(found):
        print(line)
    rows = [
        {
            "flip rate": at.name,
            "p": at.p,
            "p-": at.bounds.benign,
            "p+": at.bounds.malicious,
            "p- trimmed": at.bounds.benign_trimmed,
            "p+ trimmed": at.bounds.malicious_trimmed,
            "P1": at.progress.corrected,
            "log10 P1^d": at.progress.log10_all,
            "union bound": at.progress.union,
        }
        for at in found.at
    ]
    out.table(f"{path}: {found.rounds} rounds, {found.coordinates:,} coordinates", rows, "certify")
    conditions = {
        "majority": setting.majority,
        "trimmed": setting.trimmed,
        "mask_covers": setting.mask_covers,
        "trimming_covers": setting.trimming_covers,
        "in_regime": setting.in_regime,
        "survives_veto": setting.survives_veto,
    }
    out.numbers("certify", {**conditions, "certificate": found})
    with out.figure("certify", panels=2) as axes:
        last = record[-1]
        shares = [np.arange(len(flips.counts)) / flips.benign for flips in (record[0], last)]
        for flips, share in zip((record[0], last), shares, strict=True):
            axes[0].plot(share, np.array(flips.counts) / sum(flips.counts), marker=".", label=f"round {flips.round}")
        axes[0].set(xlabel="share of benign clients that flip", ylabel="share of coordinates")
        axes[0].legend()
        axes[1].plot([flips.round for flips in record], [flips.rate for flips in record])
        axes[1].set(xlabel="round", ylabel="mean flip rate")
    out.close()


def verdict(found: certificates.Certificate) -> list[str]:
    """The conditions of Theorem 10 in words, with their numbers."""
    s = found.setting
    sign = ">=" if s.inclusive else ">"
    least = s.clients - s.trimmed

    def holds(condition: bool) -> str:
        return "holds" if condition else "FAILS"

    return [
        f"N = {s.clients}, N' = {s.malicious}, alpha = {s.alpha} trims b = {s.trimmed}, consistency {sign} {s.tau} takes a "
        f"majority of x_min = {s.majority}.",
        f"N' <= b: {s.malicious} <= {s.trimmed} {holds(s.trimming_covers)}.",
        f"x_min >= N - b: {s.majority} >= {least} {holds(s.mask_covers)}; the theorem's own tau would be "
        f"1 - 2b/N = {1 - 2 * s.trimmed / s.clients:.3g}.",
        f"Veto: {s.benign} benign votes against {s.malicious} give {s.benign - s.malicious}, and {s.threshold} are needed: "
        + ("the update moves." if s.survives_veto else "all-out opposition freezes every coordinate."),
        ("In" if s.in_regime else "Outside")
        + " Theorem 10's regime"
        + (
            "."
            if s.in_regime
            else "; p+ counts also that attackers lift the mask while one of their entries survives trimming."
        ),
        f"Coordinates with an exact zero of some benign client, which the theorem leaves out: {found.zero_share:.1%}.",
    ]
