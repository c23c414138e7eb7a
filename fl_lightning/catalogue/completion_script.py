"""The script by which a shell completes commands, settings and names of classes.

jsonargparse can write one, but not here: a rule may be given a rule, and its script would follow that for ever. So shtab, which
does the work there too, is given a plain parser of the same names, in which classes have settings and those have none.
"""

import argparse
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

from fl_lightning.analysis.command import COMMANDS as ANALYSES
from fl_lightning.catalogue.command import SECTIONS
from fl_lightning.catalogue.entries import Entry
from fl_lightning.configuration import FederatedCLI, Reader
from fl_lightning.options.commands import FURTHER

CLASSES = {
    "--model.aggregator": "rules",
    "--model.attacks+": "attacks",
    "--model.client": "models",
    "--data": "tasks",
    "--data.partition": "partitions",
    "--trainer.callbacks+": "callbacks",
}
"""Settings that are classes, with the kind of these."""

FILES = ("--config", "--ckpt_path")


class EveryCommand(Reader):
    """Makes the parsers of all of Lightning's commands, and nothing else."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return FederatedCLI.subcommands()


def script(shell: str, shells: Sequence[str]) -> str:
    """The script for one of the shells that there is one for."""
    shtab = importlib.import_module("shtab")  # an extra
    return shtab.complete(names(shells, file=shtab.FILE, folder=shtab.DIRECTORY), shell)


def names(shells: Sequence[str], file: Any, folder: Any) -> argparse.ArgumentParser:
    """A parser of all commands and of the names of their settings.

    Args:
        shells: what `completion` may be given.
        file: what marks an argument as a file for the script's writer.
        folder: the same for folders.
    """
    parser = argparse.ArgumentParser(prog="fl-lightning")
    parser.add_argument("--version")
    commands = parser.add_subparsers()
    cli = EveryCommand()
    for name in cli.subcommands():
        own = [option for action in cli._parser(name)._actions for option in action.option_strings]
        add_settings(commands.add_parser(name, help=cli._parser(name).description), own, file)
    first: dict[str, tuple[Iterable[str] | None, Any]] = {
        "list": (SECTIONS, None),
        "init": (None, folder),
        "sweep": (None, file),
        "report": (None, file),
        "pack": (None, folder),
        "analyse": (ANALYSES, None),
        "completion": (shells, None),
    }
    for name, about in FURTHER.items():
        choices, kind = first[name]
        command = commands.add_parser(name, help=about)  # shtab leaves out those without a word
        marked(command.add_argument("first", choices=choices and list(choices)), kind)
    return parser


def add_settings(parser: argparse.ArgumentParser, options: Iterable[str], file: Any) -> None:
    """Add a command's settings, and those of the classes that they may be."""
    listed = {option: SECTIONS[kind][1]() for option, kind in CLASSES.items()}
    within = [f"{option.removesuffix('+')}.{name}" for option, entries in listed.items() for name in settings(entries)]
    known = parser._option_string_actions
    for option in dict.fromkeys([*options, *listed, *within]):
        if option not in known:
            choices = [entry.name for entry in listed[option]] if option in listed else None
            marked(parser.add_argument(option, choices=choices), file if option in FILES else None)


def settings(entries: Iterable[Entry]) -> list[str]:
    """What any of the classes can be given, but for what follows from the seed."""
    return sorted({argument.name for entry in entries for argument in entry.arguments} - {"seed"})


def marked(action: argparse.Action, kind: Any) -> None:
    """Say of an argument what its values are."""
    if kind is not None:
        action.complete = kind  # pyrefly: ignore[missing-attribute]
