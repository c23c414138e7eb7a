"""Processes that torchrun starts again after one of them has failed (`--max-restarts`).

They find the addresses of those before them in torchrun's store, where nobody listens any more. So they meet under keys of
their own. What puts a SLURM task back into its queue is `launch/requeue.sh`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def restart() -> int:
    """How often torchrun has started this run again; 0 where nobody has."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def meet_again(backend: str, timeout: timedelta, **options: Any) -> None:
    """Make the default process group of a run that was started again.

    Args:
        backend: of the group.
        timeout: for its collectives.
        options: further ones of `torch.distributed.init_process_group`.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    hosts = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, hosts, timeout=timeout)
    own = dist.PrefixStore(f"restart-{restart()}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout, **options)
