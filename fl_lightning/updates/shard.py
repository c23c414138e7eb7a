"""All clients' updates at some of the coordinates: where attackers and rules meet.

After the exchange a rank holds, for every client of the round, the coordinates that the rank owns. A coordinate-wise rule
needs nothing else (`map`). A rule that needs distances gets sums over all coordinates (`reduce`, `gram`).

Bits do not depend on the number of ranks: coordinates are cut into fixed blocks that are never split between ranks, sums
are taken inside a block, and the blocks' partial results are added in pairs, pairs of pairs and so on, by the blocks' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from fl_lightning.errors import ConfigurationError
from fl_lightning.seeding import generator
from fl_lightning.updates.arriving import ArrivingBuckets, RowsOf
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.examined import Examinable
from fl_lightning.updates.layers import Layer, as_layers
from fl_lightning.updates.means_of_sets import Sets
from fl_lightning.updates.overflow import mend
from fl_lightning.updates.plain import checked_malicious, checked_updates, checked_weights
from fl_lightning.updates.sums import Summable

CACHE_ELEMENTS = 2**18
"""Elements (N x columns) that a rule works on at a time on a CPU: 1 MiB of float32, about one core's L2."""

ROWS_AT_A_TIME = 4
"""Rows in the cache where a function takes up one after the other. With N rows in there operations would be short: a sum of a
thousand rows took fifty times as long."""


