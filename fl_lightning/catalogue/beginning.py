"""`fl-lightning init`: a folder to begin in, with the configurations, sweeps and scripts that the package ships."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from fl_lightning.catalogue.files import configurations, sweeps
from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.arguments import Parser
from fl_lightning.shipped import CONFIGS, LAUNCH


def init(args: Sequence[str]) -> None:
    """`fl-lightning init DIR`: copy `configs/` and `launch/` into a new or empty folder, from where all commands work.

    Args:
        args: the command's arguments.

    Raises:
        ConfigurationError: there is something in the folder already, or it is a file.

    Example: `fl-lightning init demo`.
    """
    parser = Parser(
        prog="fl-lightning init",
        description="Copy the package's configurations and sweeps (configs/) and its scripts for torchrun and SLURM (launch/) "
        "into a folder, in which the commands of the README then work.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an empty one")
    folder = parser.parse_args(args).folder
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; give a new folder, or an empty one")
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty; give a new folder, or an empty one")
    for shipped in (CONFIGS, LAUNCH):
        shutil.copytree(shipped, folder / shipped.name)
    print(f"{folder}: configs/ with {len(configurations())} configurations and {len(sweeps())} sweeps, launch/ with scripts.")
    print("Next:\n")
    if folder.resolve() != Path.cwd():
        print(f"  cd {shlex.quote(str(folder))}")
    print("  fl-lightning fit --config configs/quickstart.yaml")
