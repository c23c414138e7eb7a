"""Ranks that torchrun starts a second time, beside the addresses that those before them left in its store."""

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import CONTEXT

from fl_lightning.machine.restarts import meet_again, restart

TIMEOUT = timedelta(seconds=60)


def meets(rank: int, count: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT=str(count))
    if restart():
        time.sleep(rank)  # one rank looks up the other before that one has written its address down
        meet_again("gloo", TIMEOUT)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    total = torch.ones(1)
    dist.all_reduce(total)
    Path(folder, f"{count}-{rank}").write_text(str(total.item()))
    os._exit(0)  # as a rank that is killed


def test_ranks_that_are_started_again_meet(tmp_path):
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for count in (0, 1):
        ranks = [CONTEXT.Process(target=meets, args=(rank, count, store.port, str(tmp_path)), daemon=True) for rank in (0, 1)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(30)
            rank.kill()
        assert sorted(path.name for path in tmp_path.iterdir()) == [f"{c}-{r}" for c in range(count + 1) for r in (0, 1)]
    assert {path.read_text() for path in tmp_path.iterdir()} == {"2.0"}


@pytest.mark.parametrize(("value", "expected"), [(None, 0), ("0", 0), ("2", 2)])
def test_how_often_it_was_started_again(monkeypatch, value, expected):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    if value is not None:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", value)
    assert restart() == expected
