"""Models whose outputs are no logits: predicted rightly, or refused before training."""

from typing import Any

import lightning as L
import pytest
import torch
from told_outputs import Net
from torch import Tensor, nn

from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.training.prediction import check_predictions, last_operation


class Wide(Net):
    def forward(self, x: Tensor) -> Any:
        return x * 1.0


def samples(n: int = 80, classes: int = 3) -> TensorSamples:
    return TensorSamples(torch.randn(n, 4, generator=torch.Generator().manual_seed(1)), torch.arange(n) % classes)


def check(net: L.LightningModule, data: TensorSamples | None = None, classes: int = 3) -> None:
    check_predictions(net, samples() if data is None else data, classes)


@pytest.mark.parametrize(
    "output",
    [
        lambda z: z,
        lambda z: z.log_softmax(1),
        lambda z: {"logits": z},
        lambda z: (z, None),
        lambda z: z.masked_fill(torch.tensor([False, False, True]), -torch.inf),
        lambda z: z.bfloat16(),
        lambda z: z.detach(),
        lambda z: z.squeeze(),
        lambda z: {"logits": z.squeeze()},
    ],
)
def test_logits_raise_no_questions(output, caplog):
    check(Net(output))
    assert not caplog.text


@pytest.mark.parametrize(
    ("output", "outputs", "classes", "message"),
    [
        (lambda z: z[:, :, None, None].expand(-1, -1, 2, 2), 3, 3, r"output of shape \(2, 3, 2, 2\) for 2 samples.*: give the"),
        (lambda z: z[:, None].expand(-1, 5, -1), 3, 3, r"output of shape \(2, 5, 3\) for 2 samples"),
        (lambda z: z, 3, 4, r"output of shape \(2, 3\) for 2 samples, but the task has 4 classes"),
        (lambda z: z[:, 0], 3, 3, r"output of shape \(2,\) for 2 samples, but the task has 3 classes"),
        (lambda z: z.mean(), 3, 3, r"output of shape \(1,\) for 2 samples"),
        (lambda z: z.argmax(1), 2, 2, "torch.int64, which are classes"),
        (lambda z: z[:, 0] > 0, 2, 2, "torch.bool, which are classes"),
        (lambda z: (z, z), 3, 3, r"returns a tuple of 0: shape \(2, 3\), 1: shape \(2, 3\)"),
        (lambda z: z * torch.nan, 3, 3, "predicts NaN for the first 2 samples before any training"),
        (lambda z: torch.sigmoid(z), 1, 2, "one output after a sigmoid, but predictions are split at a logit of 0"),
        (lambda z: torch.sigmoid(z).squeeze(1), 1, 2, "one output after a sigmoid"),
        (lambda z: {"logits": nn.Sigmoid()(z)[:, 0]}, 1, 2, "one output after a sigmoid"),
        (
            lambda z: z @ torch.zeros(9, 9),
            3,
            3,
            r"cannot predict 2 samples of the task by forward\(inputs\): RuntimeError: mat1",
        ),
        (lambda z: 1 / 0, 3, 3, "ZeroDivisionError: division by zero; change it, or give the module a predict_step"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(output, outputs, classes, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        check(Net(output, outputs), classes=classes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("output", "outputs", "classes", "message"),
    [
        (lambda z: torch.sigmoid(z).detach(), 1, 2, "lies in [0, 1] for all of 64 samples, as if it were a probability"),
        (lambda z: z.clamp(0, 1), 1, 2, "lies in [0, 1] for all of 64 samples"),
        (lambda z: z.softmax(1), 3, 3, "gives probabilities; Acc and ASR are right"),
        (lambda z: z.detach().softmax(1), 3, 3, "gives probabilities; Acc and ASR are right"),
        (lambda z: z, 10, 3, "has 10 outputs, but the task has 3 classes; the others are never right"),
    ],
)
def test_what_may_be_meant_is_warned_of(output, outputs, classes, message, caplog):
    check(Net(output, outputs), classes=classes)
    assert message in caplog.text


def test_two_logits_in_the_unit_interval_are_no_reason_to_warn(caplog):
    data = samples()
    order = Net(outputs=1).layer(data.inputs)[:, 0].sigmoid().argsort(descending=True)  # the largest logits first
    check(Net(lambda z: z / 10, 1), TensorSamples(data.inputs[order], data.targets[order]), 2)
    check(Net(torch.zeros_like, 1), data, 2)  # as a last layer that starts at zero gives
    assert not caplog.text


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (lambda z: z.sigmoid(), "sigmoid"),
        (lambda z: nn.functional.sigmoid(z).flatten().unsqueeze(1)[:, 0], "sigmoid"),
        (lambda z: z.softmax(1).double(), "softmax"),
        (lambda z: z.log_softmax(1), "logsoftmax"),
        (lambda z: z.sigmoid() * 2 - 1, "sub"),
        (lambda z: z.detach(), ""),
    ],
)
def test_the_last_operation_is_found(output, name):
    assert last_operation(output(torch.randn(4, 3, requires_grad=True)).grad_fn) == name


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Net(), r"cannot predict 2 samples of shape \(5,\) of the test set, though it can \(4,\) of training, by forward"),
        (Wide(), r"gives \(4,\) outputs for training inputs of shape \(4,\), but \(5,\) for test inputs of shape \(5,\)"),
    ],
)
def test_test_inputs_of_another_shape_are_refused(net, message):
    train, test = samples(), TensorSamples(torch.randn(7, 5), torch.arange(7) % 3)
    check_predictions(net, train, 3, train)
    with pytest.raises(ConfigurationError, match=message) as refused:
        check_predictions(net, train, 3, test)
    assert "\n" not in str(refused.value)


def test_checking_leaves_the_module_as_it_was():
    class Counts(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.frozen = nn.Dropout().eval()

        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            self.seen += len(x)
            return super().forward(x)

    net = Counts()
    check(net)
    assert net.seen == 0
    assert net.training
    assert not net.frozen.training
    assert net.layer.weight.grad is None


def test_a_dict_without_its_axis_is_refused():
    class Own(Net):
        def predict_step(self, batch, batch_idx):
            return self.layer(batch["x"]).squeeze()

    class Dicts(TensorSamples):
        def batch(self, indices, generator=None) -> Any:  # pyrefly: ignore[bad-override]
            return dict(zip(("x", "y"), super().batch(indices, generator), strict=True))

    plain = samples()
    with pytest.raises(ConfigurationError, match=r"of shape \(3,\) for one, as may stand at the end.*keep the batch's axis"):
        check(Own(), Dicts(plain.inputs, plain.targets))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_a_model_that_predicts_only_infinities_is_refused_before_training(value):
    samples = TensorSamples(torch.randn(4, 4), torch.arange(4) % 3)
    with pytest.raises(ConfigurationError, match="predicts infinite logits, among which no class is ahead, for the first 2"):
        check_predictions(Net(lambda z: z * 0 + value), samples, 3)
