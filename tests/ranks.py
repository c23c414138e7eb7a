"""Run a function on several ranks: processes with a gloo group over a file, so without ports.

Processes are forked from a server that has imported torch, Lightning and scikit-learn once, which makes a start cheap.
"""

import gc
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fl_lightning.configuration", "sklearn.cluster", "torch.distributed.algorithms.ddp_comm_hooks"])
TIMEOUT_SECONDS = 120


def on_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of `function(*args)` on ranks 0 to world - 1, which share a default process group.

    Args:
        world: number of ranks; 1 runs in a process of its own too.
        function: defined at the top of a test module; results must be picklable, and not tensors: torch
            would share their memory with a process that has ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = CONTEXT.SimpleQueue()
        processes = [
            CONTEXT.Process(target=_rank, args=(rank, world, folder, results, function, args), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        found: dict[int, Any] = {}
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(found) < world:
            if not results.empty():
                rank, outcome = results.get()
                found[rank] = outcome
                continue
            alive = any(process.is_alive() for process in processes)
            if time.monotonic() > deadline or not (alive or not results.empty()):
                for process in processes:
                    process.kill()
                raise AssertionError(f"ranks {sorted(set(range(world)) - set(found))} of {world} gave no result: {found}")
            time.sleep(0.002)
        for process in processes:
            process.join(TIMEOUT_SECONDS)
        failed = {rank: text for rank, (ok, text) in found.items() if not ok}
        assert not failed, "\n".join(f"rank {rank}:\n{text}" for rank, text in sorted(failed.items()))
        return [found[rank][1] for rank in range(world)]


def _rank(rank: int, world: int, folder: str, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    gc.freeze()  # what was imported before the fork is garbage nowhere: to walk all of it takes each rank a third of a second
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), GROUP_RANK="0")
    # Lightning sees a torchrun launch and finds the group already there, so no address is ever used.
    os.environ.update(TORCHELASTIC_RUN_ID="tests", MASTER_ADDR="nowhere", MASTER_PORT="0")
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'group'}", rank=rank, world_size=world)
    dist.barrier()  # who has nothing to ask others might leave before they have found it
    try:
        results.put((rank, (True, function(*args))))
    except BaseException:
        results.put((rank, (False, traceback.format_exc())))
        os._exit(1)  # the other ranks may be waiting in a collective: their end is not to be waited for
    dist.destroy_process_group()
