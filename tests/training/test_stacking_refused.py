"""Clients that no stack trains, and why."""

import random

import pytest
import torch
import torchmetrics
from stacked_clients import FEATURES, Client, assert_refused, sgd, table, tables
from torch import nn, optim

from fl_lightning.data import MapSamples, TensorSamples
from fl_lightning.models import LSTM
from fl_lightning.models.dropout import ByteDropout


def test_what_draws_at_random_is_refused():
    assert_refused(Client(nn.Dropout(0.5)), "draws random numbers")
    assert_refused(Client(ByteDropout(0.5)), "draws random numbers")
    assert_refused(Client(after=lambda _, loss: loss * random.random()), "global random generators")

    class Noisy(MapSamples):
        def batch(self, indices, generator=None):
            inputs, targets = super().batch(indices, generator)
            return inputs + torch.randn(inputs.shape), targets

    assert_refused(Client(), "global random generators", [Noisy(table(20, seed=i)) for i in range(3)])


def test_an_lstm_is_refused():
    texts = [TensorSamples(torch.ones(n, 5, FEATURES + 1), torch.arange(n) % 2) for n in (20, 9, 16)]
    assert_refused(LSTM(dimension=FEATURES, hidden=5), "LSTM cannot .*aten::lstm", texts)


class WholeTensor(optim.SGD):
    pass


class Hooked(Client):
    def on_after_backward(self): ...


class Growing(Client):
    seen: list[int] = []  # noqa: RUF012  the mistake that is meant

    def training_step(self, batch, batch_idx):
        self.seen.append(1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (lambda: Client(configure=lambda self: WholeTensor(self.parameters(), lr=0.1)), "optimizer WholeTensor"),
        (lambda: Client(configure=lambda self: optim.Adafactor(self.parameters())), "optimizer Adafactor"),
        (lambda: Client(configure=lambda _: optim.SGD([nn.Parameter(torch.ones(1))])), "no parameters of the module"),
        (lambda: Client(configure=lambda self: [sgd(self), sgd(self)]), "exactly one optimizer"),
        (lambda: Client(after=lambda *_: None), "skips a batch"),
        (lambda: Client(after=lambda _, loss: loss if loss > 0 else 2 * loss), "data-dependent control flow"),
        (lambda: Client(after=lambda _, loss: loss * loss.item()), r"\.item\(\)"),
        (lambda: Client(after=lambda self, loss: self.log("metric", torchmetrics.MeanMetric()) or loss), "logs torchmetrics"),
        (lambda: Client(after=lambda self, loss: setattr(self, "seen", loss) or loss), "sets the attribute 'seen'"),
        (lambda: Client(after=lambda self, loss: loss * self.trainer.current_epoch), "the Trainer"),
        (lambda: Hooked(), "has hooks of its own, which are called for one client at a time: on_after_backward"),
        (lambda: Growing(), "its training_step changes Growing.seen, which would be one for all clients"),
        (lambda: Client(after=lambda *_: "loss"), "got str"),
    ],
)
def test_other_refusals(client, reason):
    assert_refused(client(), reason)


def test_a_metric_inside_is_refused():
    client = Client()
    client.accuracy = torchmetrics.MeanMetric()
    assert_refused(client, "holds torchmetrics")


def test_parameters_used_behind_the_modules_back_are_refused():
    client = Client()
    hidden = [client.first.weight]
    client.after = lambda _, loss: loss + hidden[0].square().sum()
    assert_refused(client, "other ways than as attributes")


def test_hooks_are_refused():
    client = Client()
    client.first.weight.register_hook(lambda gradient: 2 * gradient)
    assert_refused(client, "hooks")


def test_an_update_in_place_of_what_is_shared_is_refused():
    client = Client()
    client.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
    client.after = lambda self, loss: self.frozen.add_(loss.detach()) + loss
    assert_refused(client, "shape")


def test_data_that_cannot_be_stacked_are_refused():
    wide = TensorSamples(torch.zeros(20, 1, FEATURES), torch.zeros(20).long())
    assert_refused(Client(), "different shapes, types or names", [table(20), wide, table(16)])
    words = [MapSamples([("text", 0)] * 20) for _ in range(3)]
    assert_refused(Client(), "something else than tensors", words)
    mixed = [MapSamples([({"x": torch.zeros(FEATURES), str(i): 1}, 0)] * 20) for i in range(3)]
    assert_refused(Client(), "different shapes, types or names", mixed)


def test_errors_of_the_user_are_the_reason():
    assert_refused(Client(nn.BatchNorm1d(17)), "more than 1 value per channel", tables([1, 9, 16]))
