"""Ranks that come to hold different models say so, each of them."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import fit, tiny_data, tiny_federation, tiny_tensors, tiny_trainer

from fl_lightning import FederatedDataModule, LastCheckpoint
from fl_lightning.data import IID, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.updates.agreement import digest


class Strays(L.Callback):
    """Changes a weight on the last rank, in the round `at`."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.at and trainer.global_rank == trainer.world_size - 1:
            with torch.no_grad():
                pl_module.client.net[4].bias[1] += 1e-3


class Uneven(torch.optim.SGD):
    """Steps in every process by a length of its own."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad *= 1 + torch.distributed.get_rank() / 10
        return super().step(closure)


def ended(world: int, at: int, **options: Any) -> tuple[str, int]:
    """What a run said, and after how many rounds."""
    federation = tiny_federation()
    callback = Strays(at)
    try:
        trainer = fit(federation, devices=world, rounds=3, callbacks=[callback], **options)
    except ConfigurationError as error:
        return str(error), federation.global_step
    return "", trainer.global_step


def uneven(world: int) -> str:
    federation = tiny_federation(server_optimizer=lambda p: Uneven(p, lr=1.0))
    with pytest.raises(ConfigurationError) as caught:
        fit(federation, devices=world, rounds=1)
    return str(caught.value)


def everything(world: int) -> list[Any]:
    return [ended(world, 1), ended(world, 1, detect_anomaly=True), ended(world, 9, detect_anomaly=True), uneven(world)]


def test_every_rank_ends_with_the_first_tensor_that_differs() -> None:
    for late, early, never, drawn in on_ranks(2, everything, 2):
        assert late[0].startswith("at the end, after 3 rounds, the ranks hold different global models: ")
        assert late[1] == 3
        assert early[0].startswith("after round 1 the ranks hold different global models: net.4.bias of rank 1 is not rank 0's")
        assert early[1] == 2
        assert never == ("", 3)
        assert "net.0.weight of rank 1 is not rank 0's" in drawn


def test_one_rank_has_nobody_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_lightning.updates.agreement.digests", lambda _: pytest.fail("a digest"))
    assert ended(1, 1, detect_anomaly=True) == ("", 3)


def test_a_digest_is_of_type_shape_and_every_bit() -> None:
    values = torch.zeros(2, 3)
    others = [torch.zeros(3, 2), values.int(), values.double(), -values, values.bfloat16(), torch.zeros(0, 3)]
    assert len({digest(tensor) for tensor in (values, *others)}) == 7
    assert digest(values) == digest(torch.zeros(3, 2).T)
    assert digest(torch.tensor(torch.nan)) == digest(torch.tensor(torch.nan))


def deals_by_chance(targets: Any, generator: Any, keys: Any) -> Any:
    return np.array_split(np.random.default_rng().permutation(len(targets)), 9)


def sizes_by_chance(targets: Any, generator: Any, keys: Any) -> Any:
    cuts = np.random.default_rng().choice(np.arange(1, len(targets)), 8, replace=False)
    return np.split(np.arange(len(targets)), np.sort(cuts))


def drawn_anew() -> Any:
    inputs = torch.from_numpy(np.random.default_rng().normal(size=(90, 6))).float()
    return TensorSamples(inputs, torch.arange(90) % 3)


def shuffled() -> Any:
    return TensorSamples(torch.zeros(90, 6), torch.from_numpy(np.random.default_rng().permutation(90)) % 3)


def given_different_data() -> list[str]:
    def data(train: Any, partition: Any = IID(num_clients=9)) -> Any:  # noqa: B008  frozen
        return FederatedDataModule.from_datasets(train, tiny_tensors(9), partition=partition, num_classes=3)

    found = []
    same = tiny_tensors(90)
    for given in (data(same, deals_by_chance), data(same, sizes_by_chance), data(drawn_anew()), data(shuffled())):
        with pytest.raises(ConfigurationError) as caught:
            fit(tiny_federation(), given, devices=2, rounds=1)
        found.append(str(caught.value))
    return found


def test_ranks_that_were_given_different_data_say_so_before_training() -> None:
    for dealt, sizes, inputs, classes in on_ranks(2, given_different_data):
        assert "different data: the samples of the clients of rank 1 are not rank 0's" in dealt
        assert "different data: the clients' numbers of samples of rank 1" in sizes
        assert "different data: the training samples of rank 1" in inputs
        assert "different data: the training samples' classes of rank 1" in classes


def leaves_checkpoints(folder: Path) -> None:
    """Of rounds 1 and 2."""
    trainer = tiny_trainer(2, callbacks=[LastCheckpoint()], default_root_dir=str(folder), enable_checkpointing=True)
    trainer.fit(tiny_federation(), tiny_data())


def go_on_apart(starts: list[list[str | None]]) -> list[str]:
    """What was said where each rank has a checkpoint of its own, or none."""
    said = []
    for start in starts:
        own = start[torch.distributed.get_rank()]
        with pytest.raises(ConfigurationError) as caught:
            tiny_trainer(3, devices=2).fit(tiny_federation(), tiny_data(), ckpt_path=own)
        said.append(str(caught.value))
    return said


def test_ranks_that_would_go_on_from_different_checkpoints_say_so_before_training(tmp_path: Path) -> None:
    leaves_checkpoints(tmp_path)
    last, previous, other = tmp_path / "last.ckpt", tmp_path / "previous.ckpt", tmp_path / "other.ckpt"
    content = torch.load(last, weights_only=True)
    content["state_dict"]["client.net.4.bias"] += 1
    torch.save(content, other)
    starts = [[last, None], [None, last], [last, previous], [last, other]]
    for said in on_ranks(2, go_on_apart, [[None if path is None else str(path) for path in start] for start in starts]):
        for line, expected in zip(
            said,
            [
                "rank 0 has the checkpoint of round 2, rank 1 no checkpoint; ",
                "rank 0 has no checkpoint, rank 1 the checkpoint of round 2; ",
                "rank 0 has the checkpoint of round 2, rank 1 the checkpoint of round 1; ",
                "rank 0 has the checkpoint of round 2, rank 1 another checkpoint of round 2; ",
            ],
            strict=True,
        ):
            assert line.startswith(f"the ranks would go on from different rounds or weights: {expected}")
