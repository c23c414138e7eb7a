"""Two checkpoints, of which a damaged one is refused and the other named, and what a run makes of them when it goes on."""

import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from tiny import tiny_data, tiny_federation, tiny_trainer

from fl_lightning import ConfigurationError, LastCheckpoint, RunRecord
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.checkpoints import checkpoint_files, resuming, sharded_state
from fl_lightning.checkpoints.newest import newest
from fl_lightning.checkpoints.resuming import CheckpointFiles, Pair, advice, whole
from fl_lightning.cli import main

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def fit(folder: Path, rounds: int, ckpt_path: Any = None, **kwargs: Any) -> tuple[L.Trainer, str]:
    """The trainer, and the digest of the weights."""
    federation = tiny_federation()
    trainer = tiny_trainer(
        rounds, callbacks=[LastCheckpoint()], default_root_dir=str(folder), enable_checkpointing=True, **kwargs
    )
    trainer.fit(federation, tiny_data(), ckpt_path=ckpt_path)
    return trainer, weights_sha256(federation.client)


def flip(path: Path, seed: int = 0) -> None:
    content = bytearray(path.read_bytes())
    draws = random.Random(seed)
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)


def steps(folder: Path) -> tuple[int | None, int | None]:
    """Rounds of the last checkpoint and the previous one, None where there is none that is whole."""
    return whole(folder / "last.ckpt"), whole(folder / "previous.ckpt")


def test_a_damaged_checkpoint_is_refused_and_the_run_goes_on_from_the_other(tmp_path):
    _, undisturbed = fit(tmp_path / "undisturbed", 5)
    fit(tmp_path, 4)
    assert steps(tmp_path) == (4, 3)
    good = (tmp_path / "last.ckpt").read_bytes()
    for seed in range(20):
        (tmp_path / "last.ckpt").write_bytes(good)
        flip(tmp_path / "last.ckpt", seed)
        with pytest.raises(
            ConfigurationError,
            match=r"last.ckpt (is|cannot be read: it is) damaged.*last good one is .*previous\.ckpt, of round 3",
        ):
            CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ConfigurationError, match=r"fl-lightning fit --ckpt_path .*previous\.ckpt$"):
        fit(tmp_path, 5, "last")
    trainer, digest = fit(tmp_path, 5, tmp_path / "previous.ckpt")
    assert digest == undisturbed
    assert trainer.global_step == 5
    assert steps(tmp_path) == (5, 4)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(tmp_path):
    fit(tmp_path, 4)
    flip(tmp_path / "last.ckpt")
    assert steps(tmp_path) == (None, 3)
    fit(tmp_path, 4, tmp_path / "previous.ckpt")  # one round, so one checkpoint
    assert steps(tmp_path) == (4, 3)


@pytest.mark.parametrize("where", ["beside", "elsewhere"])
@pytest.mark.parametrize("given", ["last", "link"])
def test_a_last_checkpoint_that_is_a_link_is_gone_on_with(tmp_path, where, given):
    _, undisturbed = fit(tmp_path / "undisturbed", 4)
    folder = tmp_path / "run"
    trainer = tiny_trainer(3, callbacks=[RunRecord({}), LastCheckpoint()], default_root_dir=folder, enable_checkpointing=True)
    trainer.fit(tiny_federation(), tiny_data())
    target = (folder if where == "beside" else tmp_path) / "kept.ckpt"
    (folder / "last.ckpt").replace(target)
    (folder / "last.ckpt").symlink_to(Path("..", target.name) if where == "elsewhere" else target.name)
    ckpt_path = folder / "last.ckpt" if given == "link" else given
    before, federation = target.read_bytes(), tiny_federation()
    trainer = tiny_trainer(4, callbacks=[RunRecord({}), LastCheckpoint()], default_root_dir=folder, enable_checkpointing=True)
    trainer.fit(federation, tiny_data(), ckpt_path=ckpt_path)
    assert weights_sha256(federation.client) == undisturbed
    assert not (folder / "earlier").exists()
    assert steps(folder) == (4, 3)
    assert target.read_bytes() == before
    assert not [path for path in folder.iterdir() if path.is_symlink()]


def test_a_link_that_is_put_aside_leads_where_it_led(tmp_path):
    fit(tmp_path, 2)
    (tmp_path / "last.ckpt").replace(tmp_path / "kept.ckpt")
    (tmp_path / "last.ckpt").symlink_to("kept.ckpt")
    fit(tmp_path, 1)
    assert (whole(tmp_path / "last.ckpt"), whole(tmp_path / "earlier" / "1" / "last.ckpt")) == (1, 2)


def test_going_on_with_an_earlier_run_puts_aside_the_one_that_is_there(tmp_path):
    fit(tmp_path, 3)
    fit(tmp_path, 1)
    assert whole(tmp_path / "earlier" / "1" / "last.ckpt") == 3
    fit(tmp_path, 4, tmp_path / "earlier" / "1" / "last.ckpt")
    assert whole(tmp_path / "last.ckpt") == 4
    assert whole(tmp_path / "earlier" / "2" / "last.ckpt") == 1


