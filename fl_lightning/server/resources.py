"""What a run takes, reckoned before it: whether a round fits into memory, and whether compiling its rule pays."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch.optim import SGD, Optimizer

from fl_lightning.aggregators.base import Aggregator
from fl_lightning.aggregators.mixing import has_own
from fl_lightning.attacks.base import Attack
from fl_lightning.clients import Clients
from fl_lightning.cohort import CohortSampler, assign_owners
from fl_lightning.machine.footprint import Footprint, available_bytes, check_fits, module_bytes, state_copies, tensor_bytes
from fl_lightning.machine.heap import give_freed_memory_back, keep_freed_memory
from fl_lightning.modules.frozen_base import base_bytes
from fl_lightning.training.optimizers import configured

Compile = Literal["auto", "always", "never"]

SAVED_SECONDS = {"cpu": 1.5e-9, "cuda": 6e-11}
"""Per update and coordinate, that a compiled rule is faster by: on one Zen 3 core; on an H100."""

COMPILE_SECONDS, LOAD_SECONDS = {"cpu": 1.0, "cuda": 0.03}, 0.2
"""Per client, to compile a rule's inner loop, and to load it from a cache on a CPU."""


def prepare_memory(
    clients: Clients, cohort: CohortSampler, rule: Aggregator, server: Optimizer, attacks: list[Attack], ranks_on_node: int
) -> None:
    """Raise `ConfigurationError` if a round takes more memory than there is, on the rank that has the least.

    On CPUs that have at least twice as much, freed memory is kept from now on. To be called on all ranks, before the data are
    moved to the device.
    """
    exchange, data = clients.exchange, clients.data
    on_cpu = exchange.device.type == "cpu"
    first = assign_owners(clients.work(cohort.draw(clients.seed, 0, data.sizes)), exchange.world)
    with clients.local.seen_by(clients.module, int(data.sizes.max())):
        optimizer, _ = configured(clients.module)
        of_attackers, _ = clients.of_attackers.configure(clients.module)
    n, most = cohort.clients_per_round, int(first.bincount().max())
    recorded = clients.executor.chosen != "sequential" and type(optimizer) is SGD  # or perhaps: auto decides later
    footprint = Footprint(
        num_clients=n + int(rule.needs_root),
        num_coordinates=exchange.num_coordinates,
        model_bytes=module_bytes(clients.module),
        base_bytes=base_bytes(clients.module),
        world=exchange.world,
        local_clients=most,
        bucket_bytes=exchange.bucket_bytes,
        num_buffers=clients.buffer_exchange.num_coordinates,
        data_bytes=tensor_bytes([data.train, *data.evaluation.values(), data.root_samples, [rule.probe], rule.probe]),
        optimizer_copies=max(state_copies(optimizer), state_copies(of_attackers)),
        server_copies=state_copies(server),
        gather_copies=int(on_cpu),  # gloo's all-gather makes one of its own
        recorded=recorded,
        branches=most if clients.local.executor == "stacked" else min(most, clients.branches) if recorded else 1,
        examined=has_own(rule, "examine"),
        watched=any(attack.watches_steps for attack in attacks),
    )
    give_freed_memory_back()  # of a run before
    free = exchange.collect(available_bytes(exchange.device, ranks_on_node))
    held = footprint.model_bytes + footprint.data_bytes if on_cpu else 0  # on a GPU neither is there yet
    least = min((size for size in free if size is not None), default=None)
    while not clients.local.branches and clients.branches > 1 and least is not None and least < 2 * (footprint.total - held):
        clients.branches //= 2  # a half is left for what is not counted, activations above all
        footprint = replace(footprint, branches=min(most, clients.branches))
    check_fits(footprint, least, held)
    if on_cpu and least is not None and least >= 2 * (footprint.total - held):
        keep_freed_memory()


def compiling_pays(wanted: Compile, coordinates: float, limits: Sequence[int | None], device: torch.device) -> bool:
    """Whether rules are to run compiled; bits are the same either way.

    `auto` compiles if the rounds save more time than compiling takes; both grow alike with the number of clients. Where
    TORCHINDUCTOR_CACHE_DIR names a folder that lasts, what an earlier run compiled is only loaded.

    Args:
        wanted: `auto`, or what is to be done in any case.
        coordinates: d / W, those that a rank aggregates.
        limits: of the run's rounds; None or negative for none.
        device: of the updates.

    Example:
        >>> [compiling_pays("auto", d, [300], torch.device("cpu")) for d in (40_000, 11_700_000)]
        [False, True]
    """
    if wanted != "auto":
        return wanted == "always"
    rounds = min((limit for limit in limits if limit is not None and limit >= 0), default=math.inf)
    cost = COMPILE_SECONDS.get(device.type, math.inf)
    if device.type == "cpu" and os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        cost = LOAD_SECONDS
    return SAVED_SECONDS.get(device.type, 0.0) * coordinates * rounds > cost
