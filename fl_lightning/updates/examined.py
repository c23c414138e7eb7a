"""What a rule measured on the models that clients submitted, beside their updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Examined(NamedTuple):
    """Measurements of a round.

    Attributes:
        clients: (N, q) float32, one row for each row of the shard.
        broadcast: (q,) float32, of the model that the clients were sent.
    """

    clients: Tensor
    broadcast: Tensor


class Examinable:
    """A shard whose models may be examined.

    Attributes:
        examination: what `examined` asks, once: the shard to its `Examined`. There from when attackers are done to the server's
            step, for rules with an `examine`.
        mixture: (N, M) float64 on CPU, the weights with which the rows are means of M submitted updates; None where they are
            those.
    """

    examination: Callable[[Any], Examined] | None = None
    mixture: Tensor | None = None
    _examined: Examined | None = None

    @property
    def examined(self) -> Tensor | None:
        """(N, q) float32, what `Aggregator.examine` measures on each row's model, which is the broadcast minus the row.

        The same bits on all ranks. It is measured when it is first asked for, which must be on all ranks alike. None where
        there is nothing to ask: the rule examines nothing, attackers are not done yet, the shard is a plain tensor's.
        """
        found = self._measured()
        return None if found is None else found.clients

    @property
    def examined_broadcast(self) -> Tensor | None:
        """(q,) float32, the same of the model that the clients were sent."""
        found = self._measured()
        return None if found is None else found.broadcast

    def _measured(self) -> Examined | None:
        if self._examined is None and self.examination is not None:
            self._examined = self.examination(self)
        return self._examined

    def keep_examined(self, rows: Tensor) -> None:
        """Go on with those of the rows where `rows` ((N,) bool) is true."""
        if self.examination is None:
            return
        everyone = torch.eye(len(rows), dtype=torch.float64) if self.mixture is None else self.mixture
        self.mixture = everyone[rows.cpu()]
        if self._examined is not None:
            self._examined = Examined(self._examined.clients[rows], self._examined.broadcast)
