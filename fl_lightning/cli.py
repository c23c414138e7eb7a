"""The command line: `fl-lightning`, `python -m fl_lightning`, `torchrun -m fl_lightning`."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from fl_lightning.configuration import FederatedCLI, plainly
from fl_lightning.errors import ConfigurationError
from fl_lightning.trainers import quiet

COMMANDS = {
    "sweep": "fl_lightning.experiments.command",
    "report": "fl_lightning.experiments.command",
    "analyse": "fl_lightning.analysis.command",
}
"""Commands that are not Lightning's, with the modules of their functions, which a run has no need to import."""


def fail(message: str) -> NoReturn:
    """Print an error once per node and leave with status 2."""
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) != "0":
        # The first process of the node has most likely met the same mistake: its message ends this one.
        time.sleep(2)
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; see `fl-lightning --help`."""
    quiet()
    given = list(sys.argv[1:] if args is None else args)
    try:
        if given and given[0] in COMMANDS:
            command = getattr(importlib.import_module(COMMANDS[given[0]]), given[0])
            plainly(lambda: command(given[1:]))
        else:
            plainly(lambda: FederatedCLI(args))
    except ConfigurationError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
