"""The command line: `fl-lightning`, `python -m fl_lightning`, `torchrun -m fl_lightning`."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from fl_lightning.callbacks.quiet import quiet
from fl_lightning.errors import ConfigurationError, configuration_error, folded, nearest, noted
from fl_lightning.options.commands import FURTHER, OF_LIGHTNING, main_parser

HOMES = {
    "sweep": "fl_lightning.experiments.command.sweep",
    "report": "fl_lightning.experiments.command.report",
    "pack": "fl_lightning.experiments.command.pack",
    "analyse": "fl_lightning.analysis.command.analyse",
    "list": "fl_lightning.catalogue.command.show",
    "init": "fl_lightning.catalogue.beginning.init",
    "completion": "fl_lightning.catalogue.completion.completion",
    **dict.fromkeys(OF_LIGHTNING, "fl_lightning.configuration.FederatedCLI"),
}
"""The functions of commands. Modules are imported for the command that is given: torch and Lightning take seconds."""

EXCEPTIONS = "lightning.pytorch.utilities.exceptions"

TRACEBACK = "--traceback"

PATIENCE_SECONDS = 10.0
"""How long a process waits for the first one of its node to say the same; that takes seconds to end where cores are few."""

MISTAKE, FAULT = 2, 1
"""Exit status where the user can mend it, and where a program must be mended: this one, or the user's own code."""


def fail(message: str, status: int) -> NoReturn:
    """Print an error once per node and leave."""
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0" or not said_by_another():
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)


def said_by_another() -> bool:
    """Wait for the end that comes if the first process of the node has met the same, which it most likely has.

    Its launcher then ends this process, or was that process itself. If nothing comes, this process alone has met it.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's handler would let it live on
    parent, deadline = os.getppid(), time.monotonic() + PATIENCE_SECONDS
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.1)
    return os.getppid() != parent


def explained(error: Exception) -> tuple[str, int]:
    """An exception on one line, and the exit status that it stands for."""
    mistake = configuration_error(error)
    if mistake is not None:
        return folded(mistake), MISTAKE
    if isinstance(error, OSError) and error.strerror:
        files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{files}: {error.strerror}" if files else error.strerror, MISTAKE
    if isinstance(error, ImportError) or is_a(error, EXCEPTIONS, "MisconfigurationException"):
        return folded(error), MISTAKE
    if isinstance(error, MemoryError) or is_a(error, "torch", "OutOfMemoryError") or "can't allocate memory" in str(error):
        return f"not enough memory: {folded(error)}; ask for less data, clients, parameters, or smaller batches", FAULT
    frame = closest_to_user(traceback.extract_tb(error.__traceback__))
    where = ", ".join(filter(None, (frame.filename, f"line {frame.lineno}", noted(error))))
    return f"{type(error).__name__}: {folded(error)} ({where}); the same command with {TRACEBACK} shows all of it", FAULT


def closest_to_user(frames: Sequence[traceback.FrameSummary]) -> traceback.FrameSummary:
    """Where an exception came from: in the user's own code, if any of that is among the frames."""
    libraries = tuple({str(Path(__file__).parent), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib"))})
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    return (own or frames)[-1]


def is_first() -> bool:
    """Whether this process is the first of all ranks, as Lightning has told it or its launcher does."""
    ranks = sys.modules.get("lightning.pytorch.utilities.rank_zero")
    return not getattr(getattr(ranks, "rank_zero_only", None), "rank", None)


def is_a(error: BaseException, module: str, name: str) -> bool:
    """Whether an exception is of a library's class; of a library that nobody has imported it cannot be."""
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(error, cls)


def find_own_modules() -> None:
    """Let classes of the current folder be named, as `python -m` does and a console script does not."""
    if not sys.flags.safe_path and not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def imported(module: str) -> ModuleType:
    """A module, with no search for garbage while it is imported: all of it stays, and to look takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        if enabled:
            gc.enable()


def run(args: Sequence[str]) -> None:
    """Run one command, with whatever it raises."""
    if args and args[0] in ("-h", "--help", "--version"):
        main_parser().parse_args(args[:1])
    known = [*OF_LIGHTNING, *FURTHER]
    if not args or not (args[0] in known or args[0].startswith("-")):
        found = nearest(args[0], known) if args else f"known: {', '.join(known)}"
        raise ConfigurationError(f"there is no command {args[0]}; {found}" if args else f"a command is missing; {found}")
    module, _, name = HOMES.get(args[0], HOMES["fit"]).rpartition(".")
    function = getattr(imported(module), name)
    quiet()
    function(args[1:] if args[0] in FURTHER else args)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; see `fl-lightning --help`. No mistake ends in a traceback, unless that is asked for."""
    find_own_modules()
    given = list(sys.argv[1:] if args is None else args)
    end = given.index("--") if "--" in given else len(given)
    shown = TRACEBACK in given[:end]
    try:
        run([word for i, word in enumerate(given) if i > end or word != TRACEBACK])
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:
        if not is_a(error, EXCEPTIONS, "SIGTERMException"):
            raise
        # What is not finished is no success. The first rank alone says so, which has the record to write: whoever started the
        # ranks kills those that are left when one of them fails.
        sys.exit(128 + signal.SIGTERM if is_first() else 0)
    except Exception as error:
        if shown:
            traceback.print_exc()
        fail(*explained(error))


if __name__ == "__main__":
    main()
