"""What all ranks do where one of them cannot."""

import logging
import resource
from typing import Any

import pytest
import torch.distributed as dist
from ranks import on_ranks
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import LastCheckpoint
from fl_lightning.aggregators import CenteredClipping
from fl_lightning.checkpoints import sharded_state
from fl_lightning.checkpoints.resuming import whole
from fl_lightning.files.replacing import StorageError


def full(folder: str) -> str:
    """What a rank says where rank 0 finds no room for a checkpoint."""
    callbacks: list[Any] = [LastCheckpoint()]
    trainer = tiny_trainer(2, devices=2, callbacks=callbacks, default_root_dir=folder, enable_checkpointing=True)
    trainer.fit(tiny_federation(), tiny_data())
    if dist.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    with pytest.raises(StorageError) as raised:
        trainer.save_checkpoint(f"{folder}/other.ckpt")
    return str(raised.value)


def test_all_ranks_say_that_there_is_no_room_and_what_was_there_stays(tmp_path):
    said = on_ranks(2, full, str(tmp_path))
    assert said[0] == said[1]
    assert f"no room for {tmp_path / 'other.ckpt'}" in said[0]
    assert not list(tmp_path.glob("*other*"))
    assert (whole(tmp_path / "last.ckpt"), whole(tmp_path / "previous.ckpt")) == (2, 1)


def in_folders_apart(folder: str, apart: bool) -> list[str]:
    """What this rank remarked in a run whose rule remembers."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("fl_lightning.machine.strategy").addHandler(handler)
    write = sharded_state.write

    def elsewhere(checkpoint: dict[str, Any], path: Any, rank: int, world: int) -> str | None:
        """The same path on another node's disk."""
        return write(checkpoint, f"{folder}/other/last.ckpt", rank, world)

    if apart and dist.get_rank() == 1:
        sharded_state.write = elsewhere
    trainer = tiny_trainer(3, devices=2, callbacks=[LastCheckpoint()], default_root_dir=folder, enable_checkpointing=True)
    trainer.fit(tiny_federation(aggregator=CenteredClipping(max_norm=0.5)), tiny_data())
    return said


def test_parts_of_a_checkpoint_on_nodes_that_share_no_folder_are_told_once(tmp_path):
    first, other = on_ranks(2, in_folders_apart, str(tmp_path / "apart"), True)
    assert len(first) == 1
    assert first[0].startswith(
        f"{tmp_path}/apart/last.ckpt.shards has no part of rank 1, whose node shares no folder with this one"
    )
    assert not other
    assert on_ranks(2, in_folders_apart, str(tmp_path / "shared"), False) == [[], []]
