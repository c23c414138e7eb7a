"""What changes from step to step is kept from a step that is recorded: it would be as it was the first time in all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from fl_lightning.modules.traced_graphs import NotRecordableError


class Unknown:
    """Stands for what a recorded step must not depend on: any use of it raises `NotRecordableError`."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def __getattr__(self, attribute: str) -> Any:
        raise NotRecordableError(f"its step looks at {self.name}, which changes from step to step")

    def _used(self, *_: Any) -> Any:
        raise NotRecordableError(f"its step looks at {self.name}, which changes from step to step")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __float__ = __index__ = __str__ = __format__ = (
        _used
    )
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = _used
    __pow__ = __rpow__ = __neg__ = __abs__ = __hash__ = _used  # pyrefly: ignore[bad-override]


@contextmanager
def without_trainer(module: L.LightningModule) -> Iterator[None]:
    """Nobody inside can see the Trainer, and so the round."""
    parts = [part for part in module.modules() if "_trainer" in part.__dict__]
    before = [part.__dict__["_trainer"] for part in parts]
    for part in parts:
        part.__dict__["_trainer"] = Unknown("the Trainer")
    try:
        yield
    finally:
        for part, trainer in zip(parts, before, strict=True):
            part.__dict__["_trainer"] = trainer
