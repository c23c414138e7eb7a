"""Scaling on paper: the time and memory of a round from a dozen constants, held against measurements, and carried to GPUs.

    OMP_NUM_THREADS=1 python -m benchmarks.cost_model [--write docs/explanation/cost_model.md]

Symbols and formulas stand in docs/explanation/cost_model.md, whose numbers are what this script prints. It measures the
constants of this machine's CPUs, predicts settings that no constant was fitted to, measures those too, and predicts GPUs from
datasheets.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from scipy.optimize import nnls
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import environment, timed
from benchmarks.memory import stored
from fl_lightning import CohortSampler, FederatedDataModule, Federation, LocalTraining
from fl_lightning.aggregators import Invariant
from fl_lightning.cli import quiet
from fl_lightning.data import IID, TensorSamples
from fl_lightning.machine.footprint import Footprint, owned, readable
from fl_lightning.models import MLP, ResNet18
from fl_lightning.updates import Exchange, UpdateShard
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.exchange import BUCKET_BYTES
from fl_lightning.updates.order_statistics import network

CPU = torch.device("cpu")
ALPHA = 0.25
BYTES = 4

STEP_PASSES = 8
"""Vectors of d numbers that a step reads or writes: weights forwards and backwards, gradients, SGD with momentum (5)."""

CLIENT_PASSES = 7
"""The same between two clients: weights flattened (2), subtracted into the updates (3), restored (2)."""

SERVER_PASSES = 11
"""The same of the server: weights flattened (2) and laid out for subtraction (3), aggregate padded (2) and checked, SGD (3)."""

SHARD_PASSES = 2
"""Times that the shard is read or written to put its rows in order."""

MASK_OPERATIONS = 6
"""On rows, for the mask and to put mean and mask in place."""

MARKS = ("<!-- written by benchmarks/cost_model.py -->", "<!-- end of what is written -->")
FITS_BYTES = 80 * 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a rank's device can do, and the links between ranks.

    Attributes:
        flops: floating-point operations per second in training.
        step_seconds: what a step takes beside arithmetic, however small the model.
        client_seconds: what a client takes beside its steps.
        round_seconds: what a round takes beside its phases.
        evaluation_seconds: what an evaluation takes beside its batches.
        memory: bytes per second read or written in long vectors.
        vectors: the same in training: of networks as small as those measured, what caches give; memory's on a GPU.
        rule: bytes per second read or written in the rule's pieces: the cache's on a CPU, memory's on a GPU.
        column_seconds: what a coordinate takes of the rule beside its rows.
        network: bytes per second that a rank receives.
        message_seconds: what a collective takes beside its bytes.
        crowding: how much longer training takes where other ranks train on the same chip.
        launch_seconds: from one operation of the rule to the next; on a CPU within `rule`.
        overlap: whether buckets travel while the rule works, which takes more than the cores that the rule works on.
    """

    flops: float
    step_seconds: float
    client_seconds: float
    round_seconds: float
    evaluation_seconds: float
    memory: float
    vectors: float
    rule: float
    column_seconds: float
    network: float
    message_seconds: float
    crowding: float = 1.0
    launch_seconds: float = 0.0
    overlap: bool = False


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is done in a round.

    Attributes:
        clients: N.
        coordinates: d.
        ranks: W.
        steps: batches per client.
        batch: samples per batch.
        sample_flops: floating-point operations of a training step per sample.
        evaluated: samples of the evaluation sets.
        bucket_bytes: memory for a bucket of the exchange.
        compiled: whether the rule runs in one pass over the updates.
        counted: whether the rule counts votes in passes of their own, as it does on a GPU when not compiled.
    """

    clients: int
    coordinates: int
    ranks: int = 1
    steps: int
    batch: int
    sample_flops: float
    evaluated: int = 0
    bucket_bytes: int = BUCKET_BYTES
    compiled: bool = False
    counted: bool = False

    @property
    def local(self) -> int:
        """K_r of the rank with the most clients."""
        return -(-self.clients // self.ranks)

    @property
    def owned(self) -> int:
        """S."""
        return owned(self.coordinates, self.ranks)

    @property
    def buckets(self) -> int:
        """Of the exchange."""
        if self.ranks == 1:
            return 1
        block = block_size(self.coordinates)
        return -(-self.owned // (max(1, self.bucket_bytes // (BYTES * self.clients) // block) * block))


def predict(what: Round, on: Machine) -> dict[str, float]:
    """Seconds of each phase; the formulas of docs/explanation/cost_model.md."""
    d, peers = what.coordinates, what.ranks - 1
    step = on.step_seconds + BYTES * d * STEP_PASSES / on.vectors + what.batch * what.sample_flops / on.flops
    client = on.client_seconds + BYTES * d * CLIENT_PASSES / on.vectors + what.steps * step
    to_coordinates = what.buckets * on.message_seconds + BYTES * what.owned * what.local * peers / on.network
    in_order = BYTES * what.clients * what.owned * SHARD_PASSES / on.memory
    to_all = on.message_seconds + BYTES * what.owned * peers / on.network
    rule = rule_seconds(what, on)
    if on.overlap:  # all but the first bucket
        to_coordinates = max(to_coordinates / what.buckets, to_coordinates - rule)
    evaluation = what.evaluated / what.ranks * what.sample_flops / 3 / on.flops
    return {
        "training": what.local * client * (on.crowding if peers else 1.0),
        "exchange": to_coordinates + in_order + to_all if peers else 0.0,
        "aggregation": rule + BYTES * d * SERVER_PASSES / on.memory,
        "evaluation": on.evaluation_seconds + evaluation if what.evaluated else 0.0,
        "the rest": on.round_seconds,
    }


def rule_seconds(what: Round, on: Machine) -> float:
    """The invariant aggregator reads the updates once, and works on rows of them."""
    operations, rows = rule_work(what)
    column = BYTES * what.clients / on.memory + BYTES * rows / on.rule + on.column_seconds
    return what.owned * column + operations * what.buckets * on.launch_seconds


def rule_work(what: Round) -> tuple[int, int]:
    """How many operations on rows the rule makes of a bucket, and how many rows these read or write: three each."""
    n = what.clients
    if what.compiled:  # all in one, with the result and the mask
        return 1, 2
    b = -int(-ALPHA * n // 1)
    operations = sum(e.minimum + e.maximum for e in network(n, b, n - b)) + n - 2 * b + MASK_OPERATIONS
    return operations + 3 * what.counted, 3 * (operations + n * what.counted)


# ---- this machine's constants ----------------------------------------------------------------------------------------


EVALUATED = 2000


@dataclass(frozen=True)
class Training:
    """A federation of perceptrons on random data: units per layer, N, samples per client, samples per batch, W."""

    sizes: tuple[int, ...]
    clients: int
    samples: int
    batch: int
    ranks: int = 1

    def round(self) -> Round:
        weights = sum(a * b for a, b in pairwise(self.sizes))
        return Round(
            clients=self.clients,
            coordinates=weights + sum(self.sizes[1:]),
            ranks=self.ranks,
            steps=-(-self.samples // self.batch),
            batch=self.batch,
            sample_flops=6 * weights,
            evaluated=EVALUATED,
        )


SMALL, MIDDLE, LARGE = (45, 128, 256, 2), (45, 256, 512, 2), (45, 512, 1024, 2)
ROUNDS, REPEATS = 8, 7


@dataclass(frozen=True)
class Measured:
    """Settings: trainings, (N, d, bytes of a bucket) of exchanges, (N, d) of rules; with the seconds that they took."""

    trainings: dict[Training, dict[str, float]]
    exchanges: dict[tuple[int, int, int], float]
    rules: dict[tuple[int, int], float]


FITTED = (
    [
        *(Training(sizes, 12, *batches) for sizes in (SMALL, LARGE) for batches in ((8, 8), (64, 8), (512, 64))),
        Training(LARGE, 12, 256, 64, ranks=2),
    ],
    [(20, 500_000, 2**20), (20, 4_000_000, 16 * 2**20), (40, 1_000_000, 4 * 2**20), (10, 4_000_000, 2**20)],
    [(5, 1_000_000), (16, 1_000_000), (40, 500_000)],
)
HELD_OUT = (
    [Training(MIDDLE, 20, 320, 32), Training(MIDDLE, 20, 320, 32, ranks=2), Training(LARGE, 21, 128, 32, ranks=2)],
    [(30, 2_000_000, 4 * 2**20), (20, 3_000_000, 2 * 2**20)],
    [(20, 1_000_000), (60, 250_000)],
)


def measure(settings: tuple[list[Training], list[tuple[int, int, int]], list[tuple[int, int]]]) -> Measured:
    """Each in processes of its own."""
    trainings, exchanges, rules = settings
    return Measured(
        {what: on_ranks(what.ranks, measured_training, what) for what in trainings},
        {what: on_ranks(2, measured_exchange, *what)["exchange"] for what in exchanges},
        {what: on_ranks(1, measured_rule, *what)["rule"] for what in rules},
    )


class Marks(L.Callback):
    """When each round ended, and the seconds of all phases until then."""

    def __init__(self) -> None:
        self.marks: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Federation)
        self.marks.append({**pl_module.seconds, "round": time.perf_counter()})


def measured_training(what: Training) -> dict[str, float]:
    """Seconds of the phases of a round of `Federation`: of the shortest round but the first, as disturbances only add to it."""
    draws = torch.Generator().manual_seed(0)
    train, test = (
        TensorSamples(torch.randn(n, what.sizes[0], generator=draws), torch.randint(2, (n,), generator=draws))
        for n in (what.clients * what.samples, EVALUATED)
    )
    data = FederatedDataModule.from_datasets(train, test, partition=IID(num_clients=what.clients), num_classes=2)
    cohort = CohortSampler(clients_per_round=what.clients, malicious_fraction=0.0)
    local = LocalTraining(batch_size=what.batch, executor="graph")  # which `auto` takes for an MLP, but not at once
    marks = Marks()
    L.Trainer(
        accelerator="cpu",
        devices=what.ranks,
        strategy="federated" if what.ranks > 1 else "auto",
        max_epochs=ROUNDS + 1,
        callbacks=[marks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(Federation(MLP(sizes=what.sizes), Invariant(), cohort=cohort, local=local), data)
    rounds = [{name: later[name] - sooner[name] for name in later} for sooner, later in pairwise(marks.marks)]
    seconds = min(rounds, key=lambda of_round: of_round["round"])
    seconds["training"] = seconds.pop("local_training")
    seconds["the rest"] = seconds["round"] - sum(
        seconds[name] for name in ("training", "exchange", "aggregation", "evaluation")
    )
    return seconds


def measured_exchange(n: int, d: int, bucket_bytes: int) -> dict[str, float]:
    """Seconds of `to_coordinates` and `to_all` on this rank, the least of some."""
    exchange = Exchange([d], CPU, bucket_bytes=bucket_bytes)
    owner = torch.arange(n) % exchange.world

    def once() -> float:
        updates = stored(exchange, owner, torch.ones(d))

        def there_and_back() -> None:
            shard = exchange.to_coordinates(updates, owner, torch.ones(n), torch.zeros(n, dtype=torch.bool))
            shard.settle()
            exchange.to_all(shard.row(0))

        dist.barrier()
        return timed(there_and_back, CPU)()

    once()
    return {"exchange": min(once() for _ in range(REPEATS))}


def measured_rule(n: int, d: int) -> dict[str, float]:
    """Seconds of the invariant aggregator on one rank, the least of some."""
    shard, rule = UpdateShard.from_updates(torch.randn(n, d)), Invariant(alpha=ALPHA)
    run = timed(lambda: rule(shard), CPU)
    run()
    return {"rule": min(run() for _ in range(REPEATS))}


def copy_bandwidth() -> dict[str, float]:
    """Bytes per second read and written by a copy of 64 MiB, the most of some."""
    source, target = torch.ones(2**24), torch.ones(2**24)
    run = timed(lambda: target.copy_(source), CPU)
    return {"memory": 2 * BYTES * 2**24 / min(run() for _ in range(REPEATS))}


def on_ranks(world: int, function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """What a function returns in fresh processes that share a gloo group; of each entry the largest of all ranks."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world)]
        processes = [
            context.Process(target=_rank, args=(rank, world, folder, pipe[1], function, arguments))
            for rank, pipe in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()  # the child has its own end: should that fail, reading ends too
        found = [ours.recv() for ours, _ in pipes]
        for process in processes:
            process.join()
    return {name: max(of_rank[name] for of_rank in found) for name in found[0]}


def _rank(rank: int, world: int, folder: str, results: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    if world > 1:
        on_group(rank, world, f"file://{folder}/group")
    results.send(function(*arguments))
    if world > 1:
        dist.destroy_process_group()


def on_group(rank: int, world: int, meet: str) -> None:
    """Make this process one of a gloo group. Lightning sees a torchrun launch and finds the group already there."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(GROUP_RANK="0", TORCHELASTIC_RUN_ID="cost model", MASTER_ADDR="nowhere", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)


def fitted(to: Measured, memory: float) -> Machine:
    """Constants, none below zero, that come closest to what was measured, in relative terms."""
    alone = {what: seconds for what, seconds in to.trainings.items() if what.ranks == 1}
    rows, left = [], []
    for what, seconds in alone.items():
        r = what.round()
        vectors = BYTES * r.coordinates * (CLIENT_PASSES + r.steps * STEP_PASSES)
        rows.append([r.clients, r.clients * r.steps, r.clients * vectors, r.clients * r.steps * r.batch * r.sample_flops])
        left.append(seconds["training"])
    client, step, per_vector_byte, per_operation = least_squares(rows, left)
    rows, left = [], []
    for (n, d, bucket), found in to.exchanges.items():
        r = bare(n, d, bucket_bytes=bucket, ranks=2)
        rows.append([r.buckets + 1, BYTES * r.owned * (r.local + 1)])
        left.append(found - BYTES * n * r.owned * SHARD_PASSES / memory)
    message, per_byte = least_squares(rows, left)
    rows = [[float(BYTES * d * rule_work(bare(n, d))[1]), float(d)] for n, d in to.rules]
    per_rule_byte, per_column = least_squares(rows, [found - BYTES * d * n / memory for (n, d), found in to.rules.items()])

    machine = Machine(
        flops=1 / max(per_operation, 1e-15),
        step_seconds=step,
        client_seconds=client,
        round_seconds=statistics.median(seconds["the rest"] for seconds in alone.values()),
        evaluation_seconds=0.0,
        memory=memory,
        vectors=1 / max(per_vector_byte, 1e-15),
        rule=1 / max(per_rule_byte, 1e-15),
        column_seconds=per_column,
        network=1 / max(per_byte, 1e-15),
        message_seconds=message,
    )
    evaluations = [
        seconds["evaluation"] - predict(what.round(), machine)["evaluation"]
        for what, seconds in alone.items()
        if what.sizes == SMALL  # where there is little else in an evaluation
    ]
    machine = replace(machine, evaluation_seconds=max(0.0, statistics.median(evaluations)))
    together = [(seconds["training"], what.round()) for what, seconds in to.trainings.items() if what.ranks > 1]
    return replace(machine, crowding=statistics.mean(found / predict(r, machine)["training"] for found, r in together))


def least_squares(rows: list[list[float]], values: list[float]) -> list[float]:
    """x >= 0 with rows @ x nearest to the values, each weighed by its own size; columns are scaled to be alike."""
    matrix, target = torch.tensor(rows, dtype=torch.float64), torch.tensor(values, dtype=torch.float64).clamp(min=1e-9)
    matrix = matrix / target[:, None]
    scale = matrix.norm(dim=0)
    found, _ = nnls((matrix / scale).numpy(), torch.ones(len(values), dtype=torch.float64).numpy())
    return (torch.from_numpy(found) / scale).tolist()


def bare(n: int, d: int, *, bucket_bytes: int = BUCKET_BYTES, ranks: int = 1) -> Round:
    """A round without training."""
    return Round(clients=n, coordinates=d, ranks=ranks, steps=0, batch=0, sample_flops=0, bucket_bytes=bucket_bytes)


# ---- GPUs on paper ---------------------------------------------------------------------------------------------------

PEAK_FLOPS = 989e12
PEAK_MEMORY = 3.35e12
MEMORY_SHARE = 0.8
NVLINK, NETWORK = 400e9, 50e9
NVLINK_RANKS = 8
MESSAGE_SECONDS, LAUNCH_SECONDS = 50e-6, 10e-6
"""Assumed of an H100: datasheet figures (dense bfloat16 FLOP/s, bytes per second), and what is reached of them."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and its clients: `operators` are those of a training step, `flops_share` what is reached of the GPU's peak."""

    name: str
    round: Round
    operators: int
    flops_share: float
    data_bytes: int
    optimizer_copies: int
    num_buffers: int = 0

    def footprint(self, ranks: int) -> Footprint:
        return Footprint(
            num_clients=self.round.clients,
            num_coordinates=self.round.coordinates,
            world=ranks,
            bucket_bytes=self.round.bucket_bytes,
            model_bytes=BYTES * (self.round.coordinates + self.num_buffers),
            num_buffers=self.num_buffers,
            data_bytes=self.data_bytes,
            optimizer_copies=self.optimizer_copies,
        )

    def machine(self, ranks: int, host: Machine) -> Machine:
        """A GPU, whose host takes as long between clients, rounds and evaluations as this one does."""
        memory = PEAK_MEMORY * MEMORY_SHARE
        return replace(
            host,
            flops=PEAK_FLOPS * self.flops_share,
            step_seconds=self.operators * LAUNCH_SECONDS,
            memory=memory,
            vectors=memory,
            rule=memory,
            column_seconds=0.0,
            network=NVLINK if ranks <= NVLINK_RANKS else NETWORK,
            message_seconds=MESSAGE_SECONDS,
            launch_seconds=LAUNCH_SECONDS,
            crowding=1.0,
            overlap=True,
        )


class Operators(TorchDispatchMode):
    """Counts operators that compute something."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def workloads() -> list[Workload]:
    """ResNet-18 on CIFAR-10, its operations counted here, and an imagined decoder of a billion parameters."""
    model, batch = ResNet18(), (torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64))
    optimizer = model.configure_optimizers()
    with FlopCounterMode(display=False) as flops, Operators() as operators:
        model.training_step(batch, 0).backward()
        optimizer.step()
    few = Round(
        clients=20,
        coordinates=sum(p.numel() for p in model.parameters()),
        steps=8,
        batch=64,
        sample_flops=flops.get_total_flops() / 2,
        evaluated=10_000,
        bucket_bytes=256 * 2**20,
        compiled=True,
    )
    resnet = Workload(
        name="ResNet-18",
        round=few,
        operators=operators.count,
        flops_share=0.15,
        data_bytes=60_000 * (3 * 32 * 32 + 8),  # uint8 images, int64 classes
        optimizer_copies=1,
        num_buffers=sum(b.numel() for b in model.buffers() if b.is_floating_point()),
    )
    d, tokens = 10**9, 512
    decoder = Workload(
        name="decoder",
        round=replace(
            few, clients=64, coordinates=d, steps=16, batch=8, sample_flops=6.0 * d * tokens, evaluated=1000, bucket_bytes=2**30
        ),
        operators=1500,
        flops_share=0.4,
        data_bytes=(64 * 16 * 8 + 1000) * tokens * 8,  # int64 tokens
        optimizer_copies=2,
    )
    eager = {"compiled": False, "counted": True}
    many = replace(resnet, round=replace(few, clients=100, **eager))
    return [resnet, many, replace(decoder, round=replace(decoder.round, **eager))]


# ---- the document's tables -------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def duration(seconds: float) -> str:
    if not seconds:
        return "0"
    if seconds < 1e-6:
        return f"{seconds * 1e9:.3g} ns"
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


RATES = dict.fromkeys(("memory", "vectors", "rule", "network"), (1e9, " GB/s"))
UNITS = {"flops": (1e9, " GFLOP/s"), **RATES, "crowding": (1.0, "")}


def constants(machine: Machine) -> str:
    rows = []
    for field in fields(machine):
        value = getattr(machine, field.name)
        size, unit = UNITS.get(field.name, (0.0, ""))
        if field.name not in ("launch_seconds", "overlap"):
            rows.append([f"`{field.name}`", f"{value / size:.3g}{unit}" if size else duration(value)])
    rows += [
        [f"`{name}`", str(globals()[name])]
        for name in ("STEP_PASSES", "CLIENT_PASSES", "SERVER_PASSES", "SHARD_PASSES", "MASK_OPERATIONS")
    ]
    return table(["constant", "value"], rows)


def comparison(measured: Measured, machine: Machine) -> str:
    """Predicted against measured."""
    compared: list[tuple[str, float, float]] = []
    for what, found in measured.trainings.items():
        seconds = predict(what.round(), machine)
        name = f"MLP {'-'.join(map(str, what.sizes))}, {what.samples} samples in batches of {what.batch}, N = {what.clients}"
        for part, predicted in (("training", seconds["training"]), ("round", sum(seconds.values()))):
            compared.append((f"{name}, W = {what.ranks}: {part}", predicted, found[part]))
    for (n, d, bucket), found in measured.exchanges.items():
        seconds = predict(bare(n, d, bucket_bytes=bucket, ranks=2), machine)
        compared.append((f"exchange, N = {n}, d = {d:,}, W = 2, buckets of {readable(bucket)}", seconds["exchange"], found))
    for (n, d), found in measured.rules.items():
        compared.append((f"invariant aggregator, N = {n}, d = {d:,}", rule_seconds(bare(n, d), machine), found))
    rows = [
        [name, duration(predicted), duration(found), f"{predicted / found - 1:+.0%}"] for name, predicted, found in compared
    ]
    return table(["setting", "predicted", "measured", "error"], rows)


def assumptions(of: Sequence[Workload]) -> str:
    """What the GPU tables stand on."""
    rows = [
        ["bfloat16, dense", f"{PEAK_FLOPS / 1e12:.0f} TFLOP/s"],
        ["memory", f"{PEAK_MEMORY / 1e12:.2f} TB/s, of which {MEMORY_SHARE:.0%} are reached"],
        ["links", f"{NVLINK / 1e9:.0f} GB/s a rank up to {NVLINK_RANKS} ranks, {NETWORK / 1e9:.0f} GB/s beyond"],
        ["a collective", duration(MESSAGE_SECONDS)],
        ["an operator", duration(LAUNCH_SECONDS)],
    ]
    rows += [
        [
            f"{w.name}, N = {w.round.clients}",
            f"d = {w.round.coordinates:,}, {w.round.sample_flops / 1e9:,.2f} GFLOP a sample, {w.operators} operators a step, "
            f"{w.round.steps} steps of {w.round.batch}, {w.flops_share:.0%} of the peak reached, {w.round.evaluated:,} samples "
            f"evaluated, {w.optimizer_copies} d of optimizer state, buckets of {readable(w.round.bucket_bytes)}, rule "
            + ("compiled" if w.round.compiled else "not compiled"),
        ]
        for w in of
    ]
    return table(["assumed", ""], rows)


def gpu_table(of: Workload, host: Machine) -> str:
    rows, phases, alone = [], [], 0.0
    for ranks in (1, 8, 64):
        what, footprint = replace(of.round, ranks=ranks), of.footprint(ranks)
        seconds = predict(what, of.machine(ranks, host))
        total, phases = sum(seconds.values()), list(seconds)
        alone = alone or total
        cells = [str(ranks), str(what.local), *map(duration, seconds.values()), duration(total), f"{alone / total:.1f}"]
        rows.append([*cells, readable(footprint.total), "yes" if footprint.total <= FITS_BYTES else "no"])
    return table(["W", "K_r", *phases, "round", "speed-up", "memory", f"fits {FITS_BYTES // 2**30} GiB"], rows)


def document() -> str:
    """Measure, fit, predict; the part of docs/explanation/cost_model.md that holds numbers."""
    began = time.perf_counter()
    memory = on_ranks(1, copy_bandwidth)["memory"]
    known, unknown = measure(FITTED), measure(HELD_OUT)
    host, imagined = fitted(known, memory), workloads()
    facts = environment(CPU)
    parts = [
        f"### Constants of {facts['device']}, {facts['cores']} cores, {facts['threads']} thread per rank",
        f"Measured on {date.today()}, torch {facts['torch']}, Lightning {facts['lightning']}, Python {facts['python']}, "
        f"in {time.perf_counter() - began:.0f} s.",
        constants(host),
        "### Settings that no constant was fitted to",
        comparison(unknown, host),
        "### Settings that they were fitted to",
        comparison(known, host),
        "### GPUs",
        assumptions(imagined),
    ]
    for workload in imagined:
        parts += [f"{workload.name}, N = {workload.round.clients}:", gpu_table(workload, host)]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of a round: constants, errors and predictions, in Markdown.")
    parser.add_argument("--write", type=Path, help="replace the part between the marks of this file")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    text = document()
    print(text)
    if options.write:
        before, rest = options.write.read_text().split(MARKS[0])
        _, after = rest.split(MARKS[1])
        options.write.write_text(f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main()
