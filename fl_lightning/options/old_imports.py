"""Imports of files by the names that they had in earlier versions, in programs and in what such programs pickled."""

import importlib
import sys
import warnings
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType

from fl_lightning.options.old_names import PUBLIC, new_name


class OldName(Loader):
    """Loads a file of the package under the name that it had before.

    The module of now itself stands under both names, so that a class is the same by either.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """None: what is made by default has its place taken in `exec_module`."""

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of now in the place of the empty one of the old name, and say so at the import's line."""
        old = module.__name__
        sys.modules[old] = now = importlib.import_module(self.name)
        public = "".join(f", {name} from fl_lightning" for name in PUBLIC if hasattr(now, name))
        warnings.warn(f"{old} is {self.name} now; import from there{public}", FutureWarning, stacklevel=2)


def old_spec(module: str) -> ModuleSpec | None:
    """What to import for a file that is not there under this name; None where none had it before.

    >>> old_spec("fl_lightning.executors").loader.name
    'fl_lightning.training.executor'
    >>> old_spec("fl_lightning.executor") is None
    True
    """
    name = new_name(module)
    return None if name is None else ModuleSpec(module, OldName(name), origin=name)
