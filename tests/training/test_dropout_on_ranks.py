"""Dropout's masks are a client's own: the same bits by recorded steps, and on any number of ranks."""

from typing import Literal

import pytest
from ranks import on_ranks
from tiny import Relabel, fit, tiny_federation

from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, Digits
from fl_lightning.models import DropoutCNN
from fl_lightning.seeding import seed_global_generators
from fl_lightning.training.local_training import LocalTraining

Executor = Literal["sequential", "graph"]


def digests(world: int, executor: Executor) -> list[tuple[str, str | None]]:
    """Of two rounds in either precision, with eight clients, of whom some are malicious, and how they were trained."""
    found: list[tuple[str, str | None]] = []
    precisions: tuple[Literal["32", "bf16"], ...] = ("32", "bf16")
    for precision in precisions:
        seed_global_generators(0)
        federation = tiny_federation(
            client=DropoutCNN(in_channels=1, image_size=8),
            attacks=[Relabel()],
            local=LocalTraining(batch_size=10, executor=executor, precision=precision),
        )
        fit(federation, Digits(IID(num_clients=20)), rounds=2, devices=world)
        found.append((weights_sha256(federation.client), federation.clients.executor.chosen))
    return found


@pytest.fixture(scope="module")
def sequential() -> list[tuple[str, str | None]]:
    return digests(1, "sequential")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_recorded_steps_end_with_the_bits_of_sequential_ones(world, sequential):
    found = [digests(1, "graph")] if world == 1 else on_ranks(world, digests, world, "graph")
    assert found == [[(digest, "graph") for digest, _ in sequential]] * world
    assert len(dict(sequential)) == 2
