import os
from pathlib import Path
from threading import Event, Thread

import lightning as L
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from tiny import fit, tiny_data, tiny_federation

from fl_lightning.machine.cores import keep_to_own_cores, run_as_before, run_on, share, side_by_side, threads
from fl_lightning.machine.strategy import FederatedStrategy

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system knows no affinities")


def cores_of_threads() -> set[frozenset[int]]:
    return {frozenset(os.sched_getaffinity(thread)) for thread in threads()}


def kept(num_threads: int = 1, unlike: bool = False) -> tuple[set[frozenset[int]], ...]:
    """On a rank, the cores of all its threads: before, afterwards, and when they may run as before again."""
    rank = dist.get_rank()
    torch.set_num_threads(num_threads)
    cores = sorted(os.sched_getaffinity(0))
    stop = Event()
    Thread(target=stop.wait).start()
    for thread in threads() if unlike and rank == 0 else ():
        run_on(thread, cores[:1])
    other = next(thread for thread in threads() if thread != os.getpid())
    run_on(other, cores[-1:])  # as libraries of threads may do
    at_first = cores_of_threads()
    before = keep_to_own_cores(rank)
    after = cores_of_threads()
    Thread(target=stop.wait).start()
    run_as_before(before)
    again = cores_of_threads()
    stop.set()
    return at_first, after, again


needs_two = pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [0])(0)) < 2, reason="needs two cores")


@needs_two
def test_each_rank_keeps_to_its_share_with_all_its_threads() -> None:
    cores = side_by_side(os.sched_getaffinity(0))
    for rank, (at_first, after, again) in enumerate(on_ranks(2, kept)):
        assert after == {frozenset(share(cores, rank, 2))}
        assert again == at_first == {frozenset(cores), frozenset([max(cores)])}


@needs_two
@pytest.mark.parametrize(("num_threads", "unlike"), [(1000, False), (1, True)], ids=["too many threads", "other cores"])
def test_ranks_run_where_they_did_if_shares_do_not_fit(num_threads: int, unlike: bool) -> None:
    for at_first, after, again in on_ranks(2, kept, num_threads, unlike):
        assert at_first == after == again


def test_logical_cores_of_one_core_and_one_package_are_next_to_each_other(tmp_path: Path) -> None:
    for core in range(8):  # two packages of two cores, numbered as Intel does: 0 to 3, then their siblings 4 to 7
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{core % 2}\n")
        (folder / "core_id").write_text(f"{core % 4 // 2}\n")
    assert side_by_side(set(range(8)), tmp_path) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert side_by_side({3, 1, 9}, tmp_path / "nothing") == [1, 3, 9]


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
    cores = side_by_side(os.sched_getaffinity(0))
    for rank, (during, afterwards) in enumerate(on_ranks(2, trained_on, own_cores)):
        assert during == set(share(cores, rank, 2) if own_cores else cores)
        assert afterwards == set(cores)
