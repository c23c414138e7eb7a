"""Ranks of a node keep to cores of their own.

While a rank waits for the others, the threads of its process group wake up on whatever core is idle, and the rank goes on
there, far from its caches. With small models, whose rounds wait often, two ranks on two cores are a tenth faster if each stays.
"""

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from fl_lightning.updates.gathering import gather_objects

log = logging.getLogger(__name__)

TOPOLOGY = Path("/sys/devices/system/cpu")

Affinities = dict[int, set[int]]
"""Where threads may run: logical cores, by the thread's number."""


def keep_to_own_cores(rank: int) -> Affinities:
    """Let this process, one of several ranks on CPUs, run on its share of its node's cores alone.

    Nothing changes where ranks of a node were given different cores already, as by SLURM, where a share has fewer cores than
    the rank has threads, and where the system knows no affinities. To be called on all ranks.

    Args:
        rank: this process's rank in the default group.

    Returns:
        Where its threads could run before, for `run_as_before`; nothing if that is where they still can.
    """
    if not hasattr(os, "sched_getaffinity"):
        return {}
    told = gather_objects(
        (socket.gethostname(), side_by_side(os.sched_getaffinity(0)), torch.get_num_threads()), torch.device("cpu")
    )
    host, cores, _ = told[rank]
    neighbours = [other for other, (its_host, *_) in enumerate(told) if its_host == host]
    shares = {other: share(cores, i, len(neighbours)) for i, other in enumerate(neighbours)}
    alike = all(told[other][1] == cores for other in neighbours)
    if len(neighbours) < 2 or not alike or any(len(shares[other]) < told[other][2] for other in neighbours):
        return {}
    before = {thread: os.sched_getaffinity(thread) for thread in threads()}
    for thread in before:
        run_on(thread, shares[rank])
    log.debug("rank %d runs on cores %s", rank, shares[rank])
    return before


def run_as_before(before: Affinities) -> None:
    """Undo `keep_to_own_cores`; threads that have begun since run where the main one does."""
    for thread in threads() if before else ():
        run_on(thread, before.get(thread, before[os.getpid()]))


def side_by_side(cores: set[int], topology: Path = TOPOLOGY) -> list[int]:
    """Logical cores in an order in which those of one core, and cores of one package, are next to each other."""

    def place(core: int) -> tuple[int, int, int]:
        try:
            package, physical = (
                int((topology / f"cpu{core}/topology" / name).read_text()) for name in ("physical_package_id", "core_id")
            )
        except (OSError, ValueError):
            return 0, core, core
        return package, physical, core

    return sorted(cores, key=place)


def share(cores: Sequence[int], i: int, n: int) -> Sequence[int]:
    """The i-th of n parts of about the same size.

    >>> [share([0, 1, 2, 3, 8], i, 2) for i in range(2)]
    [[0, 1], [2, 3, 8]]
    """
    return cores[i * len(cores) // n : (i + 1) * len(cores) // n]


def threads() -> list[int]:
    """Those of this process; the main one has the process's number."""
    folder = Path("/proc/self/task")
    return [int(thread.name) for thread in folder.iterdir()] if folder.is_dir() else [os.getpid()]


def run_on(thread: int, cores: Sequence[int] | set[int]) -> None:
    """Have a thread run there, with those that it will start."""
    with suppress(OSError):  # it has ended meanwhile, or the system does not allow it
        os.sched_setaffinity(thread, cores)
