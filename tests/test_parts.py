"""Parts and tensors of a module, as PyTorch lists them."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fl_lightning.models import CNN, ResNet18
from fl_lightning.parts import named_buffers, named_parameters, named_parts


def assert_as_pytorch_lists_them(module: nn.Module) -> None:
    for found, expected in (
        (named_parts(module), list(module.named_modules())),
        (named_parameters(module), list(module.named_parameters())),
        (named_buffers(module), list(module.named_buffers())),
    ):
        assert [name for name, _ in found] == [name for name, _ in expected]
        assert all(a is b for (_, a), (_, b) in zip(found, expected, strict=True))


@given(st.data())
def test_any_module_even_with_parts_and_tensors_in_several_places(data: st.DataObject) -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    made: list[nn.Module] = [linear, norm, nn.ReLU()]
    for _ in range(data.draw(st.integers(0, 5))):
        inside = data.draw(st.lists(st.sampled_from(made), max_size=3))
        made.append(nn.Sequential(*inside))
        if data.draw(st.booleans()):
            tied: Any = data.draw(st.sampled_from([None, linear.weight, norm.bias]))
            made[-1].register_parameter("tied", tied)
        if data.draw(st.booleans()):
            made[-1].register_buffer("shared", data.draw(st.sampled_from([None, norm.running_mean])))
        if data.draw(st.booleans()):
            made[-1].register_module("none", None)
    assert_as_pytorch_lists_them(made[-1])


def test_networks() -> None:
    for module in (CNN(image_size=8), ResNet18()):
        assert_as_pytorch_lists_them(module)
