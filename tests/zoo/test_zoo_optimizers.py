"""Optimizers of other packages in a client: each ends where a loop without a federation does, or is refused.

Run by `make zoo`. `docs/reference/zoo.md` lists what came out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import N, Wrapped, both, closure_alone, gradients_first, needed, outcome
from torch import nn

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "zoo.md"


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def plain(module: str, name: str, **settings: Any) -> Callable[[Any], Any]:
    return lambda client: getattr(needed(module), name)(client.parameters(), **settings)


def sam(client: Any) -> Any:
    return needed("pytorch_optimizer").SAM(client.parameters(), torch.optim.SGD, lr=0.05)


def look_ahead(client: Any) -> Any:
    return needed("torch_optimizer").Lookahead(torch.optim.SGD(client.parameters(), lr=0.05), k=2)


def muon(client: Any) -> Any:
    package = needed("muon")
    matrices = [p for p in client.parameters() if p.ndim == 2]
    rest = [p for p in client.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "use_muon": True, "lr": 0.02}, {"params": rest, "use_muon": False, "lr": 1e-3}]
    return package.SingleDeviceMuonWithAuxAdam(groups)


def adam_mini(client: Any) -> Any:
    return needed("adam_mini").Adam_mini(client.named_parameters(), lr=1e-2, dim=16, n_heads=2)


def low_memory(client: Any) -> Any:
    return needed("lomo_optim").Lomo(client, lr=0.05)


GRADIENTS = (gradients_first,)
CLOSURE = (gradients_first, closure_alone, both)

ZOO: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...], str]] = {
    "lion-pytorch Lion": (plain("lion_pytorch", "Lion", lr=1e-3), GRADIENTS, "works"),
    "schedulefree AdamWScheduleFree": (plain("schedulefree", "AdamWScheduleFree", lr=1e-2), CLOSURE, ""),
    "schedulefree SGDScheduleFree": (plain("schedulefree", "SGDScheduleFree", lr=0.1), CLOSURE, ""),
    "prodigyopt Prodigy": (plain("prodigyopt", "Prodigy"), GRADIENTS, "works"),
    "dadaptation DAdaptAdam": (plain("dadaptation", "DAdaptAdam"), GRADIENTS, "works"),
    "dadaptation DAdaptSGD": (plain("dadaptation", "DAdaptSGD"), GRADIENTS, "works"),
    "adabelief-pytorch AdaBelief": (plain("adabelief_pytorch", "AdaBelief", print_change_log=False), GRADIENTS, "works"),
    "madgrad MADGRAD": (plain("madgrad", "MADGRAD", lr=1e-2), GRADIENTS, "works"),
    "adamp AdamP": (plain("adamp", "AdamP", lr=1e-2), GRADIENTS, "works"),
    "adamp SGDP": (plain("adamp", "SGDP", lr=0.05, momentum=0.9), GRADIENTS, "works"),
    "came-pytorch CAME": (plain("came_pytorch", "CAME", lr=1e-3), GRADIENTS, "works"),
    "pytorch-optimizer Ranger": (plain("pytorch_optimizer", "Ranger", lr=1e-2), CLOSURE, "works"),
    "pytorch-optimizer SOAP": (plain("pytorch_optimizer", "SOAP", lr=1e-2), CLOSURE, "works"),
    "pytorch-optimizer SAM": (sam, (both,), ""),
    "torch-optimizer Yogi": (plain("torch_optimizer", "Yogi", lr=1e-2), GRADIENTS, "works"),
    "torch-optimizer Shampoo": (plain("torch_optimizer", "Shampoo", lr=0.1), GRADIENTS, "works"),
    "torch-optimizer Lookahead": (look_ahead, CLOSURE, "works"),
    "torch-optimi StableAdamW": (plain("optimi", "StableAdamW", lr=1e-2), CLOSURE, "works"),
    "adan-pytorch Adan": (plain("adan_pytorch", "Adan", lr=1e-3), GRADIENTS, "works"),
    "adam-atan2-pytorch AdamAtan2": (plain("adam_atan2_pytorch", "AdamAtan2", lr=1e-3), GRADIENTS, "works"),
    "adam-mini Adam_mini": (adam_mini, GRADIENTS, "works"),
    "muon-optimizer SingleDeviceMuonWithAuxAdam": (muon, GRADIENTS, "works"),
    "qhoptim QHAdam": (plain("qhoptim.pyt", "QHAdam", lr=1e-2), GRADIENTS, "works"),
    "dog-optimizer LDoG": (plain("dog", "LDoG"), CLOSURE, "works"),
    "ranger21 Ranger21": (
        plain("ranger21", "Ranger21", lr=1e-2, num_epochs=1, num_batches_per_epoch=N // 4, logging_active=False),
        CLOSURE,
        "works",
    ),
    "lomo-optim Lomo": (low_memory, GRADIENTS, "has no step()"),
}
"""How it is made, how its `step` may be called, and what becomes of it: `works`, what its refusal says, or either of these."""


@pytest.mark.parametrize("name", ZOO)
def test_works_as_by_hand_or_is_refused(name):
    make, steps, expected = ZOO[name]
    found = outcome(lambda: Wrapped(network(), optimizer=make), "rows", *steps)
    assert expected in found, found


def test_the_page_lists_every_one():
    page = PAGE.read_text()
    assert [name for name in ZOO if f"| {name} |" not in page] == []