class UpdateShard(Examinable, Summable):
    """This rank's coordinates of all N updates of a round.

    Letters: N clients, d coordinates in all, S of them on this rank.

    Args:
        buckets: (N, s) float32 tensors side by side, S columns together; row i is client i's pseudo-gradient, old minus
            new parameters. Every bucket but the last starts and ends at a block's boundary.
        weights: (N,) float32, the clients' sample counts.
        malicious: (N,) bool, ground truth; for attacks and diagnostics, never for rules.
        clients: (N,) int64 on CPU, the clients' numbers; None where rows do not stand for clients.
        num_coordinates: d.
        start: the first coordinate on this rank.
        layers: the parameter tensors that the coordinates come from, in order; their sizes alone, adding up to d, where rows
            have no model; one tensor where left out.
        distributed: whether the coordinates are shared out over the default process group.
        seed: the experiment's seed, for rules that draw.
        round_number: t, for the same.
        compiled: whether rules may run compiled, which takes seconds for a new number of clients; bits are the same.
        finite: (N,) bool, which updates are finite at all d coordinates, where that is known.

    Attributes:
        root: (S,) float32, the server's own update from its root set, for rules that ask for one.
        kept: (S,) bool, the coordinates that the rule's mask let move, where it has aggregated these updates and has a mask.
        verdict: (N,) float32 on the CPU in [0, 1], how much each client counted beside the one that counted most; 0 is turned
            away. None before a rule has aggregated these updates, and where it does not judge clients. See `judge`.
        broadcast: (S,) float32, the global weights that the clients started from, on this rank's coordinates: a view, not to be
            changed. None for a plain tensor, and for buffers.
    """

    def __init__(
        self,
        buckets: Sequence[Tensor],
        weights: Tensor,
        malicious: Tensor,
        *,
        num_coordinates: int,
        clients: Tensor | None = None,
        start: int = 0,
        layers: Sequence[Layer | int] | None = None,
        distributed: bool = False,
        seed: int = 0,
        round_number: int = 0,
        compiled: bool = False,
        finite: Tensor | None = None,
    ) -> None:
        self.buckets = buckets if isinstance(buckets, (ArrivingBuckets, RowsOf)) else list(buckets)
        self.weights = weights
        self.malicious = malicious
        self.clients = clients
        self.root: Tensor | None = None
        self.kept: Tensor | None = None
        self.verdict: Tensor | None = None
        self.broadcast: Tensor | None = None
        self.num_coordinates = num_coordinates
        self.start = start
        self.layers = as_layers([num_coordinates] if layers is None else layers)
        self.distributed = distributed  # not the group itself: see Exchange
        self.seed = seed
        self.round_number = round_number
        self.compiled = compiled
        self.finite = finite
        self._rewritten: Tensor | None = None  # (N,) bool, whose finiteness is not known any more

    @classmethod
    def from_updates(cls, updates: Any, weights: Any = None, malicious: Any = None) -> UpdateShard:
        """The shard of a single process that holds all updates whole; row i is client i.

        Args:
            updates: (N, d) tensor, array or list of rows, taken as float32.
            weights: (N,), at least 0 and not all of them 0; 1 each where left out.
            malicious: (N,) bool, none where left out.

        Raises:
            ConfigurationError: for anything else.
        """
        updates = checked_updates(updates)
        weights, malicious = checked_weights(weights, updates), checked_malicious(malicious, updates)
        return cls([updates], weights, malicious, num_coordinates=updates.shape[1], clients=torch.arange(len(updates)))

    @property
    def num_clients(self) -> int:
        """N."""
        return len(self.weights)

    @property
    def width(self) -> int:
        """S, the coordinates on this rank."""
        return sum(bucket.shape[1] for bucket in self.buckets) if isinstance(self.buckets, list) else self.buckets.width

    @property
    def values(self) -> Tensor:
        """(N, S) float32, all buckets side by side; a copy if there are several, so for tests and small models."""
        return self.buckets[0] if len(self.buckets) == 1 else torch.cat(list(self.buckets), dim=1)

    @property
    def shares(self) -> Tensor:
        """(N,) float32, the weights divided by their sum."""
        return (self.weights.double() / self.weights.double().sum()).float()

    def row(self, i: int) -> Tensor:
        """(S,) float32, the i-th update on this rank's coordinates; a copy if there are several buckets."""
        return self.buckets[0][i] if len(self.buckets) == 1 else torch.cat([bucket[i] for bucket in self.buckets])

    def map(
        self, function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32, *, row_by_row: bool = False
    ) -> Tensor:
        """Apply a coordinate-wise function, a cache-sized piece at a time.

        Args:
            function: (N, c) float32 -> (c,); each output may depend on its own column only. It must not change its input.
            dtype: of the result.
            row_by_row: whether it takes up one row after the other, a few at a time: pieces are longer then.

        Returns:
            (S,) of `dtype`.
        """
        out = torch.empty(self.width, dtype=dtype, device=self.weights.device)
        for columns, piece in self._pieces(ROWS_AT_A_TIME if row_by_row else self.num_clients):
            out[columns] = function(piece)
        return out

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Each bucket, (N, s), with its place among the S columns."""
        at = 0
        for bucket in self.buckets:
            yield slice(at, at + bucket.shape[1]), bucket
            at += bucket.shape[1]

    def _pieces(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """The shard a piece (N, c) at a time, of which `rows` fit the cache, with its place among the S columns.

        On a GPU that is a bucket.
        """
        for columns, bucket in self.columns():
            width, at = bucket.shape[1], columns.start
            chunk = max(1, width) if bucket.is_cuda else max(256, CACHE_ELEMENTS // max(1, rows))
            for first in range(0, width, chunk):
                piece = bucket[:, first : first + chunk]
                yield slice(at + first, at + first + piece.shape[1]), piece

    def rewrite(self, rows: Tensor, function: Callable[..., Tensor], *along: Tensor) -> None:
        """Replace some of the updates in place, a cache-sized piece at a time.

        Args:
            rows: (N,) bool, which of them, M in number.
            function: (M, c) float32 and the same c coordinates of every tensor in `along`, (..., c) each -> (M, c) or (c,).
            along: (..., S) tensors to be cut up with the updates.
        """
        if rows.any():
            self._rewritten = rows if self._rewritten is None else self._rewritten | rows
            for columns, piece in self._pieces(self.num_clients):
                piece[rows] = function(piece[rows], *(tensor[..., columns] for tensor in along))

    def mean(self, shares: Tensor | None = None) -> Tensor:
        """(S,) weighted mean of the updates, with `shares` (N,) summing to 1, by default 1/N each."""
        n = self.num_clients
        return self.combine(torch.full((n,), 1.0 / n, dtype=torch.float64) if shares is None else shares)

    def combine(self, coefficients: Tensor) -> Tensor:
        """(S,) linear combination of the updates: sum_i c_i g_i for `coefficients` (N,), the same on all ranks.

        Rows are scaled and added one after the other, each in an operation of its own: a fused or blocked sum would round
        differently in vectorised loops and their remainders, and so with the shard's width. Rows of coefficient 0 are left out.
        Where float32 does not hold the sum, it is taken in float64.
        """
        factors = [torch.tensor(factor, dtype=torch.float32) for factor in coefficients.tolist()]

        def added(values: Tensor) -> Tensor:
            total, scaled = torch.zeros_like(values[0]), torch.empty_like(values[0])
            for row, factor in zip(values, factors, strict=True):
                if factor:
                    total += torch.mul(row, factor, out=scaled)
            return total

        return mend(self.map(added, row_by_row=True), self.columns(), added)

    def mix(self, matrix: Tensor, clients: Tensor | None = None) -> UpdateShard:
        """Other updates in place of these: row j is sum_i matrix[j, i] g_i, added up in float64, block by block.

        As for `gram`, a library's matrix products may round otherwise on another device or with other numbers of threads. It
        shows in float32 where updates cancel out. On a CPU, means of some of many updates are added up in float32: see
        `means_of_sets`.

        Args:
            matrix: (M, N), the same on all ranks.
            clients: (M,) int64, whose updates the mixed rows still are, if anyone's.

        Returns:
            A new shard of M updates of weight 1; a mixed row counts as malicious if a malicious update has a part in it.
        """
        factors = matrix.to(self.weights.device, torch.float64)
        rows = torch.empty(len(matrix), self.width, device=self.weights.device)
        sets = None if rows.is_cuda else Sets.of(factors)
        for columns, block in self._blocks(torch.float64 if sets is None else torch.float32):
            of_block = rows[:, columns]
            if sets is None or not sets.means(block, of_block):
                of_block.copy_(factors @ block.to(torch.float64, memory_format=torch.contiguous_format))
        mixed = self.with_rows(rows)
        mixed.malicious = ((matrix != 0).to(self.malicious.device) & self.malicious).any(dim=1)
        mixed.clients, mixed.root, mixed.examination = clients, self.root, self.examination
        mixed.mixture = matrix.double().cpu() if self.mixture is None else matrix.double().cpu() @ self.mixture
        return mixed

    def generator(self, purpose: str, *keys: int) -> torch.Generator:
        """A CPU generator for a rule's draws in this round, the same on all ranks."""
        return generator(self.seed, f"rule: {purpose}", self.round_number, *keys)

    def noise(self, purpose: str) -> Tensor:
        """(S,) float32 standard normal, keyed by seed, round and coordinate block, so independent of the number of ranks."""
        size = block_size(self.num_coordinates)
        pieces = [
            torch.randn(min(size, self.width - first), generator=self.generator(purpose, (self.start + first) // size))
            for first in range(0, self.width, size)
        ]
        return torch.cat([torch.empty(0), *pieces]).to(self.weights.device)

    def layer_slices(self) -> list[tuple[int, slice]]:
        """Where this rank's columns belong: (index into `layers`, slice of the S columns), for layers that it touches."""
        width = self.width
        pieces = [(i, layer.columns(self.start, width)) for i, layer in enumerate(self.layers)]
        return [(i, columns) for i, columns in pieces if columns.start < columns.stop]

    def count_by_layer(self, mask: Tensor) -> Tensor:
        """(number of layers,) int64, how many coordinates of each layer a mask ((S,) bool) holds, on all ranks together."""
        counts = torch.zeros(len(self.layers), dtype=torch.int64, device=mask.device)
        for layer, columns in self.layer_slices():
            counts[layer] = mask[columns].sum()
        return self.count(counts)

    def finite_rows(self) -> Tensor:
        """(N,) bool, which updates are finite at all d coordinates; looked at where nobody has done so yet."""
        if self.finite is None:
            self.finite = torch.ones_like(self.malicious)
            self.look_again(self.finite)
        elif self._rewritten is not None:
            self.look_again(self._rewritten)
        return self.finite

    def look_again(self, rows: Tensor) -> None:
        """See which of the updates that `rows` ((N,) bool) names are finite, as after they were rewritten."""
        if self.finite is None:
            return
        rows = rows if self._rewritten is None else rows | self._rewritten
        if not rows.any():
            return
        bad = torch.zeros(int(rows.sum()), dtype=torch.int64, device=self.weights.device)
        everyone = bool(rows.all())
        for bucket in self.buckets:
            if bucket.shape[1]:
                looked_at = bucket if everyone else bucket[rows]
                low, high = looked_at.amin(dim=1), looked_at.amax(dim=1)  # NaN and infinities survive in the extremes
                bad += ~(low.isfinite() & high.isfinite())
        self._rewritten = None
        self.finite = self.finite.clone()
        self.finite[rows] = self.count(bad) == 0

    def judge(self, counted: Tensor, most: float | None = None) -> None:
        """Set `verdict`; for rules, whose `judges` is true then.

        Be a_i the weight with which a rule let g_i into its result, and u_i the one that it would have had without suspicion:
        1/N, or its share of the samples. The verdict is r_i = a_i / u_i, divided by the largest r that there could be. Where a
        rule only takes away, as by clipping, that is 1, what an untouched client has. Where it shares out weight, so that
        some win what others lose, it is the largest of the round. So neither sample counts nor lengths to which all updates
        are brought show in it, and rules are comparable.

        Args:
            counted: (N,) at least 0, the r_i or any multiple of them; the same bits on all ranks.
            most: what an untouched client has, where the rule only takes away; the largest of the round where left out.

        Raises:
            ConfigurationError: for anything but N finite numbers of at least 0.

        Example:
            >>> shard = UpdateShard.from_updates(torch.eye(3))
            >>> shard.judge(torch.tensor([0.0, 0.1, 0.4]))
            >>> shard.verdict
            tensor([0.0000, 0.2500, 1.0000])
        """
        counted = counted.detach().cpu().double()
        if counted.shape != (self.num_clients,) or not (counted.isfinite() & (counted >= 0)).all():
            raise ConfigurationError(
                f"a rule's verdict must be {self.num_clients} finite numbers of at least 0, one for each update, got the shape "
                f"{tuple(counted.shape)} and {counted.flatten().tolist()[:5]} ...; see UpdateShard.judge"
            )
        most = float(counted.max()) if most is None else most
        self.verdict = (counted / (most or 1.0)).clamp(0, 1).float()

    def keep(self, rows: Tensor) -> None:
        """Drop all clients but those where `rows` ((N,) bool) is true, one bucket at a time."""
        self.weights, self.malicious = self.weights[rows], self.malicious[rows]
        self.clients = None if self.clients is None else self.clients[rows.cpu()]
        self.finite = None if self.finite is None else self.finite_rows()[rows]
        self.verdict = None if self.verdict is None else self.verdict[rows.cpu()]
        self.compiled = False  # a number of clients that may not come again is not worth it
        self.keep_examined(rows)
        self.settle()
        assert isinstance(self.buckets, list)
        for i, bucket in enumerate(self.buckets):
            self.buckets[i] = bucket[rows]

    def split(self, first: int) -> tuple[UpdateShard, UpdateShard]:
        """The first rows, and the others; both look at this shard's memory."""
        parts = []
        for rows in (slice(None, first), slice(first, None)):
            part = copy(self)
            part.examination = None  # who is examined has been split before
            whole = self.buckets
            part.buckets = [bucket[rows] for bucket in whole] if isinstance(whole, list) else RowsOf(whole, rows)
            part.finite = None if self.finite is None else self.finite[rows]
            part._rewritten = None if self._rewritten is None else self._rewritten[rows]
            part.weights, part.malicious = self.weights[rows], self.malicious[rows]
            part.clients = None if self.clients is None else self.clients[rows]
            parts.append(part)
        return parts[0], parts[1]

    def with_rows(self, rows: Tensor) -> UpdateShard:
        """Other vectors, (M, S) float32, at the same coordinates; benign, of weight 1 and of no client."""
        others = UpdateShard(
            [rows],
            torch.ones(len(rows), device=rows.device),
            torch.zeros(len(rows), dtype=torch.bool, device=rows.device),
            num_coordinates=self.num_coordinates,
            start=self.start,
            layers=self.layers,
            distributed=self.distributed,
            seed=self.seed,
            round_number=self.round_number,
        )
        others.broadcast = self.broadcast
        return others
