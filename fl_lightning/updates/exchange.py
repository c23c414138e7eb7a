"""Clients on ranks <-> coordinates on ranks.

Before the exchange rank r holds whole updates, (K_r, d), of the clients that it trained; after it, (N, S): all clients at
the coordinates that rank r owns. Rank r owns S_pad = ceil(blocks / W) * block consecutive coordinates from r * S_pad on;
the last ranks may own fewer, or none, and columns beyond d are padding.

Memory on a rank is K_r * d for the updates plus two buckets of N * s: updates are stored bucket by bucket in the order in
which they are sent, each bucket is given up as soon as its coordinates have arrived, and the next one travels meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fl_lightning.updates.arriving import ArrivingBuckets, Finish
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.gathering import all_gather, begin_gathering
from fl_lightning.updates.layers import Layer, as_layers
from fl_lightning.updates.shard import UpdateShard

BUCKET_BYTES = 16 * 2**20
"""Default memory for one bucket."""


class LocalUpdates:
    """The updates of the clients that this rank trained, laid out for sending.

    Args:
        bucket_columns: s of each bucket.
        num_local: K_r.
        world: W.
        old: (d,) float32, what the clients started from.

    Attributes:
        new: (d,) float32; write a client's weights here, then call `store`.
        buckets: (W, K_r, s) float32 per bucket; entry [w, k, j] is a coordinate that rank w owns.
    """

    def __init__(self, bucket_columns: list[int], num_local: int, world: int, old: Tensor) -> None:
        d, device = len(old), old.device
        self.buckets = [torch.empty(world, num_local, columns, device=device) for columns in bucket_columns]
        self._extremes = torch.zeros(len(bucket_columns), num_local, 2, device=device)
        padded = old.new_zeros(2, world * sum(bucket_columns))
        padded[0, :d] = old
        self.new = padded[1, :d]
        self._old_parts, self._new_parts = padded.view(2, world, -1)

    def store(self, k: int) -> None:
        """Keep what `old` has over `new` as the update of this rank's k-th client."""
        if not len(self.new):
            return
        at = 0
        for bucket, extremes in zip(self.buckets, self._extremes, strict=True):
            columns = slice(at, at + bucket.shape[2])
            update = bucket[:, k]
            torch.sub(self._old_parts[:, columns], self._new_parts[:, columns], out=update)
            torch.aminmax(update, out=extremes[k].unbind())  # looked at while it is in the cache
            at = columns.stop

    @property
    def finite(self) -> Tensor:
        """(K_r,) bool, which of the updates are finite everywhere; NaN and infinities survive in the extremes."""
        return self._extremes.isfinite().all(dim=2).all(dim=0)

    @property
    def moved(self) -> bool:
        """Whether one of the updates is anything but zeros."""
        return bool(self._extremes.any())

    def close(self) -> None:
        """Give up everything but the updates, which are about to travel; whoever gets a part of one sees if it is finite."""
        self.new = self._old_parts = self._new_parts = self.new.new_empty(0)
        broken = ~self.finite
        if broken.any():
            for bucket in self.buckets:
                bucket[:, broken] = torch.nan