@pytest.mark.parametrize(
    ("verb", "advised"),
    [
        ("fit", r"go on from it: fl-lightning fit --ckpt_path .*previous\.ckpt$"),
        ("validate", r"take that: fl-lightning validate --ckpt_path .*previous\.ckpt$"),
        ("test", r"take that: fl-lightning test --ckpt_path .*previous\.ckpt$"),
        ("predict", r"take that: ckpt_path='.*previous\.ckpt'$"),
    ],
)
def test_what_is_advised_fits_what_was_asked_for(tmp_path, verb, advised):
    fit(tmp_path, 2)
    flip(tmp_path / "last.ckpt")
    trainer = tiny_trainer(3, default_root_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match=advised):
        getattr(trainer, verb)(tiny_federation(), datamodule=tiny_data(), ckpt_path=tmp_path / "last.ckpt")
    flip(tmp_path / "previous.ckpt")
    with pytest.raises(ConfigurationError, match="give another one, or start afresh" if verb == "fit" else "give another one$"):
        getattr(trainer, verb)(tiny_federation(), datamodule=tiny_data(), ckpt_path=tmp_path / "last.ckpt")


def test_a_damaged_previous_one_is_refused_too(tmp_path):
    fit(tmp_path, 2)
    flip(tmp_path / "previous.ckpt")
    with pytest.raises(
        ConfigurationError, match=r"previous.ckpt (is|cannot be read: it is) damaged.*last good one is .*last\.ckpt, of round 2"
    ):
        fit(tmp_path, 3, tmp_path / "previous.ckpt")
    flip(tmp_path / "last.ckpt")
    with pytest.raises(ConfigurationError, match=r"no good one beside it: .*start afresh without --ckpt_path"):
        fit(tmp_path, 3, "last")


def test_a_run_that_begins_leaves_no_checkpoint_of_another(tmp_path):
    fit(tmp_path, 3)
    fit(tmp_path, 1)
    assert steps(tmp_path) == (1, None)
    assert not (tmp_path / "previous.ckpt").exists()


def test_a_trainer_that_goes_on_by_itself_keeps_the_pair(tmp_path):
    trainer, _ = fit(tmp_path, 2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(tiny_federation(), tiny_data())
    assert steps(tmp_path) == (3, 2)


def test_the_command_that_is_named_goes_on(tmp_path, capsys, monkeypatch):
    config = yaml.safe_load(QUICKSTART.read_text())
    config["trainer"].update(max_epochs=2, logger=False, default_root_dir=str(tmp_path / "a run"))
    config["data"]["init_args"].update(num_train=400, num_test=100)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(tmp_path / "x.yaml")])
    before = (tmp_path / "a run" / "run.json").read_text()
    flip(tmp_path / "a run" / "last.ckpt")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "x.yaml"), "--ckpt_path", "last"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    command = shlex.split(re.search(r"go on from it: (.*)\n", said)[1])  # pyrefly: ignore[unsupported-operation]
    assert command[:2] == ["fl-lightning", "fit"]
    main(command[1:])
    digest = re.compile(r'"weights_sha256": "\w+"')
    assert digest.findall((tmp_path / "a run" / "run.json").read_text()) == digest.findall(before) != []


# ---- files beside a checkpoint -----------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path) -> Path:
    """The last of two checkpoints of two ranks, without the ranks."""
    pair = Pair(tmp_path, None, 0)
    for step in (1, 2):
        part = tmp_path / "last.ckpt.part"
        digests: list[str | None] = []
        checkpoint: dict[str, Any] = {}
        for rank in (0, 1):
            mine = {"start": 5 * rank, "coordinates": {":m": torch.full((5,), float(step))}, "clients": {}}
            checkpoint = {"global_step": step, sharded_state.KEY: mine}
            digests.append(sharded_state.write(checkpoint, part, rank, 2))
        checkpoint[sharded_state.KEY]["sha256"] = digests
        CheckpointFiles().save_checkpoint(checkpoint, part)
        pair.replace(part, step)
    return tmp_path / "last.ckpt"


def read(path: Path) -> torch.Tensor:
    entry = CheckpointFiles().load_checkpoint(path)[sharded_state.KEY]
    return resuming.parts(entry, path, 2, 8, 0, 1).coordinates[":m"]


def test_files_beside_a_checkpoint_are_those_that_were_written_with_it(sharded):
    previous = sharded.with_name("previous.ckpt")
    assert read(sharded).tolist() == [2.0] * 6
    assert read(previous).tolist() == [1.0] * 6
    shard = sharded.with_name("last.ckpt.shards") / "round-2" / "rank-1-of-2.pt"
    good = shard.read_bytes()
    for seed in range(20):
        shard.write_bytes(good)
        flip(shard, seed)
        with pytest.raises(
            ConfigurationError,
            match=r"rank-1-of-2.pt (is|cannot be read: it is) damaged.*last good one is .*previous.ckpt, of round 1",
        ):
            read(sharded)
    shard.write_bytes((shard.parents[1] / "round-1" / shard.name).read_bytes())  # whole, but of another round
    with pytest.raises(ConfigurationError, match=r"rank-1-of-2.pt was written with another checkpoint.*previous.ckpt"):
        read(sharded)
    assert whole(sharded) is None
    assert whole(previous) == 1
    shard.unlink()
    with pytest.raises(ConfigurationError, match=r"rank-1-of-2.pt cannot be read: No such file.*copy the folder"):
        read(sharded)
    assert read(previous).tolist() == [1.0] * 6


