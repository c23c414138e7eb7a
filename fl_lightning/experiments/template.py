"""`fl-lightning sweep --template`: a sweep's file to begin with, in which every key is explained."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fl_lightning.errors import ConfigurationError
from fl_lightning.experiments.sweep import check_name

STDOUT = Path("-")
"""Stands for a file that is printed."""

ENDINGS = (".yaml", ".yml")
"""Of a sweep's file; by them `report` tells it from a sweep's folder."""


def template() -> str:
    """The file's text; lines that begin with `#` and no blank before a word are settings that are left out."""
    return files("fl_lightning.experiments").joinpath("sweep_template.yaml").read_text()


def write_template(file: Path, args: Sequence[str]) -> None:
    """Write the file, or print it.

    Args:
        file: to be made, or `STDOUT`.
        args: all arguments of the command, which takes no others beside this.

    Raises:
        ConfigurationError: the file is there already, no sweep's file is called so, or there are other arguments.
    """
    if list(args) not in (["--template"], ["--template", str(file)], [f"--template={file}"]):
        raise ConfigurationError("--template writes a file and runs nothing: give it alone, as in --template my_sweep.yaml")
    if file == STDOUT:
        print(template(), end="")
        return
    if file.suffix not in ENDINGS:
        raise ConfigurationError(f"--template {file}: a sweep's file ends in .yaml or .yml")
    check_name(file.stem)
    try:
        with file.open("x") as new:
            new.write(template())
    except FileExistsError as error:
        raise ConfigurationError(f"--template {file}: it is there already and is left as it is; give another name") from error
    print(f"{file}: a sweep of 18 runs, some three minutes on two cores. To list them: fl-lightning sweep {file} --dry-run")
