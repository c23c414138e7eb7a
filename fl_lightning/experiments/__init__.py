"""Many runs: sweeps, how they are run on a machine or by SLURM, and what is reported of them.

They may import the configuration and everything below it; each run is a process of its own. Read `sweep.py` first: the file
format and its runs. `runs`, `curves`, `clients` and `load_model` read what came out, `worst_case` chooses settings by it.
"""

import importlib
from typing import Any

__all__ = ["clients", "curves", "load_model", "runs", "worst_case"]

MODULES = dict.fromkeys(("clients", "curves", "load_model", "runs"), "frames") | {"worst_case": "worst_attack"}


def __getattr__(name: str) -> Any:  # imported when asked for, as what watches over runs needs no pandas
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)
