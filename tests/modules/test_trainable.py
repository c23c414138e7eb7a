import torch
from torch import nn

from fl_lightning.modules.trainable import trainable


def test_trainable_parameters_are_those_of_parameters_in_their_order():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
            self.again = self.inner[0]
            self.tied = self.inner[0].weight
            self.missing = nn.Linear(3, 2, bias=False)
            self.frozen = nn.Linear(3, 2).requires_grad_(False)
            self.own = nn.Parameter(torch.zeros(1))
            self.register_parameter("none", None)

    module = Shared()
    expected = [p for p in module.parameters() if p.requires_grad]
    found = trainable(module.modules())
    assert [id(p) for p in found] == [id(p) for p in expected]
    assert len(found) == 6
