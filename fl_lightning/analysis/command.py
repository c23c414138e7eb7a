"""`fl-lightning analyse NAME`: the analyses as commands; their options are the functions' arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from fl_lightning.analysis import on_models, on_paper, on_sweeps, on_votes
from fl_lightning.errors import ConfigurationError, folded, nearest

COMMANDS: dict[str, Any] = {
    "figure3": on_paper.figure3,
    "figure4": on_models.figure4,
    "figure5": on_models.figure5,
    "figure6": on_sweeps.figure6,
    "separability": on_models.separability,
    "flatness": on_models.flatness,
    "theorem10": on_paper.theorem10,
    "theorem11": on_paper.theorem11,
    "certify": on_paper.certify,
    "crfl": on_votes.crfl,
}


class Parser(ArgumentParser):
    """Reports a mistake as the other commands do."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(folded(message)) from ex


def analyse(args: Sequence[str]) -> None:
    """Run one analysis.

    Args:
        args: its name and options; what follows after `--` are options of `fit`, for analyses that take a configuration.

    Raises:
        ConfigurationError: for a mistake in them, or in the configuration.

    Example:
        >>> analyse(["figure3", "--output", "runs/figure3"])
        >>> analyse(["figure5", "--config", "configs/digits/edge_case.yaml", "--rounds", "5", "--", "--seed_everything", "1"])
    """
    words = list(args)
    own, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    if own and not own[0].startswith("-") and own[0] not in COMMANDS:
        raise ConfigurationError(f"there is no analysis {own[0]}; {nearest(own[0], COMMANDS)}")
    about = "Compute what the paper proves and draws."
    parser = Parser(prog="fl-lightning analyse", description=about, allow_abbrev=False)
    subcommands = parser.add_subcommands(dest="name", help="see `fl-lightning analyse NAME --help`")
    for name, function in COMMANDS.items():
        of_command = Parser(description=(function.__doc__ or "").split("\n")[0], allow_abbrev=False)
        of_command.add_function_arguments(function, skip={"overrides"}, as_positional=True)
        subcommands.add_subcommand(name, of_command, help=of_command.description)
    chosen = parser.parse_args([repeatable(word) for word in own])
    options = parser.instantiate(chosen)[chosen.name].as_dict()
    if "config" in options:
        options["overrides"] = overrides
    elif overrides:
        raise ConfigurationError(f"{chosen.name} trains nothing, so it takes no options of `fit`, got {' '.join(overrides)}")
    COMMANDS[chosen.name](**options)


def repeatable(word: str) -> str:
    """`--config` may be given several times; the parser calls that adding to a list."""
    name, equals, value = word.partition("=")
    return f"{name}+{equals}{value}" if name == "--config" else word
