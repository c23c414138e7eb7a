"""Seconds of the exchange of updates between ranks, against the one collective that it cannot do without.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.exchange

Measured is clients -> coordinates -> clients: `to_coordinates` of all updates and `to_all` of one row as the aggregate, each
with all that it does beside communication. The raw figure is a single `all_to_all_single` on one preallocated buffer of the
same updates, which neither puts rows in order nor brings an aggregate back.

Buckets travel while a rule works on those before them. How much of the exchange that hides is told by the same with the
invariant aggregator in it, against exchange and rule one after the other.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

import torch
import torch.distributed as dist

from benchmarks.common import alternate, emit, significant, summary, timed
from fl_lightning.aggregators import Invariant
from fl_lightning.updates import Exchange, UpdateShard
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

    rule = Invariant(tau=0.2, alpha=0.25)
    rest: list[UpdateShard] = []

    def ours(*, with_rule: bool = False) -> float:
        updates = exchange.local_updates(n, local, torch.zeros(options.coordinates, device=device))
        for bucket in updates.buckets:
            bucket.normal_()

        def there_and_back() -> None:
            shard = exchange.to_coordinates(updates, owner, torch.ones(n), torch.zeros(n, dtype=torch.bool))
            exchange.to_all(rule(shard) if with_rule else shard.row(0))
            rest[:] = [shard]

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

    def rule_alone() -> float:
        dist.barrier()
        return slowest(timed(partial(rule, rest[0]), device)())

    def slowest(seconds: float) -> float:
        most = torch.tensor(seconds, dtype=torch.float64, device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return most.item()

    candidates = {"raw": raw, "ours": ours, "with rule": partial(ours, with_rule=True), "rule": rule_alone}
    measured = alternate(candidates, repeats=options.repeats)
    seconds = {name: summary(values) for name, values in measured.items()}
    one_by_one = [exchanged + ruled for exchanged, ruled in zip(measured["ours"], measured["rule"], strict=True)]
    overlapped = [both / apart for both, apart in zip(measured["with rule"], one_by_one, strict=True)]
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
            "with_rule_seconds": seconds["with rule"],
            "rule_seconds": seconds["rule"],
            "with_rule_of_one_by_one": summary(overlapped),
            "repeats": options.repeats,
        }
        emit("exchange", row, device)


if __name__ == "__main__":
    main()