class Exchange:
    """The journey of (., d) vectors between ranks; the same on one process, without communication.

    Args:
        layers: the tensors that make up the d coordinates; their sizes alone, where they stand for no model.
        device: where vectors live.
        bucket_bytes: memory for one bucket of N * s float32 during the exchange; at least one block of coordinates goes
            at a time, so that is the lower bound.
        compiled: whether rules may run compiled on what is exchanged.
    """

    def __init__(
        self, layers: Sequence[Layer | int], device: torch.device, *, bucket_bytes: int = BUCKET_BYTES, compiled: bool = False
    ) -> None:
        self.layers = as_layers(layers)
        self.num_coordinates = num_coordinates = sum(layer.size for layer in self.layers)
        self.device = device
        self.bucket_bytes = bucket_bytes
        self.compiled = compiled
        # The group is not kept: an object that holds it when Python shuts down makes gloo abort the process.
        initialized = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size() if initialized else 1
        self.rank = dist.get_rank() if initialized else 0
        self.distributed = self.world > 1
        self.block = block_size(num_coordinates)
        blocks = -(-num_coordinates // self.block)
        self.padded = -(-blocks // self.world) * self.block  # S_pad
        self.start = min(self.rank * self.padded, num_coordinates)
        self.stop = min(self.start + self.padded, num_coordinates)

    def bucket_columns(self, num_clients: int) -> list[int]:
        """Columns s of each bucket, for N clients; they add up to S_pad."""
        if self.world == 1:
            return [self.padded]  # nothing is sent, so nothing needs cutting up
        columns = max(1, self.bucket_bytes // (4 * num_clients) // self.block) * self.block
        return [min(columns, self.padded - first) for first in range(0, self.padded, columns)]

    def local_updates(self, num_clients: int, num_local: int, old: Tensor) -> LocalUpdates:
        """Room for the updates of this rank's K_r clients of a round with N, who all start from `old` ((d,) float32)."""
        return LocalUpdates(self.bucket_columns(num_clients), num_local, self.world, old)

    def to_coordinates(
        self,
        updates: LocalUpdates,
        owner: Tensor,
        weights: Tensor,
        malicious: Tensor,
        clients: Tensor | None = None,
        *,
        seed: int = 0,
        round_number: int = 0,
    ) -> UpdateShard:
        """Exchange updates for this rank's coordinates of all clients. Uses `updates` up.

        Args:
            updates: this rank's clients, in cohort order.
            owner: (N,) int64 on CPU, which rank trained each client of the cohort.
            weights: (N,) float32, sample counts.
            malicious: (N,) bool.
            clients: (N,) int64 on CPU, the clients' numbers.
            seed: the experiment's seed, for rules that draw.
            round_number: t, for the same.

        Returns:
            A shard whose rows are in cohort order, whatever ranks trained them. Its first bucket is there, the others arrive as
            they are asked for. An update that is not finite at every coordinate is NaN at every coordinate.
        """
        updates.close()
        n = len(owner)
        sent = torch.bincount(owner, minlength=self.world).tolist()  # K_q of every rank q
        arrival = torch.argsort(owner, stable=True)  # row j that arrives is client arrival[j] of the cohort
        order = torch.argsort(arrival)
        in_order = torch.equal(order, torch.arange(n))
        order = order.tolist()
        width = self.stop - self.start
        ends = accumulate(bucket.shape[2] for bucket in updates.buckets)
        columns_left = iter([width - end + bucket.shape[2] for bucket, end in zip(updates.buckets, ends, strict=True)])
        finite: list[Tensor] = []  # (N,) bool, once the first bucket is there

        def begin() -> Finish:
            bucket, left = updates.buckets.pop(0), next(columns_left)
            s = bucket.shape[2]
            rows, work = bucket.view(n, s) if not self.distributed else torch.empty(n, s, device=self.device), None
            if self.distributed:
                work = dist.all_to_all_single(
                    rows.view(-1),
                    bucket.view(-1),
                    output_split_sizes=[k * s for k in sent],
                    input_split_sizes=[sent[self.rank] * s] * self.world,
                    async_op=True,
                )

            def finish() -> Tensor:
                if work is not None:
                    work.wait()
                if not in_order:
                    reorder(rows, order)
                if s and not finite:
                    finite.append(rows[:, 0].isfinite())
                return rows[:, : max(0, min(s, left))]

            return finish

        arriving = ArrivingBuckets(begin, len(updates.buckets), width)
        arriving[:1]  # receives it, and so fills `finite`
        return UpdateShard(
            arriving if self.distributed else list(arriving),
            weights.to(self.device),
            malicious.to(self.device),
            num_coordinates=self.num_coordinates,
            clients=clients,
            start=self.start,
            layers=self.layers,
            distributed=self.distributed,
            seed=seed,
            round_number=round_number,
            compiled=self.compiled,
            finite=finite[0] if self.num_coordinates else torch.ones(n, dtype=torch.bool, device=self.device),
        )

    def to_all(self, values: Tensor) -> Tensor:
        """(S,) on each rank -> (d,) on every rank."""
        if not self.distributed:
            return values
        padded = values.new_zeros(self.padded)
        padded[: len(values)] = values
        gathered = values.new_empty(self.world * self.padded)
        all_gather(gathered, padded)
        return gathered[: self.num_coordinates]

    def to_ranks(self, shard: UpdateShard) -> Iterator[Tensor | None]:
        """The way back, whole updates one at a time: row i of the shard to rank i % W.

        All ranks must take all there is, at the same pace: W rows travel between them at a time.

        Yields:
            ceil(N / W) times this rank's next row, (d,) and not to be changed; None where it has none left.
        """
        shard.settle()
        n, world, padded = shard.num_clients, self.world, self.padded
        for first in range(0, n, world):
            if not self.distributed or not padded:
                yield shard.row(first) if not self.distributed else shard.weights.new_empty(0)
                continue
            leaving = torch.zeros(min(world, n - first), padded, device=self.device)
            for j, row in enumerate(leaving, first):
                row[: shard.width] = shard.row(j)
            arriving = torch.empty(world if first + self.rank < n else 0, padded, device=self.device)
            dist.all_to_all_single(
                arriving.view(-1),
                leaving.view(-1),
                output_split_sizes=[padded * bool(len(arriving))] * world,
                input_split_sizes=[padded * (rank < len(leaving)) for rank in range(world)],
            )
            yield arriving.view(-1)[: self.num_coordinates] if len(arriving) else None

    def rows_to_all(self, rows: Tensor, number: int) -> Tensor:
        """(K, q) on each rank -> (number, q) on every rank: of rows that are dealt out as by `to_ranks`, all in order."""
        if not self.distributed:
            return rows
        most = -(-number // self.world)
        own = rows.new_zeros(most, rows.shape[1])
        own[: len(rows)] = rows
        gathered = rows.new_empty(self.world * most, rows.shape[1])
        all_gather(gathered, own)
        return gathered.view(self.world, most, -1).transpose(0, 1).flatten(0, 1)[:number]

    def route(self, rows: dict[int, Tensor], source: Tensor, destination: Tensor, width: int) -> dict[int, Tensor]:
        """Send rows from rank to rank.

        Args:
            rows: this rank's rows, (width,) float32 each, by their number m.
            source: (M,) int64 on CPU, the rank that row m is on; the same on all ranks, as `destination`.
            destination: (M,) int64 on CPU, the rank that it is wanted on.
            width: elements of a row.

        Returns:
            The rows that this rank was sent, by their number.
        """
        if not self.distributed:
            return rows

        def by_rank(here: Tensor, there: Tensor) -> tuple[list[int], list[int]]:
            """The rows that `here` says are on this rank, ordered by where they are `there`, and how many are on each."""
            mine = torch.nonzero(here == self.rank).flatten()
            mine = mine[torch.argsort(there[mine], stable=True)]
            return mine.tolist(), (torch.bincount(there[mine], minlength=self.world) * width).tolist()

        leaving, sent = by_rank(source, destination)
        arriving, received = by_rank(destination, source)
        out = torch.stack([rows[m] for m in leaving]) if leaving else torch.empty(0, width, device=self.device)
        into = torch.empty(len(arriving), width, device=self.device)
        dist.all_to_all_single(into.view(-1), out.view(-1), output_split_sizes=received, input_split_sizes=sent)
        return dict(zip(arriving, into, strict=True))

    def broadcast(self, vector: Tensor) -> Tensor:
        """Rank 0's values on every rank, in place; a contiguous tensor of any shape."""
        if self.distributed and vector.numel():
            dist.broadcast(vector, src=0)
        return vector

    def collect(self, item: Any) -> list[Any]:
        """A small picklable object of every rank, on every rank, in rank order."""
        return self.begin_collecting(item)()

    def begin_collecting(self, item: Any) -> Callable[[], list[Any]]:
        """The same, on its way until what is returned here is called, so that other things can be done meanwhile."""
        return begin_gathering(item, self.device) if self.distributed else lambda: [item]


def reorder(rows: Tensor, order: list[int]) -> None:
    """Make row i what row order[i] was, in place, cycle by cycle with one row of spare room."""
    spare, done = torch.empty_like(rows[0]), [False] * len(order)
    for first in range(len(order)):
        if done[first] or order[first] == first:
            continue
        spare.copy_(rows[first])
        i = first
        while order[i] != first:
            rows[i].copy_(rows[order[i]])
            done[i], i = True, order[i]
        rows[i].copy_(spare)
        done[i] = True
