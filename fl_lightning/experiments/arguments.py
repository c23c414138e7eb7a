"""Options of a command that has no settings of its own."""

import argparse
from typing import Any, NoReturn

from fl_lightning.errors import ConfigurationError


class Parser(argparse.ArgumentParser):
    """Reports a mistake as the other commands do, and takes no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.prog}: {message}; see {self.prog} --help")
