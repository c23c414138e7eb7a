import pytest
import torch
from tiny import TinyClient
from torch import nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.models import MLP, ResNet18
from fl_lightning.updates.layers import Layer, as_layers, layers_of, output_layer
from fl_lightning.updates.layout import parameter_layout


def test_layers_lie_one_after_the_other_as_the_vector_has_them() -> None:
    module = TinyClient()
    layout = parameter_layout(module)
    vector = layout.flatten(module)
    assert [layer.name for layer in layout.layers] == [name for name, _ in module.named_parameters()]
    for layer, parameter in zip(layout.layers, module.parameters(), strict=True):
        assert torch.equal(vector[layer.start : layer.stop].view(layer.shape), parameter.detach())
    assert layout.layers[-1].stop == layout.num_coordinates


@pytest.mark.parametrize(
    ("first", "width", "expected"),
    [(0, 10, (3, 7)), (3, 4, (0, 4)), (4, 2, (0, 2)), (5, 9, (0, 2)), (0, 4, (3, 4)), (7, 3, (0, 0)), (0, 3, (3, 3))],
)
def test_columns_of_a_layer(first: int, width: int, expected: tuple[int, int]) -> None:
    layer = Layer("a", (2, 2), 3)
    columns = layer.columns(first, width)
    assert (columns.start, columns.stop) == expected
    held = set(range(first, first + width))
    assert [i for i in range(3, 7) if i in held] == list(range(first, first + width))[columns]


def test_sizes_stand_for_vectors_without_a_name() -> None:
    assert as_layers([2, 0, 3]) == [Layer("", (2,), 0), Layer("", (0,), 2), Layer("", (3,), 2)]
    named = layers_of(["a", "b"], [(2, 3), ()])
    assert as_layers(named) == named
    assert [layer.stop for layer in named] == [6, 7]


@pytest.mark.parametrize(
    ("module", "weight", "bias"),
    [
        (TinyClient(), ("net.4.weight", (3, 37)), ("net.4.bias", (3,))),
        (MLP(sizes=[4, 8, 2]), (None, (2, 8)), (None, (2,))),
        (ResNet18(), (None, (10, 512)), (None, (10,))),
    ],
)
def test_the_output_layer_is_the_last(module: nn.Module, weight: tuple, bias: tuple) -> None:
    for found, (name, shape) in zip(output_layer(parameter_layout(module).layers, "Rule"), (weight, bias), strict=True):
        assert found.shape == shape
        assert name in (None, found.name)


def test_the_output_layer_may_be_named() -> None:
    layers = parameter_layout(TinyClient(norm=False)).layers
    assert [layer.name for layer in output_layer(layers, "Rule", "net.0")] == ["net.0.weight", "net.0.bias"]


@pytest.mark.parametrize(
    ("names", "shapes", "module", "message"),
    [
        (["w"], [(3, 4)], None, r"last parameter tensors are w \(3, 4\); name the layer"),
        (["w", "norm.w", "norm.b"], [(3, 4), (3,), (3,)], None, r"are norm.w \(3,\), norm.b \(3,\)"),
        (["b", "w"], [(3,), (3, 4)], None, r"are b \(3,\), w \(3, 4\)"),
        (["w", "b"], [(4, 3), (3,)], None, "Mine looks at the output layer"),
        (
            ["w", "b"],
            [(4, 3), (4,)],
            "head",
            r"parameters of head are none; name .* \(the model has w, b\), or use another rule",
        ),
        (["head.weight", "x"], [(4, 3), (4,)], "head", r"parameters of head are head.weight \(4, 3\)"),
    ],
)
def test_other_models_are_refused(names: list[str], shapes: list, module: str | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        output_layer(layers_of(names, shapes), "Mine", module)
