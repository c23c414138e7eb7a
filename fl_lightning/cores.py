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


def keep_to_own_cores(rank: int) -> set[int]:
    """Let this process, one of several ranks on CPUs, run on its share of its node's cores alone.

    Nothing changes where ranks of a node were given different cores already, as by SLURM, where a share has fewer cores than
    the rank has threads, and where the system knows no affinities. To be called on all ranks.

    Args:
        rank: this process's rank in the default group.

    Returns:
        The cores that it could run on before.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set()
    before = os.sched_getaffinity(0)
    told = gather_objects((socket.gethostname(), sorted(before), torch.get_num_threads()), torch.device("cpu"))
    host, cores, _ = told[rank]
    neighbours = [other for other, (its_host, *_) in enumerate(told) if its_host == host]
    shares = {other: share(cores, i, len(neighbours)) for i, other in enumerate(neighbours)}
    alike = all(told[other][1] == cores for other in neighbours)
    if len(neighbours) > 1 and alike and all(len(shares[other]) >= told[other][2] for other in neighbours):
        run_on(shares[rank])
        log.debug("rank %d runs on cores %s", rank, shares[rank])
    return before


def share(cores: Sequence[int], i: int, n: int) -> Sequence[int]:
    """The i-th of n parts of about the same size: neighbours, which share caches and memory.

    >>> [share([0, 1, 2, 3, 8], i, 2) for i in range(2)]
    [[0, 1], [2, 3, 8]]
    """
    return cores[i * len(cores) // n : (i + 1) * len(cores) // n]


def run_on(cores: Sequence[int] | set[int]) -> None:
    """Have all threads of this process run there, and those that they will start."""
    threads = Path("/proc/self/task")
    for thread in threads.iterdir() if threads.is_dir() else ():
        with suppress(OSError):  # it has ended meanwhile, or the system does not allow it
            os.sched_setaffinity(int(thread.name), cores)
