import os
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from tiny import fit, tiny_data, tiny_federation

from fl_lightning.cores import keep_to_own_cores, run_on, share
from fl_lightning.strategy import FederatedStrategy

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system knows no affinities")


def cores_of_threads() -> set[frozenset[int]]:
    threads = [int(thread.name) for thread in Path("/proc/self/task").iterdir()]
    return {frozenset(os.sched_getaffinity(thread)) for thread in threads}


def kept(threads: int = 1, unlike: bool = False) -> tuple[set[int], set[frozenset[int]], set[frozenset[int]]]:
    """On a rank: its cores before, those of all its threads afterwards, and when it may run anywhere again."""
    rank = dist.get_rank()
    torch.set_num_threads(threads)
    if unlike and rank == 0:
        run_on(sorted(os.sched_getaffinity(0))[:1])
    before = keep_to_own_cores(rank)
    after = cores_of_threads()
    run_on(before)
    return before, after, cores_of_threads()


needs_two = pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="needs two cores")


@needs_two
def test_each_rank_keeps_to_its_share_with_all_its_threads() -> None:
    cores = sorted(os.sched_getaffinity(0))
    for rank, (before, after, again) in enumerate(on_ranks(2, kept)):
        assert before == set(cores)
        assert after == {frozenset(share(cores, rank, 2))}
        assert again == {frozenset(cores)}


@needs_two
@pytest.mark.parametrize(("threads", "unlike"), [(1000, False), (1, True)], ids=["too many threads", "other cores"])
def test_ranks_run_where_they_did_if_shares_do_not_fit(threads: int, unlike: bool) -> None:
    for before, after, _ in on_ranks(2, kept, threads, unlike):
        assert after == {frozenset(before)}


def test_shares_are_all_cores_and_as_equal_as_can_be() -> None:
    for n in range(1, 9):
        for cores in (list(range(n)), list(range(0, 40, 3)), list(range(64))):
            parts = [list(share(cores, i, n)) for i in range(n)]
            assert [core for part in parts for core in part] == cores
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


class Where(L.Callback):
    """The cores on which a run trains."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.cores = os.sched_getaffinity(0)


def trained_on(own_cores: bool) -> tuple[set[int], set[int]]:
    where = Where()
    strategy = FederatedStrategy(own_cores=own_cores)
    fit(tiny_federation(), tiny_data(), rounds=1, strategy=strategy, devices=2, callbacks=[where])
    return where.cores, os.sched_getaffinity(0)


@needs_two
@pytest.mark.parametrize("own_cores", [True, False])
def test_a_run_trains_on_own_cores_unless_told_otherwise(own_cores: bool) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for rank, (during, afterwards) in enumerate(on_ranks(2, trained_on, own_cores)):
        assert during == set(share(cores, rank, 2) if own_cores else cores)
        assert afterwards == set(cores)
