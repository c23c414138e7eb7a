"""Most memory that a rank holds in a round, against what `fl_lightning.machine.footprint` says before it, and against law 3.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m benchmarks.memory
    OMP_NUM_THREADS=1 python -m benchmarks.memory

Nothing is trained: in place of each training a vector is stored as the client's update, while a snapshot and a vector of
gradients are held as in training, so that activations and the optimizer's state are all that is missing. Every case has
processes of its own, so that none finds memory that another has freed. What would not fit is refused; the row says why.

Law 3 is model + data + K_r * d + N * bucket: what grows with the clients, without the vectors of d and S numbers beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common import emit, significant, synchronize
from fl_lightning.aggregators import Aggregator, Invariant, Krum
from fl_lightning.errors import ConfigurationError
from fl_lightning.machine.footprint import MEBIBYTE, Footprint, available_bytes, check_fits
from fl_lightning.updates import Exchange
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.exchange import BUCKET_BYTES, LocalUpdates

TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class Case:
    """A round: N clients, d coordinates, a rule."""

    clients: int
    coordinates: int
    rule: str
    bucket_bytes: int

    def make_rule(self) -> Aggregator:
        return Krum(num_malicious=self.clients // 5) if self.rule == "Krum" else Invariant()

    def footprint(self, world: int, device: torch.device) -> Footprint:
        """What is predicted, without data, buffers and optimizers, as the case has none."""
        return Footprint(
            num_clients=self.clients,
            num_coordinates=self.coordinates,
            world=world,
            bucket_bytes=self.bucket_bytes,
            model_bytes=4 * self.coordinates,
            sum_size=self.clients**2 if self.rule == "Krum" else 0,
            gather_copies=int(device.type == "cpu"),  # gloo
        )

    def law(self, world: int) -> int:
        """Bytes of model + K_r * d + N * bucket; nothing travels on one rank."""
        bucket = 0 if world == 1 else max(self.bucket_bytes, 4 * self.clients * block_size(self.coordinates))
        return 4 * self.coordinates * (1 + -(-self.clients // world)) + bucket


def stored(exchange: Exchange, owner: Tensor, old: Tensor) -> LocalUpdates:
    """This rank's updates as its clients' trainings leave them, client i's being old - (i + 1) times a random vector.

    Args:
        exchange: of the round.
        owner: (N,) int64, which rank trains whom.
        old: (d,) float32, the weights that every client starts with.
    """
    mine = torch.nonzero(owner == exchange.rank).flatten().tolist()
    snapshot = old.clone()
    updates = exchange.local_updates(len(owner), len(mine), old)
    gradients = torch.randn_like(old)
    for k, client in enumerate(mine):
        torch.mul(gradients, client + 1, out=updates.new)
        updates.store(k)
    del snapshot
    return updates


def one_round(case: Case, exchange: Exchange) -> None:
    """Exchange, exclusion, rule, and the aggregate on every rank."""
    model = torch.ones(case.coordinates, device=exchange.device)
    broadcast = model.clone()
    owner = torch.arange(case.clients) % exchange.world
    updates = stored(exchange, owner, broadcast)
    shard = exchange.to_coordinates(updates, owner, torch.ones(case.clients), torch.zeros(case.clients, dtype=torch.bool))
    assert shard.finite_rows().all()
    aggregate = case.make_rule()(shard)
    shard.settle()
    gradient = exchange.to_all(aggregate)
    model -= gradient


def measured(case: Case, exchange: Exchange) -> dict[str, Any]:
    """The row of a case: measured on the rank that took the most, or why it was refused; the same on every rank."""
    device, footprint = exchange.device, case.footprint(exchange.world, exchange.device)
    free = exchange.collect(available_bytes(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    row: dict[str, Any] = {"clients": case.clients, "coordinates": case.coordinates, "rule": case.rule, "ranks": exchange.world}
    row |= {"predicted_mb": mebibytes(footprint.total), "law_mb": mebibytes(case.law(exchange.world))}
    try:
        check_fits(footprint, min((size for size in free if size is not None), default=None))
    except ConfigurationError as error:
        return {**row, "refused": str(error)}
    warm_up(exchange)
    before = start_of_peak(device)
    began = time.perf_counter()
    one_round(case, exchange)
    synchronize(device)
    seconds, peak = time.perf_counter() - began, max(exchange.collect(peak_since(before, device)))
    ratio = {"of_predicted": significant(peak / footprint.total), "of_law": significant(peak / case.law(exchange.world))}
    return {**row, "measured_mb": mebibytes(peak), **ratio, "seconds": significant(seconds)}


def warm_up(exchange: Exchange) -> None:
    """Let the backend make the connections and buffers that it keeps."""
    small = Exchange([exchange.world], exchange.device)
    small.to_all(torch.ones(small.stop - small.start, device=exchange.device))


def mebibytes(size: int) -> float:
    return significant(size / MEBIBYTE)


# ---- the high-water mark ---------------------------------------------------------------------------------------------


def start_of_peak(device: torch.device) -> int:
    """Forget the most memory that this process ever held; returns the bytes that it holds now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")  # makes VmHWM what VmRSS is
    return status_bytes("VmRSS")


def peak_since(before: int, device: torch.device) -> int:
    """Most bytes beyond `before` since `start_of_peak`."""
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")) - before


def status_bytes(name: str) -> int:
    """A figure of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


# ---- processes -------------------------------------------------------------------------------------------------------


def in_fresh_process(number: int, case: Case, device: torch.device) -> dict[str, Any] | None:
    """The row of the `number`-th case, from a process that this rank forks for it; None if it died."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(number, case, device, theirs))
    process.start()
    theirs.close()  # the child has its own end: should that fail, reading ends too
    try:
        return ours.recv()
    except EOFError:
        return None
    finally:
        process.join()


def child(number: int, case: Case, device: torch.device, results: Any) -> None:
    """Join the other ranks' children of the same case, and measure."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(f"case {number}", store),
            rank=int(os.environ["RANK"]),
            world_size=world,
            timeout=TIMEOUT,
        )
    results.send(measured(case, Exchange([case.coordinates], device, bucket_bytes=case.bucket_bytes)))
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a round on a rank, against what is predicted.")
    parser.add_argument("--clients", nargs="+", type=int, default=[20, 100, 1000])
    parser.add_argument("--coordinates", nargs="+", type=int, default=[1_000_000, 11_689_512])
    parser.add_argument("--rules", nargs="+", default=["Invariant", "Krum"], choices=["Invariant", "Krum"])
    parser.add_argument("--bucket-bytes", type=int, default=BUCKET_BYTES)
    parser.add_argument("--device", default="cpu", help="cpu (gloo) or cuda (nccl)")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    cases = [
        Case(n, d, rule, options.bucket_bytes) for d in options.coordinates for n in options.clients for rule in options.rules
    ]
    for number, case in enumerate(cases):
        row = in_fresh_process(number, case, device)
        if int(os.environ.get("RANK", "0")) == 0:
            emit(
                "memory",
                row or {"clients": case.clients, "coordinates": case.coordinates, "rule": case.rule, "died": True},
                device,
            )


if __name__ == "__main__":
    main()
