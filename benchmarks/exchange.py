"""Seconds of the exchange of updates between ranks, against the one collective that it cannot do without.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.exchange

Measured is clients -> coordinates -> clients: `to_coordinates` of all updates and `to_all` of one row as the aggregate, each
with all that it does beside communication. The raw figure is a single `all_to_all_single` on one preallocated buffer of the
same updates, which neither puts rows in order nor brings an aggregate back.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist

from benchmarks.common import alternate, emit, significant, summary, timed
from fl_lightning.updates import Exchange
from fl_lightning.updates.exchange import BUCKET_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description="The exchange of updates against the raw collective, under torchrun.")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--bucket-bytes", type=int, default=BUCKET_BYTES)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu (gloo) or cuda (nccl)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        measure(options, device)
    finally:
        dist.destroy_process_group()


def measure(options: argparse.Namespace, device: torch.device) -> None:
    """Measure both on all ranks; rank 0 prints the time of the slowest rank."""
    rank, world, n = dist.get_rank(), dist.get_world_size(), options.clients
    exchange = Exchange([options.coordinates], device, bucket_bytes=options.bucket_bytes)
    owner = torch.arange(n) % world  # client i is trained on rank i mod W, so rows arrive out of order
    local = int((owner == rank).sum())
    sent = torch.bincount(owner, minlength=world).tolist()
    raw_in = torch.zeros(world * local * exchange.padded, device=device)
    raw_out = torch.empty(n * exchange.padded, device=device)

    def ours() -> float:
        updates = exchange.local_updates(n, local, torch.zeros(options.coordinates, device=device))
        for bucket in updates.buckets:
            bucket.zero_()

        def there_and_back() -> None:
            shard = exchange.to_coordinates(updates, owner, torch.ones(n), torch.zeros(n, dtype=torch.bool))
            exchange.to_all(shard.buckets[0][0] if len(shard.buckets) == 1 else torch.cat([b[0] for b in shard.buckets]))

        dist.barrier()
        return slowest(timed(there_and_back, device)())

    def raw() -> float:
        def collective() -> None:
            dist.all_to_all_single(
                raw_out,
                raw_in,
                output_split_sizes=[k * exchange.padded for k in sent],
                input_split_sizes=[local * exchange.padded] * world,
            )

        dist.barrier()
        return slowest(timed(collective, device)())

    def slowest(seconds: float) -> float:
        most = torch.tensor(seconds, dtype=torch.float64, device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.item()

    seconds = {name: summary(values) for name, values in alternate({"raw": raw, "ours": ours}, repeats=options.repeats).items()}
    if rank == 0:
        row = {
            "ranks": world,
            "backend": dist.get_backend(),
            "clients": n,
            "coordinates": options.coordinates,
            "bucket_bytes": options.bucket_bytes,
            "exchange_seconds": seconds["ours"],
            "all_to_all_seconds": seconds["raw"],
            "ratio": significant(seconds["ours"]["median"] / seconds["raw"]["median"]),
            "repeats": options.repeats,
        }
        emit("exchange", row, device)


if __name__ == "__main__":
    main()
