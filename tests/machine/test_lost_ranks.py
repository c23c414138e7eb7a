"""What a rank says that waited for another in vain."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import CONTEXT, on_ranks
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import ConfigurationError
from fl_lightning.machine.lost_ranks import LostRankError, explained, what_happened
from fl_lightning.machine.strategy import FederatedStrategy


def waits(rank: int, folder: str) -> None:
    file = f"file://{folder}/group"
    dist.init_process_group("gloo", init_method=file, rank=rank, world_size=2, timeout=timedelta(seconds=1))
    dist.barrier()
    if rank:
        time.sleep(60)
    try:
        with explained(1):
            dist.all_reduce(torch.ones(1))
    except LostRankError as error:
        Path(folder, "said").write_text(str(error))
    os._exit(0)


def test_a_rank_that_was_stopped_ends_the_others_after_the_time_that_was_set(tmp_path):
    processes = [CONTEXT.Process(target=waits, args=(rank, str(tmp_path)), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    processes[0].join(60)
    processes[1].kill()
    said = (tmp_path / "said").read_text()
    assert said.startswith("another rank has sent nothing for 1 s: ")
    assert "timeout_seconds" in said
    assert "\n" not in said


def leaves(folder: str) -> str:
    federation = tiny_federation()
    trainer = tiny_trainer(3, devices=2, default_root_dir=folder)
    if dist.get_rank() == 1:
        federation.training_step = lambda batch, batch_idx: dist.destroy_process_group()
    try:
        trainer.fit(federation, tiny_data())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def test_a_rank_that_ended_is_named_as_what_it_is(tmp_path):
    assert on_ranks(2, leaves, str(tmp_path))[0].startswith("LostRankError: another rank has ended")


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), explained(1):
        raise RuntimeError("shapes differ")
    assert what_happened(ValueError("Connection closed by peer"), 1) is None


def test_what_was_raised_because_of_it_is_it():
    error = ValueError("in a metric")
    error.__cause__ = RuntimeError("[tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5")
    assert "another rank has ended" in str(what_happened(error, 1))


@pytest.mark.parametrize(
    "said",
    [
        "[tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation to complete",
        "The client socket has timed out after 5000ms while trying to connect to (127.0.0.1, 44617).",
        "wait timeout after 300000ms, keys: /default_pg/0//1",
    ],
)
def test_every_way_to_say_that_nothing_came(said):
    assert "another rank has sent nothing for 4 s" in str(what_happened(RuntimeError(said), 4))


def test_how_long_to_wait_is_a_setting():
    assert FederatedStrategy()._timeout == timedelta(minutes=30)
    assert FederatedStrategy(timeout_seconds=7)._timeout == timedelta(seconds=7)
    for wrong in (0, -1.0, float("inf"), float("nan"), 1e15):
        with pytest.raises(ConfigurationError, match=r"timeout_seconds must be more than 0 and at most \d+, got"):
            FederatedStrategy(timeout_seconds=wrong)
    with pytest.raises(ConfigurationError, match="give timeout_seconds"):
        FederatedStrategy(timeout=timedelta(seconds=3))


def test_ranks_that_have_addresses_of_no_use_are_told_how_to_choose_others():
    said = (
        "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR: Connection refused, "
        "remote=[127.0.1.1]:19378$0"
    )
    told = str(what_happened(RuntimeError(said), 4))
    assert told.startswith("the ranks do not reach each other (nobody at 127.0.1.1): another rank has ended, or a node ")
    assert "GLOO_SOCKET_IFNAME" in told
    assert "(no address is known)" in str(what_happened(RuntimeError("Gloo connectFullMesh failed with [x]"), 4))
