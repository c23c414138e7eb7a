"""`fl-lightning completion SHELL`: the script by which a shell completes commands, settings and names of classes."""

from collections.abc import Sequence
from importlib.util import find_spec

from fl_lightning.callbacks.quiet import quietly
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.arguments import Parser
from fl_lightning.files.cache import keep, kept

SHELLS = ("bash", "zsh", "tcsh")


def completion(args: Sequence[str]) -> None:
    """`fl-lightning completion SHELL`: print the script.

    Args:
        args: the command's arguments.

    Raises:
        ConfigurationError: shtab is not installed.

    Example: `eval "$(fl-lightning completion bash)"`.
    """
    parser = Parser(prog="fl-lightning completion", description="Print a script that makes a shell complete what is typed.")
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(args).shell
    if find_spec("shtab") is None:
        raise ConfigurationError("completion needs the package shtab: pip install shtab")
    found = kept("completion", shell)
    if found is None:
        # With torch and Lightning, whose settings are completed too.
        from fl_lightning.catalogue.completion_script import script

        with quietly():
            found = script(shell, SHELLS)
        keep("completion", shell, found)
    print(found)
