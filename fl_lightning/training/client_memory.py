"""What clients keep from round to round, wherever they are trained next."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_lightning.updates.exchange import Exchange


class ClientMemory:
    """Vectors that clients keep between rounds; a rank is home to those of clients c with c % W its number.

    Args:
        size: P, numbers that each client keeps; 0 for none.
        exchange: by which they travel.

    Attributes:
        rows: by client number, (P,) float32 each, of clients that this rank is home to.
    """

    def __init__(self, size: int, exchange: Exchange) -> None:
        self.size, self.exchange = size, exchange
        self.rows: dict[int, Tensor] = {}

    def fetch(self, clients: Tensor, owner: Tensor) -> dict[int, Tensor]:
        """Those of the clients ((M,) int64, on rank `owner`) that this rank trains, by client number; zeros at first."""
        if not self.size:
            return {}
        home = clients % self.exchange.world
        rows = {
            m: self.rows.get(int(client), torch.zeros(self.size, device=self.exchange.device))
            for m, client in enumerate(clients)
            if home[m] == self.exchange.rank
        }
        return {int(clients[m]): row for m, row in self.exchange.route(rows, home, owner, self.size).items()}

    def give_back(self, memory: dict[int, Tensor], clients: Tensor, owner: Tensor) -> None:
        """Send what `fetch` gave, as it is now, back to where it is at home."""
        if not self.size:
            return
        rows = {m: memory[int(client)] for m, client in enumerate(clients) if owner[m] == self.exchange.rank}
        home = clients % self.exchange.world
        for m, row in self.exchange.route(rows, owner, home, self.size).items():
            self.rows[int(clients[m])] = row.clone()
