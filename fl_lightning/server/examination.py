"""Models that clients submitted, looked at one by one on the rule's own terms, by all ranks together.

Updates lie on ranks by coordinates. They travel back whole, a few at a time, each to one rank, where the global module becomes
the submitted model for as long as the rule measures it. What is measured, q numbers for each, goes to all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.mixing import has_own
from fl_lightning.checked import shown
from fl_lightning.data.module import FederatedDataModule
from fl_lightning.data.probe import ProbeBatches
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.undisturbed import Keepsake, gradients_aside
from fl_lightning.seeding import derive_seed, generator, seed_global_generators
from fl_lightning.updates.examined import Examined
from fl_lightning.updates.exchange import Exchange
from fl_lightning.updates.layout import Layout, clamp_variances
from fl_lightning.updates.shard import UpdateShard

BROADCAST = -1
"""Stands for a client's number where the global model is examined; rows of nobody follow below."""


class Examination:
    """Has a rule examine models, if it wants to.

    The models are dealt out evenly, row i to rank i % W: each takes the same time, whoever trained it.

    Args:
        rule: the server's.
        module: the global model. It is as before after each examination.
        exchanges: of parameters and of buffers.
        layouts: of parameters and of buffers.
        data: the task.
        seed: the experiment's seed.
        phase: around what takes time.
    """

    def __init__(
        self,
        rule: Aggregator,
        module: L.LightningModule,
        exchanges: tuple[Exchange, Exchange],
        layouts: tuple[Layout, Layout],
        data: FederatedDataModule,
        seed: int,
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.rule, self.module, self.data, self.seed, self.phase = rule, module, data, seed, phase
        self.exchange, self.buffer_exchange = exchanges
        self.layout, self.buffer_layout = layouts
        self.wanted = has_own(rule, "examine")

    def offer(self, shard: UpdateShard, buffers: UpdateShard, broadcast: Tensor) -> None:
        """Let a round's models be examined when the rule asks for it.

        Args:
            shard: of the parameters, after attackers and exclusions.
            buffers: of the buffers, the same N rows.
            broadcast: (d,) float32, what the clients started from, and the module holds.
        """
        if self.wanted:
            shard.examination = partial(self.examine, buffers, broadcast)

    @cached_property
    def probe(self) -> ProbeBatches:
        """The rule's."""
        return ProbeBatches(self.rule.probe, self.data, self.exchange.device, self.seed)

    def examine(self, buffers: UpdateShard, broadcast: Tensor, shard: UpdateShard) -> Examined:
        """Measure the model of every row, and the global one; all ranks must call it."""
        with self.phase("examination"), isolate_rng(), torch.no_grad(), gradients_aside(self.module):
            if shard.mixture is not None:
                buffers = buffers.mix(shard.mixture)
            self.probe.round_number = shard.round_number
            return self._examine(buffers, broadcast, shard)

    def _examine(self, buffers: UpdateShard, broadcast: Tensor, shard: UpdateShard) -> Examined:
        n, rank, world = shard.num_clients, self.exchange.rank, self.exchange.world
        clients = [BROADCAST - 1 - i for i in range(n)] if shard.clients is None else shard.clients.tolist()
        kept = Keepsake(self.module)
        old_buffers = self.buffer_layout.flatten(self.module)
        self._look(self.rule.examine_broadcast, kept, shard.round_number, BROADCAST)
        measured = []
        arriving = zip(self.exchange.to_ranks(shard), self.buffer_exchange.to_ranks(buffers), strict=True)
        for first, (update, of_buffers) in zip(range(0, n, world), arriving, strict=True):
            if update is None or of_buffers is None:
                continue
            self.layout.load(self.module, broadcast - update)
            self.buffer_layout.load(self.module, old_buffers - of_buffers)
            clamp_variances(self.module)
            measured.append(self._measure(kept, shard.round_number, clients[first + rank]))
        if n % world == rank:  # the global model's is the last row
            measured.append(self._measure(kept, shard.round_number, BROADCAST))
        width = self._agree({len(row) for row in measured})
        own = torch.stack(measured) if measured else broadcast.new_empty(0, width)
        rows = self.exchange.rows_to_all(own, n + 1)
        return Examined(rows[:n], rows[n])

    def _measure(self, kept: Keepsake, t: int, client: int) -> Tensor:
        """(q,) of the model that the module is now, which is the global one again then."""
        return self._checked(self._look(self.rule.examine, kept, t, client))

    def _look(self, hook: Callable[..., Any], kept: Keepsake, t: int, client: int) -> Any:
        """What a hook of the rule makes of the module, which is put back."""
        self.module.eval()
        seed_global_generators(derive_seed(self.seed, "examined", t, client))
        kept.seed(self.seed, "examined", t, client)
        try:
            found = hook(self.module, self.probe, generator(self.seed, "examine", t, client))
        except Exception as error:
            whose = "the global model" if client == BROADCAST else "a mixed model" if client < 0 else f"client {client}'s model"
            error.add_note(f"while {type(self.rule).__name__} examined {whose} in round {t}")
            raise
        kept.put_back(thoroughly=True)
        return found

    def _checked(self, row: Any) -> Tensor:
        """What a rule measured, as float32."""
        if not isinstance(row, Tensor) or row.ndim != 1 or row.is_complex():
            found = f"{row.dtype} of shape {tuple(row.shape)}" if isinstance(row, Tensor) else shown(row)
            raise ConfigurationError(
                f"{type(self.rule).__name__}.examine must return a tensor (q,) of real numbers, got {found}; flatten what it is"
            )
        return row.detach().to(self.exchange.device, torch.float32, copy=True)

    def _agree(self, own: set[int]) -> int:
        """q, as all ranks have found it."""
        found = sorted(set().union(*self.exchange.collect(own)))
        if len(found) > 1:
            raise ConfigurationError(
                f"{type(self.rule).__name__}.examine must return as many numbers for every model, got {found[0]} for one and "
                f"{found[-1]} for another"
            )
        return found[0]