def test_a_checkpoint_whose_files_are_damaged_is_not_offered(sharded):
    flip(sharded.with_name("last.ckpt.shards") / "round-1" / "rank-0-of-2.pt")
    flip(sharded)
    assert "no good one beside it" in advice(sharded)


def test_a_checkpoint_of_an_earlier_version_is_read_with_a_warning(tmp_path, caplog):
    torch.save({"global_step": 3}, tmp_path / "last.ckpt")
    assert CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt") == {"global_step": 3}
    assert "has no digest" in caplog.text


# ---- one takes the other's place ---------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, call: int, run: Callable[[], Any]) -> bool:
    """Whether the process got to the n-th of the calls by which files change their names, where it ends."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def once_more(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                raise KilledError
            return function(*args, **kwargs)

        return once_more

    with monkeypatch.context() as patch:
        for where, name in ((Path, "replace"), (Path, "unlink"), (os, "link"), (resuming, "sync")):
            patch.setattr(where, name, counted(getattr(where, name)))
        try:
            run()
        except KilledError:
            return True
        return False


def save(folder: Path, step: int) -> Path:
    checkpoint_files.save({"global_step": step}, folder / "last.ckpt.part", step)
    return folder / "last.ckpt.part"


def test_a_kill_at_any_moment_leaves_a_checkpoint_and_nothing_that_stays(tmp_path, monkeypatch):
    call, moments = 0, []
    while True:
        call += 1
        folder = tmp_path / str(call)
        pair = Pair(folder, None, 0)
        for step in (1, 2):
            pair.replace(save(folder, step), step)
        part = save(folder, 3)
        killed = killed_at(monkeypatch, call, lambda pair=pair, part=part: pair.replace(part, 3))
        moments.append(steps(folder))
        resuming.clear(folder, ("last.ckpt", "previous.ckpt"))
        assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
        assert newest(folder) == folder / "last.ckpt"
        if not killed:
            break
    assert moments[0] == (2, 1)
    assert moments[-1] == (3, 2)
    assert set(moments) <= {(2, 1), (2, 2), (3, 2)}
    assert len(moments) >= 5


def test_without_links_the_previous_one_is_newest_for_a_moment(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError("not on this file system")

    monkeypatch.setattr(os, "link", no_links)
    pair = Pair(tmp_path, None, 0)
    for step in (1, 2):
        pair.replace(save(tmp_path, step), step)
    assert steps(tmp_path) == (2, 1)
    (tmp_path / "last.ckpt").unlink()
    assert newest(tmp_path) == tmp_path / "previous.ckpt"
    (tmp_path / "previous.ckpt").unlink()
    assert newest(tmp_path) is None


def test_what_a_killed_run_left_goes_at_the_next_start(tmp_path):
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    shards = tmp_path / "last.ckpt.shards" / "round-1"
    shards.mkdir(parents=True)
    left = [tmp_path / "last.ckpt.part", tmp_path / f".run.json.{gone.pid}.1.part", shards / f".x.pt.{gone.pid}.1.part"]
    left += [tmp_path / name for name in (".last.ckpt.part", "run.json.part", f".metrics.jsonl.{os.getpid()}.1.part")]
    left += [tmp_path / ".previous.ckpt.part", tmp_path / f".status.json.{gone.pid}.1.part"]
    (tmp_path / "own.part").write_bytes(b"the user's")
    for path in left:
        path.write_bytes(b"half")
    fit(tmp_path, 1)
    assert not [path for path in left if path.exists()]
    assert (tmp_path / "own.part").exists()


def test_unfinished_files_go_without_checkpoints_too(tmp_path):
    (tmp_path / f".run.json.{os.getpid()}.1.part").write_bytes(b"half")
    tiny_trainer(1, callbacks=[RunRecord({})], default_root_dir=str(tmp_path)).fit(tiny_federation(), tiny_data())
    assert not list(tmp_path.glob("*.part"))


# ---- Lightning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["federated", "auto"])
def test_every_checkpoint_has_a_digest_whatever_the_strategy(tmp_path, strategy):
    trainer, _ = fit(tmp_path, 1, strategy=strategy)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert whole(tmp_path / "own.ckpt") == whole(tmp_path / "last.ckpt") == 1


def test_the_users_own_way_to_write_stays(tmp_path):
    class Own(TorchCheckpointIO):
        pass

    trainer, _ = fit(tmp_path, 1, plugins=[Own()])
    assert type(trainer.strategy.checkpoint_io) is Own
    assert whole(tmp_path / "last.ckpt") is None


def test_checkpoints_that_come_later_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="AsyncCheckpointIO"):
        fit(tmp_path, 1, plugins=[AsyncCheckpointIO()])
