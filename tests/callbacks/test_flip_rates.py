import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import ConfigurationError, FlipRates, LastCheckpoint
from fl_lightning.callbacks.flip_rates import count_flips, read_flip_rates
from fl_lightning.updates import UpdateShard


def oracle(updates, malicious):
    """Counts and zeros, a coordinate and a client at a time."""
    benign = [row for row, bad in zip(updates.astype(np.float64), malicious, strict=True) if not bad]
    counts, zeros = Counter(), 0
    for column in range(updates.shape[1]):
        entries = [row[column] for row in benign]
        sign = np.sign(sum(entries) / len(entries))
        counts[sum(np.sign(entry) != sign for entry in entries)] += 1
        zeros += any(entry == 0 for entry in entries)
    return [counts[k] for k in range(len(benign) + 1)], zeros


@pytest.mark.parametrize("malicious", [[], [1], [0, 3, 6]])
def test_against_a_slow_oracle(malicious):
    updates = torch.randn(7, 2500, generator=torch.Generator().manual_seed(0)) + 0.3
    updates[updates.abs() < 0.05] = 0.0
    updates[:, -3:] = 0.0
    bad = torch.zeros(7, dtype=torch.bool)
    bad[malicious] = True
    updates[bad] *= -100
    flips = count_flips(UpdateShard.from_updates(updates, malicious=bad))
    assert (flips.counts, flips.zeros) == oracle(updates.numpy(), bad.tolist())
    assert (flips.benign, flips.malicious) == (7 - len(malicious), len(malicious))
    assert flips.rate == pytest.approx(sum(k * c for k, c in enumerate(flips.counts)) / (flips.benign * 2500))
    assert 0 < flips.zeros < 2500


def run(folder, rounds=3, ckpt_path=None, callbacks=()):
    trainer = tiny_trainer(
        rounds, callbacks=[FlipRates(), *callbacks], devices=devices(), default_root_dir=folder, **CHECKPOINTS
    )
    trainer.fit(tiny_federation(), tiny_data(), ckpt_path=ckpt_path)
    return trainer


CHECKPOINTS = {"enable_checkpointing": True}


def devices():
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def recorded_on_ranks(folder):
    trainer = run(folder)
    return float(trainer.callback_metrics["diagnostics/flip_rate"])


def test_equal_on_any_number_of_ranks(tmp_path):
    records = []
    for world in (1, 2, 3):
        logged = on_ranks(world, recorded_on_ranks, str(tmp_path / str(world)))
        records.append((tmp_path / str(world) / "flip_rates.jsonl").read_text())
        flips = read_flip_rates(tmp_path / str(world) / "flip_rates.jsonl")
        assert [entry.round for entry in flips] == [0, 1, 2]
        assert logged == [pytest.approx(flips[-1].rate)] * world
    assert records[0] == records[1] == records[2]


def test_a_resumed_run_has_each_round_once(tmp_path):
    run(tmp_path / "whole", rounds=4)
    expected = (tmp_path / "whole" / "flip_rates.jsonl").read_text()
    path = tmp_path / "cut" / "flip_rates.jsonl"
    run(tmp_path / "cut", rounds=2, callbacks=[LastCheckpoint()])
    # Killed in round 2, after the checkpoint and in the middle of the round's line.
    path.write_text(path.read_text() + expected.splitlines()[2][:20])
    run(tmp_path / "cut", rounds=4, ckpt_path=tmp_path / "cut" / "last.ckpt")
    assert path.read_text() == expected
    # A resume from a checkpoint that is older than the record.
    run(tmp_path / "old", rounds=2, callbacks=[LastCheckpoint()])
    (tmp_path / "old" / "flip_rates.jsonl").write_text("".join(line + "\n" for line in expected.splitlines()[:3]))
    run(tmp_path / "old", rounds=4, ckpt_path=tmp_path / "old" / "last.ckpt")
    assert (tmp_path / "old" / "flip_rates.jsonl").read_text() == expected


def test_a_resumed_run_refuses_a_record_that_is_not_what_it_was(tmp_path):
    run(tmp_path, rounds=2, callbacks=[LastCheckpoint()])
    path = tmp_path / "flip_rates.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"round": 0', '"round": 1', 1))
    with pytest.raises(ConfigurationError, match=r"flip_rates.jsonl is damaged"):
        run(tmp_path, rounds=3, ckpt_path=tmp_path / "last.ckpt")
    path.write_text(whole)
    run(tmp_path, rounds=3, ckpt_path=tmp_path / "last.ckpt")
    assert [entry.round for entry in read_flip_rates(path)] == [0, 1, 2]


def test_a_fresh_start_begins_anew(tmp_path):
    path = tmp_path / "flip_rates.jsonl"
    path.write_text("of another run\n")
    run(tmp_path, rounds=1)
    assert [entry.round for entry in read_flip_rates(path)] == [0]


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "flip_rates.jsonl"
    path.write_text(json.dumps({"round": 0}) + "\n")
    with pytest.raises(ConfigurationError, match="line 1, is no line of FlipRates"):
        read_flip_rates(path)


def test_rounds_without_a_benign_update_have_no_line(tmp_path):
    nobody: Any = None
    shard = UpdateShard.from_updates(torch.ones(2, 3), malicious=torch.tensor([True, True]))
    FlipRates().on_aggregate(nobody, shard, torch.zeros(3))  # would fail on the missing federation
    assert not list(tmp_path.iterdir())
