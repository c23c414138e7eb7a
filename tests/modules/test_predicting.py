import itertools
from typing import Any

import pytest
import torch
from told_outputs import Net

from fl_lightning.data import TensorSamples
from fl_lightning.modules.predicting import class_probabilities, predict, predicted_classes


def samples(n: int) -> TensorSamples:
    return TensorSamples(torch.randn(n, 4, generator=torch.Generator().manual_seed(1)), torch.arange(n) % 3)


@pytest.mark.parametrize(
    "arguments",
    ["batch", "batch, batch_idx", "batch, batch_idx, dataloader_idx", "batch, *rest", "batch, **rest", "batch, a, b, *c"],
)
def test_predict_step_is_given_what_it_takes(arguments):
    methods: dict[str, Any] = {}
    exec(f"def predict_step(self, {arguments}): return self.layer(batch[0])", methods)
    net = type("Own", (Net,), {"predict_step": methods["predict_step"]})()
    batch = samples(5).batch(torch.arange(5))
    assert torch.equal(predict(net, batch), net.layer(batch[0]))


def test_a_batch_of_one_may_have_lost_its_axis():
    one, two = samples(9).batch(torch.arange(1)), samples(9).batch(torch.arange(2))
    for outputs in (1, 3):
        net = Net(torch.squeeze, outputs)
        assert torch.equal(predict(net, two), net.layer(two[0]).squeeze(1))
        expected = net.layer(one[0])  # a product of one row may be rounded otherwise than among others
        assert torch.equal(predict(net, one), expected if outputs > 1 else expected[0])


def test_classes_of_outputs():
    assert predicted_classes(torch.tensor([[0.1, 0.9, 0.0], [3.0, -torch.inf, 1.0]])).tolist() == [1, 0]
    assert predicted_classes(torch.tensor([[0.1], [-0.1], [0.0]])).tolist() == [1, 0, 0]
    assert predicted_classes(torch.tensor([0.1, torch.nan])).tolist() == [1, -1]
    assert predicted_classes(torch.tensor([[torch.nan, torch.nan], [1.0, 2.0]])).tolist() == [-1, 1]
    assert predicted_classes(torch.empty(0, 3)).tolist() == []


def test_probabilities_of_outputs():
    logits = torch.randn(6, 4)
    expected = logits.softmax(1)
    for outputs in (logits, logits.log_softmax(1), logits.softmax(1), logits.double()):
        torch.testing.assert_close(class_probabilities(outputs), expected)
    positive = torch.tensor([[0.2, 0.8], [0.5, 0.6]])  # only the first looks like probabilities
    torch.testing.assert_close(class_probabilities(positive), positive.softmax(1))


def test_a_row_in_which_no_class_is_ahead_has_no_prediction():
    """Against the definition, by hand: a class is predicted if softmax, in its limit, has one most likely class."""
    values = [-torch.inf, -1.0, 2.0, torch.inf, torch.nan]
    for row in itertools.product(values, repeat=3):
        if any(v != v for v in row) or all(v == -torch.inf for v in row) or sum(v == torch.inf for v in row) > 1:
            expected = -1
        else:
            expected = max(range(3), key=lambda c: (row[c], -c))
        assert predicted_classes(torch.tensor([row])).tolist() == [expected], row
