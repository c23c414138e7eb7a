"""A rule's own changes to the global model, before clients get it and after the server's step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.mixing import has_own
from fl_lightning.errors import ConfigurationError, enumerated
from fl_lightning.modules.undisturbed import Keepsake, gradients_aside
from fl_lightning.seeding import derive_seed, seed_global_generators
from fl_lightning.updates.copying import copy_each
from fl_lightning.updates.layout import Layout, named_state

log = logging.getLogger(__name__)


class Edits:
    """Has a rule edit the global model, if it wants to: on every rank, with the global generators seeded alike.

    An edit is what has become of the values of parameters and buffers. All else that a hook leaves behind in the module is put
    back: modes, gradients, what is kept in Python. An edit that makes a value infinite or NaN which was finite is taken back
    whole.

    Args:
        rule: the server's.
        module: the global model.
        layout: of its trainable parameters.
        seed: the experiment's seed.
        phase: around what takes time.
    """

    def __init__(
        self,
        rule: Aggregator,
        module: L.LightningModule,
        layout: Layout,
        seed: int,
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.rule, self.module, self.layout, self.seed, self.phase = rule, module, layout, seed, phase

    def before_broadcast(self, t: int, last_step: Tensor | None) -> bool:
        """Before round t; tells whether the edit was taken back.

        Args:
            t: the round.
            last_step: (d,) float32, by how much weights fell since the last broadcast, where somebody watches it; brought up to
                date.
        """
        if last_step is None or t == 0 or not has_own(self.rule, "before_broadcast"):
            return self._edit("before_broadcast", t)
        unedited = self.layout.flatten(self.module)
        taken_back = self._edit("before_broadcast", t)
        last_step += unedited - self.layout.flatten(self.module)
        return taken_back

    def after_step(self, t: int) -> bool:
        """At the end of round t; tells whether the edit was taken back."""
        return self._edit("after_step", t)

    def _edit(self, hook: str, t: int) -> bool:
        if not has_own(self.rule, hook):
            return False
        who = f"{type(self.rule).__name__}.{hook}"
        with self.phase("edits"), isolate_rng(), gradients_aside(self.module):
            kept = Keepsake(self.module)
            seed_global_generators(derive_seed(self.seed, hook, t))
            kept.seed(self.seed, hook, t)
            getattr(self.rule, hook)(self.module, t)
            edited = {name: tensor.clone() for name, tensor in named_state(self.module)}
            kept.put_back(thoroughly=True)
        before = dict(named_state(self.module))
        if [(name, tensor.shape) for name, tensor in edited.items()] != [(name, old.shape) for name, old in before.items()]:
            raise ConfigurationError(
                f"{who} adds, removes or reshapes parameters or buffers; it may change their values, as by "
                "parameter.copy_(...), and nothing else"
            )
        broken = [name for name, tensor in edited.items() if not finite(tensor) and finite(before[name])]
        if broken:
            log.warning("round %d: %s makes %s not finite; what it did is taken back", t, who, enumerated(broken))
            return True
        with torch.no_grad():
            copy_each(list(before.values()), list(edited.values()))
        return False


def finite(tensor: Tensor) -> bool:
    """Whether all values are."""
    return bool(tensor.isfinite().all())
