"""The memory that a round takes on one rank, as a sum that is known before training.

Letters: N updates travel in a round, K_r of them trained on one rank of W; d coordinates (trainable parameters), S of which a
rank owns, padded to whole blocks.

A rank holds model + data + K_r * d + N * bucket, and a few vectors of d or S. Not counted, as they cannot be known without
training: the activations of a step and copies of a client's data, what an optimizer takes for a moment beside its state, what a
rule computes with beyond its vectors, what the allocator keeps. So a round takes more than the sum: somewhat more where all of
a network is trained, several times as much beyond the network where most of it is frozen, whose activations are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.blocks import block_size
from fl_lightning.updates.exchange import BUCKET_BYTES

MEBIBYTE, GIBIBYTE = 2**20, 2**30

FLOAT32, FLOAT64 = 4, 8
"""Bytes of a number."""

BUCKETS_IN_FLIGHT = 2
"""One that arrives while the next is on its way."""

STATE_COPIES = {"Adagrad": 1, "Rprop": 2, "Adadelta": 2, "Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Adamax": 2, "ASGD": 1}
"""Vectors of d numbers that optimizers keep, by class, where settings do not matter."""


class Term(NamedTuple):
    """A part of the sum: what it is, how it comes about with its numbers, and bytes."""

    name: str
    formula: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory of a round on the rank that trains the most clients.

    What is held all through the round, plus the most that one of its phases takes: training, exchange, aggregation, examination
    if there is one.

    Attributes:
        num_clients: N, with what is trained beside the clients, as far as it is known before (a rule's root update).
        num_coordinates: d.
        world: W.
        local_clients: K_r, the most clients that a rank trains; ceil(N / W) where that is more.
        bucket_bytes: memory for one bucket of N * s during the exchange; at least one block of coordinates goes at a time.
        model_bytes: all parameters and buffers of the module.
        base_bytes: of its frozen base among them, which no phase copies.
        num_buffers: numbers in the floating-point buffers, which are exchanged beside the parameters.
        data_bytes: training and evaluation sets that are resident on the device. What a data set reads when a batch asks for it
            is not: a table on the disk takes the system's cache, which it gives back.
        index_bytes: the positions of clients' samples, 8 for each, where they are in the same memory: on a CPU.
        optimizer_copies: vectors of d numbers that a client's optimizer keeps (see `state_copies`).
        server_copies: the same of the server's optimizer.
        rule_vectors: vectors of S numbers that the rule remembers, or works with beside the aggregate.
        sum_size: float64 numbers in a sum over coordinates that the rule asks for: N * N for distances, 0 for none.
        gather_copies: copies of its own that the backend's all-gather makes of what it gathers: 1 with gloo, 0 with NCCL.
        recorded: whether steps are recorded, on weights, gradients and momenta of their own that last.
        branches: clients that are trained together, each in tensors of its own; 1 for one after the other. Where steps are
            recorded there are tensors for two more: those that recordings are made with, and those of a client that is alone.
        examined: whether the rule examines the models that clients submit. What it measures is not counted.
        watched: whether an attack watches the global model's steps, so that the last one is kept.

    Example:
        >>> Footprint(num_clients=20, num_coordinates=1_000_000, world=4, model_bytes=4_000_000).total // 2**20
        59
    """

    num_clients: int
    num_coordinates: int
    model_bytes: int
    world: int = 1
    local_clients: int = 0
    bucket_bytes: int = BUCKET_BYTES
    num_buffers: int = 0
    base_bytes: int = 0
    data_bytes: int = 0
    index_bytes: int = 0
    optimizer_copies: int = 0
    server_copies: int = 0
    rule_vectors: int = 0
    sum_size: int = 0
    gather_copies: int = 0
    recorded: bool = False
    branches: int = 1
    examined: bool = False
    watched: bool = False

    @property
    def throughout(self) -> list[Term]:
        """What is there from the beginning of the round to its end."""
        d, copies = self.num_coordinates, self.server_copies
        of_client = self.model_bytes - self.base_bytes + FLOAT32 * (self.optimizer_copies + self.recorded) * d
        many = self.branches + 2 * self.recorded if self.branches > 1 else 0
        symbols = "(branches + 2)" if self.recorded else "branches"
        return [
            Term("global model", f"{self.model_bytes:,} bytes", self.model_bytes),
            Term("data", f"{self.data_bytes:,} bytes", self.data_bytes),
            Term("clients' indices", f"{self.index_bytes:,} bytes", self.index_bytes),
            numbers("broadcast weights", "d", d),
            numbers("server optimizer", "copies * d", copies, d),
            numbers("watched step", "d", self.watched * d),
            numbers("rule's vectors", "vectors * S", self.rule_vectors, owned(d, self.world)),
            numbers("recorded steps", "(2 + copies) * d", self.recorded * (2 + self.optimizer_copies), d),
            Term("clients together", f"{symbols} * client: {many:,} * {of_client:,}", many * of_client),
        ]

    @property
    def phases(self) -> dict[str, list[Term]]:
        """What each phase takes beside that."""
        n, d, world = self.num_clients, self.num_coordinates, self.world
        k = max(self.local_clients, -(-n // world))
        s = owned(d, world)
        blocks = -(-s // block_size(d))
        sums = 2 * max(1, blocks.bit_length())  # of pairs of blocks, pairs of pairs, ... at most
        gathered = world * (1 + self.gather_copies)
        trained = numbers("trained updates", "K_r * (W * S)", k, world * s)
        shard = numbers("shard", "N * S", n, s)
        buffers = numbers("updates of buffers", "K_r * (W * S) of them", k, world * owned(self.num_buffers, world))
        training = [
            trained,
            buffers,
            numbers("old and new weights", "2 * (W * S)", 2, world * s),
            Term("snapshot", "the model but its base", self.model_bytes - self.base_bytes),
            numbers("gradients", "d", not self.recorded, d),
            numbers("client's optimizer", "copies * d", (not self.recorded) * self.optimizer_copies, d),
        ]
        exchange = [max(trained, shard, key=lambda term: term.bytes), buffers]
        aggregation = [
            shard,
            buffers,
            numbers("aggregate", "S", s),
            numbers("server optimizer before", "copies * d", self.server_copies, d),
            numbers("next watched step", "2 * d", 2 * self.watched, d),
        ]
        if self.sum_size:
            # Of a rank's own blocks; of all ranks' too, with a padded copy of its own, where they are gathered.
            held = sums if world == 1 else (2 + gathered) * sums
            aggregation.append(numbers("sums over coordinates", "sums * size", held, self.sum_size, width=FLOAT64))
            aggregation.append(numbers("block as float64, twice", "2 * N * block", 2 * n, block_size(d), width=FLOAT64))
        if world > 1:
            bucket = min(n * s, max(n * block_size(d), self.bucket_bytes // FLOAT32))
            exchange.append(numbers("arriving buckets", "2 * bucket", BUCKETS_IN_FLIGHT, bucket))
            aggregation.append(numbers("gathered aggregate", "(1 + W * copies) * S", 1 + gathered, s))
        examination = [
            shard,
            buffers,
            Term("model as it was, twice", "the model but its base, 2 times", 2 * (self.model_bytes - self.base_bytes)),
            numbers("model on its way", "3 * (W * S)", 3, world * s),
        ]
        phases = {"training": training, "exchange": exchange, "aggregation": aggregation}
        return {**phases, "examination": examination} if self.examined else phases

    @property
    def total(self) -> int:
        """Bytes: what is held throughout, and the largest phase."""
        return subtotal(self.throughout) + max(map(subtotal, self.phases.values()))

    def arithmetic(self) -> str:
        """The sum written out, a line per term that is not zero."""
        lines = [f"N = {self.num_clients}, d = {self.num_coordinates:,}, W = {self.world}; memory on a rank:"]
        for title, terms in {"throughout": self.throughout, **self.phases}.items():
            lines.append(f"{title:<42}{readable(subtotal(terms)):>44}")
            lines += [f"  {term.name:<24}{term.formula:<48}{readable(term.bytes):>12}" for term in terms if term.bytes]
        largest = max(self.phases, key=lambda phase: subtotal(self.phases[phase]))
        lines.append(f"{f'total: throughout + {largest}':<42}{readable(self.total):>44}")
        return "\n".join(lines)


def numbers(name: str, symbols: str, *factors: int, width: int = FLOAT32) -> Term:
    """A product of numbers of `width` bytes as a term; the symbols stand beside it, so that the reader sees which is which."""
    product = width
    for factor in factors:
        product *= factor
    return Term(name, f"{symbols}: {' * '.join(f'{factor:,}' for factor in (width, *factors))}", product)


def owned(num_coordinates: int, world: int) -> int:
    """S, the most coordinates on one rank: whole blocks."""
    block = block_size(num_coordinates)
    return -(-num_coordinates // block // world) * block


def subtotal(terms: Iterable[Term]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


def readable(size: int) -> str:
    """Bytes in MiB, or GiB from one on."""
    return f"{size / GIBIBYTE:.2f} GiB" if size >= GIBIBYTE else f"{size / MEBIBYTE:.1f} MiB"


# ---- what goes into the sum ------------------------------------------------------------------------------------------


def state_copies(optimizer: Optimizer) -> int:
    """Vectors of d numbers that an optimizer of this class and these settings keeps; two where the class is not known."""
    name, settings = type(optimizer).__name__, optimizer.defaults
    if name == "SGD":
        return int(any(group["momentum"] for group in optimizer.param_groups))
    if name == "RMSprop":
        return 1 + bool(settings["momentum"]) + bool(settings["centered"])
    return STATE_COPIES.get(name, 2) + bool(settings.get("amsgrad", False))


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return tensor_bytes([[*module.parameters(), *module.buffers()]])


def tensor_bytes(holders: Iterable[object]) -> int:
    """Bytes of tensors that are elements of a list or attributes of an object, a data set say; shared memory counts once.

    Args:
        holders: lists and objects; None holds nothing.
    """
    sizes: dict[int, int] = {}
    for holder in holders:
        for part in holder if isinstance(holder, list) else getattr(holder, "__dict__", {}).values():
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


# ---- what there is ---------------------------------------------------------------------------------------------------


def check_fits(footprint: Footprint, available: int | None, held: int = 0) -> None:
    """Raise `ConfigurationError` if a round takes more than there is.

    Args:
        footprint: the round's.
        available: bytes that are free for one rank; None where that is not known, which passes.
        held: bytes of the footprint that are taken already, and so are not among the free ones.
    """
    needed = footprint.total - held
    if available is None or needed <= available:
        return
    many = footprint.branches
    together = f"fewer clients side by side than {many} (model.local.branches; all, with stacked), " if many > 1 else ""
    raise ConfigurationError(
        f"a round takes at least {readable(footprint.total)} on a rank, {readable(needed)} of it still to be found, but "
        f"{readable(available)} are free; lower model.cohort.clients_per_round = {footprint.num_clients}, use more ranks than "
        f"{footprint.world}, {together}a smaller model.bucket_bytes than {footprint.bucket_bytes} or a smaller model\n"
        f"{footprint.arithmetic()}"
    )


def available_bytes(device: torch.device, ranks_on_node: int, root: Path = Path("/")) -> int | None:
    """Memory that is free for one rank; None where the system does not tell.

    Args:
        device: a GPU, of which the rank is the only user; or the CPU, whose memory the node's ranks share evenly.
        ranks_on_node: how many they are.
        root: of the file system that tells about the CPU's memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's own, to be had at once
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    found = [free for free in (system_free(root), *cgroup_free(root)) if free is not None]
    return min(found) // ranks_on_node if found else None


def system_free(root: Path) -> int | None:
    """Bytes that the kernel estimates can be had without swapping."""
    fields = table(root / "proc/meminfo", ":")
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def cgroup_free(root: Path) -> list[int]:
    """Bytes left below the limit of every control group (version 1 or 2) that this process is in and that has one."""
    groups = root / "proc/self/cgroup"
    found = []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            mount, files = (
                root / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        elif not controllers:
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        # Limits of the groups around a group hold for it too. Inside a container the path may be one of the host's, which is
        # not to be seen there; the container's own group is then the mount.
        within = mount / path.lstrip("/")
        folders = [folder for folder in (within, *within.parents) if folder.is_relative_to(mount)]
        found += [free for folder in folders if (free := group_free(folder, *files)) is not None]
    return found


def group_free(folder: Path, limit: str, use: str, reclaimable: str) -> int | None:
    """Limit minus use of one control group, where files that are cached but not in use count as free."""
    if not (folder / limit).exists() or not (folder / use).exists():
        return None
    most = (folder / limit).read_text().strip()
    if most == "max":
        return None
    cached = int(table(folder / "memory.stat", " ").get(reclaimable, 0))
    return max(0, int(most) - int((folder / use).read_text()) + cached)


def table(path: Path, separator: str) -> dict[str, str]:
    """The lines of a file as names and values; nothing where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: value.strip() for name, _, value in (line.partition(separator) for line in lines)}
