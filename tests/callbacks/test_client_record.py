"""The table of all clients of all rounds."""

import math
import os
import signal

import lightning as L
import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import Scale, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import ClientRecord, ConfigurationError, LastCheckpoint, RunRecord, experiments
from fl_lightning.aggregators import Krum, Median
from fl_lightning.callbacks.client_record import norms_and_cosines
from fl_lightning.files.round_tables import read_round_tables
from fl_lightning.updates import UpdateShard


def test_norms_and_cosines_are_their_definitions():
    updates = torch.randn(6, 2500, generator=torch.Generator().manual_seed(0)) * torch.logspace(-30, 30, 6)[:, None]
    updates[3] = 0
    aggregate = torch.randn(2500, generator=torch.Generator().manual_seed(1))
    found = norms_and_cosines(UpdateShard.from_updates(updates), aggregate)
    other = aggregate.double().tolist()
    length = math.sqrt(math.fsum(value**2 for value in other))
    for row, (norm, cosine) in zip(updates.double().tolist(), found, strict=True):
        expected = math.sqrt(math.fsum(value**2 for value in row))
        assert norm == pytest.approx(expected, rel=1e-13)
        if expected:
            inner = math.fsum(a * b for a, b in zip(row, other, strict=True))
            assert cosine == pytest.approx(inner / expected / length, abs=1e-13)
        else:
            assert cosine is None
    assert norms_and_cosines(UpdateShard.from_updates(updates), torch.zeros(2500))[0][1] is None


class Killed(L.Callback):
    """Ends the process as a power cut does, in the middle of a round, after the rule."""

    def __init__(self, t):
        self.t = t

    def on_aggregate(self, federation, shard, aggregate):
        if federation.global_step == self.t:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, rounds, kill_at=None, ckpt_path=None, **kwargs):
    torch.set_num_threads(1)
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    callbacks = [RunRecord({"model": "tiny"}), ClientRecord(every_n_rounds=2), LastCheckpoint(every_n_rounds=3)]
    trainer = tiny_trainer(
        rounds,
        devices=world,
        callbacks=callbacks if kill_at is None else [*callbacks, Killed(kill_at)],
        default_root_dir=folder,
        enable_checkpointing=True,
        check_val_every_n_epoch=10,
    )
    trainer.fit(tiny_federation(**{"aggregator": Krum(), **kwargs}), tiny_data(), ckpt_path=ckpt_path)


def resumed(folder):
    run(folder, 7, ckpt_path=f"{folder}/last.ckpt")


def rows(folder):
    table = read_round_tables(folder / "clients")
    assert table is not None
    return table.to_pylist()


def test_killed_and_resumed_on_other_ranks_each_row_is_there_once(tmp_path):
    """Round 5 is killed when files go up to round 3 and the checkpoint to round 2."""
    run(str(tmp_path / "whole"), 7)
    with pytest.raises(AssertionError, match=r"ranks \[0\] of 1 gave no result"):
        on_ranks(1, run, str(tmp_path / "parts"), 7, 5)
    assert len(rows(tmp_path / "parts")) == 7 * 4
    on_ranks(2, resumed, str(tmp_path / "parts"))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")  # to the bit
    assert len(rows(tmp_path / "whole")) == 7 * 7
    assert len(list((tmp_path / "parts" / "clients").iterdir())) == 1

    frame = experiments.clients(tmp_path)
    assert frame.groupby("run")["round"].apply(lambda rounds: sorted(set(rounds))).to_dict() == {
        "parts": list(range(7)), "whole": list(range(7))
    }  # fmt: skip
    assert list(frame.columns) == [
        *("run", "round", "client", "malicious", "samples", "norm", "cosine", "verdict", "excluded", "client/loss")
    ]
    chosen = frame[frame["verdict"] == 1]
    assert len(chosen) == 14  # Krum's one of every round, which is the aggregate
    np.testing.assert_allclose(chosen["cosine"], 1, rtol=1e-7)
    assert frame["client/loss"].notna().all()

    run(str(tmp_path / "parts"), 1)  # another run in the same folder puts the record aside
    assert len(rows(tmp_path / "parts")) == 7
    assert len(rows(tmp_path / "parts" / "earlier" / "1")) == 49


def test_excluded_clients_and_rules_that_do_not_judge(tmp_path):
    run(str(tmp_path), 1, aggregator=Median(), attacks=[Scale(math.nan)])
    frame = experiments.clients(tmp_path)
    assert frame["excluded"].equals(frame["malicious"])
    assert frame["excluded"].any()
    assert frame["norm"].isna().equals(frame["excluded"])
    assert frame["cosine"].isna().equals(frame["excluded"])
    assert frame["verdict"].isna().all()


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ClientRecord.every_n_rounds"):
        ClientRecord(every_n_rounds=0)
    (tmp_path / "clients").write_text("of somebody else")
    with pytest.raises(ConfigurationError, match="clients is no folder"):
        run(str(tmp_path), 1)
