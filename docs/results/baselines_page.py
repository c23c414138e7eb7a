"""Write the table of accuracies without attack, beside published ones, into baselines.md.

python docs/results/baselines_page.py
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import blocks
import pandas as pd
import tables_page

from fl_lightning.experiments.tables import markdown, number

HERE = Path(__file__).parent
PAGE, FILE = HERE / "baselines.md", "runs without attack"


def of_sweep(name: str) -> str:
    """Acc of a sweep of one cell, over its seeds."""
    acc = tables_page.packed("without_attack.jsonl.gz", name).runs["acc"]
    return f"{number(acc.mean())} ({number(acc.std())}), {len(acc)} seeds"


def of_table(setting: str) -> str:
    """Acc of the row without attack of the paper's Table 1."""
    row = {row["row"]: row for row in tables_page.rows_of(setting, "1")}["no attack"]
    return f"{tables_page.spread(row, 'acc')}, {row['n']} seeds"


def of_cpu() -> str:
    """Acc of configs/cifar10/cpu.yaml after its last round, and of the evaluations before."""
    curves = tables_page.cpu_curves()
    rate, epochs = curves.iloc[-1][["rate", "epochs"]]
    found = curves[(curves["rate"] == rate) & (curves["epochs"] == epochs)]
    return f"{number(found['acc'].iloc[-1])}, mean of the last ten evaluations {number(found['acc'].tail(10).mean())}, 1 seed"


def of_twitter() -> str:
    last = pd.read_csv(HERE / "twitter_full_text.csv").iloc[-1]
    return f"{number(last['acc'])} after {last['round']:.0f} of 300 rounds, 1 seed"


def of_paper(task: str) -> str:
    return f"{number(tables_page.published(task, '1')['no attack']['acc'])}, the paper"


ABSENT = "not run: needs the Hub's data"

ROWS: list[tuple[str, str, str, Callable[[], str] | str, Callable[[], str] | str]] = [
    (
        "MNIST, 5,000 of 70,000 pictures",
        "logistic regression",
        "sweeps/without_attack/mnist",
        ".81, FLUTE, all pictures",
        partial(of_sweep, "without-attack-mnist"),
    ),
    ("UCI digits", "perceptron", "sweeps/without_attack/digits", "none", partial(of_sweep, "without-attack-digits")),
    ("CIFAR-10", "CNN, 156,074 parameters", "cifar10/cpu", partial(of_paper, "cifar10"), of_cpu),
    ("CIFAR-10", "ResNet-18", "cifar10/edge_case", partial(of_paper, "cifar10"), "not run without attack"),
    ("phishing, a stand-in", "perceptron", "phishing/fedavg", partial(of_paper, "phishing"), partial(of_table, "phishing")),
    ("Twitter, all tweets", "LSTM", "twitter/full_text", partial(of_paper, "twitter"), of_twitter),
    ("FEMNIST", "CNN with dropout", "femnist/flute", ".83, FLUTE", ABSENT),
    ("Fed-CIFAR-100", "ResNet-18, group norm", "cifar100/flute", ".33, FLUTE", ABSENT),
    ("Shakespeare", "LSTM of characters", "shakespeare/word_trigger", ".57, FLUTE", ABSENT),
    ("Reddit", "LSTM of words", "reddit/word_trigger", ".18 to .20, BackFed", ABSENT),
]
"""Task, network, configuration, published Acc, and Acc here."""


def told(value: Callable[[], str] | str) -> str:
    return value() if callable(value) else value


def table() -> str:
    names = ["task", "network", "configuration", "published Acc", "Acc here"]
    rows = [[task, network, f"{config}.yaml", told(theirs), told(ours)] for task, network, config, theirs, ours in ROWS]
    return markdown(pd.DataFrame(rows, columns=names))


def written(text: str) -> str:
    """The page with its block as the runs have it."""
    return blocks.written(text, FILE, {"baselines": table})


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
