"""Draw Acc and ASR by round of some runs.

python docs/results/curves.py curves.png runs/a/run.json runs/b/run.json
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def main(output: str, *records: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, sharey=True, layout="constrained")
    for path in records:
        record = json.loads(Path(path).read_text())
        model = record["config"]["model"]
        rule = model["aggregator"]["class_path"].rpartition(".")[2]
        if not model["cohort"]["malicious_fraction"]:
            rule += ", no attack"
        evaluations = [json.loads(line) for line in Path(path).with_name("metrics.jsonl").read_text().splitlines()]
        rounds = [entry["round"] for entry in evaluations]
        for axis, name in zip(axes, ("acc", "asr"), strict=True):
            axis.plot(rounds, [entry[name] for entry in evaluations], label=rule, linewidth=1.2)
    for axis, title in zip(axes, ("Acc, clean test set", "ASR, stamped test set"), strict=True):
        axis.set(title=title, xlabel="round", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(output, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
