"""Recordings of steps with constants in them, and on a GPU."""

from typing import Any

import pytest
import torch
from recorded_clients import CLIENTS, assert_same, samples
from torch import Tensor

from fl_lightning.models import CNN, MLP
from fl_lightning.training.local_training import LocalTraining


def test_constants_of_a_step() -> None:
    class Weighted(MLP):
        weight: Any

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (self.weight * 0.3)

    module = Weighted(sizes=(6, 5, 3))
    module.__dict__["weight"] = torch.tensor(1.7)  # neither parameter nor buffer
    assert assert_same(module, LocalTraining(batch_size=8), CLIENTS).recordings


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
def test_cuda_graphs_give_the_same_bits(channels_last: bool) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.manual_seed(0)
    module = CNN(image_size=8, channels=[4, 6], hidden=8, channels_last=channels_last).cuda()
    data = [samples(n, (3, 8, 8)).to(torch.device("cuda")) for n in (40, 41, 40)]
    assert assert_same(module, LocalTraining(batch_size=8), data).recordings
