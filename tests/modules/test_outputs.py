"""What of an output is logits: the right tensor, or one line that says what was found."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.outputs import class_logits, read_logits

DRAWS = torch.Generator().manual_seed(0)
LOGITS, HIDDEN, LOSS = torch.randn(2, 3, generator=DRAWS), torch.randn(2, 5, 4, generator=DRAWS), torch.tensor(0.5)


@dataclass
class Output:
    logits: Tensor
    features: Tensor


@dataclass
class Lone:
    scores: Tensor
    names: list[str]


Named = namedtuple("Named", ["logits", "aux"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "loss": LOSS, "hidden": torch.randn(2, 4)},
        {"scores": LOGITS},
        {"scores": LOGITS, "names": ["a", "b"]},
        (LOGITS,),
        [LOGITS],
        (LOGITS, None),
        (LOGITS, HIDDEN),
        (HIDDEN, LOGITS),
        (LOSS, LOGITS),
        (LOGITS, (HIDDEN, HIDDEN)),
        (LOGITS, torch.tensor([0, 1])),
        Output(LOGITS, torch.randn(2, 4)),
        Lone(LOGITS, ["a"]),
        Named(LOGITS, torch.randn(2, 3)),
        SimpleNamespace(logits=LOGITS, other=1),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_logits_are_found(output):
    assert read_logits(output, "forward of Net") is LOGITS


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ((LOGITS, torch.randn(2, 4)), r"a tuple of 0: shape \(2, 3\), 1: shape \(2, 4\), in which any of several tensors"),
        ({"a": LOGITS, "b": LOGITS}, r"a dict of a: shape \(2, 3\), b: shape \(2, 3\), in which any of several tensors"),
        ({"pooler_output": LOGITS, "last_hidden_state": HIDDEN}, r"pooler_output: shape \(2, 3\), last_hidden_state: shape"),
        ({}, "a dict, in which there are no logits"),
        ({"names": ["a"]}, "a dict of names: list, in which there are no logits"),
        ([], "a list, in which"),
        (None, "a NoneType, in which there are no logits"),
        ("cat", "a str, in which"),
        (LOGITS.numpy(), "a ndarray, in which"),
        (torch.tensor([0, 1]), r"gives a tensor of torch.int64, which are classes or flags rather than logits"),
        (LOGITS > 0, r"gives a tensor of torch.bool"),
        ({"classes": torch.tensor([0, 1])}, r"gives a tensor of torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), r"gives a tensor of torch.complex64"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_could_be_anything_is_refused(output, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        read_logits(output, "forward of Net")
    assert str(refused.value).startswith(("forward of Net returns", "forward of Net gives"))
    assert "\n" not in str(refused.value)


class Net(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor) -> Any:
        return self.output(inputs)


def test_one_logit_stands_for_two_classes():
    inputs = torch.tensor([[2.0], [-3.0]])
    for output in (lambda x: x, lambda x: x[:, 0], lambda x: {"logits": x}):
        logits = class_logits(Net(output), inputs, "FLIP")
        assert logits.tolist() == [[0, 2], [0, -3]]
        torch.testing.assert_close(logits.softmax(1)[:, 1], inputs[:, 0].sigmoid())
    assert class_logits(Net(lambda x: x.double().expand(-1, 3)), inputs, "FLIP").dtype == torch.float32


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ConfigurationError, match=r"Net, whose logits FLIP needs, returns a tensor of shape \(2, 3, 4\)"):
        class_logits(Net(lambda x: x), torch.zeros(2, 3, 4), "FLIP")
