"""What clients log, however their steps are taken."""

import pytest
import torch
from tiny import tiny_tensors

from fl_lightning import LocalTraining
from fl_lightning.models import CNN, LSTM, MLP, Classifier
from fl_lightning.training.client_logs import LogCollector, log_together


def test_numbers_on_a_cpu_are_added_as_numbers_and_do_not_follow_their_tensors():
    logs, value = LogCollector(), torch.tensor(0.1)
    for _ in range(3):
        logs.log("x", value)
        value += 1
    assert logs.averages()["x"] == sum(torch.tensor(v, dtype=torch.float32).item() for v in (0.1, 1.1, 2.1)) / 3
    assert not logs.plain_numbers
    logs.log("y", 1)
    assert logs.plain_numbers


def test_clients_together_log_what_each_alone_would():
    """As on a GPU, where values stay tensors, and those of the next step are written over those of the last."""
    together, alone = ([LogCollector(traced=True) for _ in range(3)] for _ in range(2))
    places = [torch.zeros(()) for _ in range(3)]
    draws = torch.Generator().manual_seed(0)
    for step in range(5):
        for place in places:
            place.copy_(torch.randn((), generator=draws))
        who = [0, 1, 2] if step else [0, 2]  # one begins later
        log_together([together[i] for i in who], "loss", [places[i] for i in who])
        for i in who:
            alone[i].log("loss", places[i].clone())
    assert [logs.averages() for logs in together] == [logs.averages() for logs in alone]
    assert [logs.counts["loss"] for logs in together] == [5, 4, 5]
    log_together(together, "count", [torch.tensor(1)] * 3)
    log_together(together, "count", [torch.tensor(0.5)] * 3)  # of another type, so not in place
    assert together[0].averages()["count"] == 0.75


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (lambda: MLP(sizes=[6, 3]), tiny_tensors(8).inputs),
        (lambda: CNN(in_channels=1, image_size=8, channels=(4, 4), hidden=8, num_classes=3), torch.zeros(8, 1, 8, 8)),
        (lambda: LSTM(dimension=4, hidden=4, num_layers=1, num_logits=1), torch.ones(8, 6, 5)),
    ],
)
def test_networks_of_the_package_log_their_loss(model, inputs):
    torch.manual_seed(0)
    client: Classifier = model()
    samples = type(tiny_tensors(8))(inputs, torch.tensor([0, 1] * 4))
    with torch.no_grad():
        expected = client.training_step((samples.inputs, samples.targets), 0).item()
    logs = LocalTraining(batch_size=8).train(client, samples, torch.Generator().manual_seed(0))
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
