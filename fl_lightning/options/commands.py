"""The commands there are, and what `fl-lightning --help` says of them: known without the seconds that torch takes."""

import argparse

from fl_lightning import __version__

DESCRIPTION = "Federated learning under backdoor attack."

OF_LIGHTNING = {
    "fit": "run a federation: all of its rounds, with evaluations, checkpoints and a record",
    "validate": "evaluate a checkpoint on the validation data",
    "test": "evaluate a checkpoint on the test data",
    "prepare": "fetch and check data and settings before a launch, without training",
    "show-attack": "show what attacks do to data: pictures in a PNG file, tables and tweets as text",
}
"""Commands that take the settings of a run, and what they do."""

FURTHER = {
    "sweep": "run what is not finished of a sweep, on this machine or by SLURM",
    "report": "write tables, figures and a page of a sweep, as far as it is",
    "pack": "write what is finished of runs as one file of data, for a report or a sweep elsewhere",
    "analyse": "compute what the paper proves and draws",
    "list": "list what there is to choose from: rules, attacks, tasks, models, configurations, ...",
    "init": "copy configurations and launch scripts into a new folder, to begin with",
    "completion": "print a script by which a shell completes commands and settings",
}
"""The others, which have options of their own."""

EPILOG = (
    "Each command has a --help of its own. For all of them: --traceback shows where an error came from. For the commands that "
    "take the settings of a run: --with CLASS.SETTING=VALUE is a setting of a class wherever a configuration names it, such as "
    "--with CIFAR10.path=data/cifar10."
)


def main_parser() -> argparse.ArgumentParser:
    """What answers `--help` and `--version`; the commands' own parsers read all else."""
    parser = argparse.ArgumentParser(
        prog="fl-lightning",
        usage="fl-lightning [-h] [--version] COMMAND ...\n       fl-lightning fit --config CONFIG [--SETTING VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{parser.prog} {__version__}")
    for title, about, listed in (
        ("runs", "commands that take the settings of a run, from files and as options", OF_LIGHTNING),
        ("further commands", None, FURTHER),
    ):
        group = parser.add_argument_group(title, about)
        for name, does in listed.items():
            group.add_argument(name, nargs="?", metavar=name, help=does)
    return parser
