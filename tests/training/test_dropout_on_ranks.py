"""Dropout's masks are a client's own: the same bits by recorded steps, and on any number of ranks."""

import pytest
from ranks import on_ranks
from tiny import fit, tiny_federation

from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import IID, Digits
from fl_lightning.models import DropoutCNN
from fl_lightning.seeding import seed_global_generators
from fl_lightning.training.local_training import LocalTraining


def digest(world: int, executor: str, precision: str) -> tuple[str, str | None]:
    """Of two rounds with eight clients, of whom some are malicious, and how they were trained."""
    seed_global_generators(0)
    client = DropoutCNN(in_channels=1, image_size=8)
    federation = tiny_federation(client=client, local=LocalTraining(batch_size=10, executor=executor, precision=precision))
    fit(federation, Digits(IID(num_clients=20)), rounds=2, devices=world)
    return weights_sha256(federation.client), federation.clients.executor.chosen


@pytest.fixture(scope="module")
def sequential() -> dict[str, str]:
    return {precision: digest(1, "sequential", precision)[0] for precision in ("32", "bf16")}


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_recorded_steps_end_with_the_bits_of_sequential_ones(world, precision, sequential):
    found = [digest(1, "graph", precision)] if world == 1 else on_ranks(world, digest, world, "graph", precision)
    assert found == [(sequential[precision], "graph")] * world
