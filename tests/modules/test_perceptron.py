from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_lightning.models import CNN, MLP
from fl_lightning.modules.perceptron import perceptron_layers


def test_layers_make_the_module() -> None:
    torch.manual_seed(0)
    model, inputs = MLP(sizes=(6, 5, 4, 3)), torch.randn(7, 2, 3)
    layers = perceptron_layers(model)
    assert layers is not None
    outputs = inputs.flatten(1)
    for weight, bias in layers[:-1]:
        outputs = (outputs @ weight.t() + bias).relu()
    torch.testing.assert_close(outputs @ layers[-1].weight.t() + layers[-1].bias, model(inputs))
    assert not any(tensor.requires_grad for layer in layers for tensor in layer)
    first = next(model.parameters())
    with torch.no_grad():
        first.add_(1)
    assert torch.equal(layers[0].weight, first)


class Scaled(MLP):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)


def with_another_forward() -> MLP:
    model = MLP(sizes=(6, 5, 2))
    model.forward = lambda inputs: 2 * MLP.forward(model, inputs)
    return model


def changed(change: Callable[[MLP], Any]) -> Callable[[], MLP]:
    def make() -> MLP:
        model = MLP(sizes=(6, 5, 2))
        change(model)
        return model

    return make


def another_layer(model: MLP, at: int, layer: nn.Module) -> None:
    model.layers[at] = layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: CNN(),
        lambda: Scaled(sizes=(6, 5, 2)),
        with_another_forward,
        changed(lambda model: model.register_forward_pre_hook(lambda *_: None)),
        changed(lambda model: model.layers[0].register_forward_hook(lambda *_: None)),
        changed(lambda model: nn.utils.parametrizations.weight_norm(model.layers[2])),
        changed(lambda model: another_layer(model, 1, nn.Tanh())),
        changed(lambda model: another_layer(model, 2, nn.Linear(5, 2, bias=False))),
        changed(lambda model: model.layers.append(nn.ReLU())),
        changed(lambda model: model.double()),
    ],
)
def test_whatever_else_is_no_perceptron(make: Callable[[], nn.Module]) -> None:
    assert perceptron_layers(make()) is None
