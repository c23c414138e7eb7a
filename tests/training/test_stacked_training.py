"""Stacked training against `LocalTraining.train` on the same seeds."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacked_clients import CLASSES, FEATURES, Client, assert_refused, rng, state, tables
from torch import Tensor, nn, optim

from fl_lightning.data import MapSamples, TensorSamples
from fl_lightning.data.base import Samples
from fl_lightning.models import CNN, MLP
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.stacked_training import StackedTraining

RAGGED = [20, 0, 130, 5, 64, 66, 2, 64]

FLOAT32, FLOAT64 = 1e-4, 1e-10
"""Of an update's norm, by how much the order of additions, which is the CPU's, may put off some tens of steps.

BatchNorm on two samples multiplies the rounding of its inputs, 2^-24 of their size, by up to 1/sqrt(eps) = 316: 2e-5 a step, of
which a client here takes three, in both ways. In float64 that is 2^29 times less, 2e-13, and a fault stands out.
"""
Result = tuple[dict[str, Tensor], dict[str, float]]


def one_by_one(client: L.LightningModule, local: LocalTraining, data: Sequence[Samples]) -> list[Result]:
    results = []
    for i, samples in enumerate(data):
        trained = copy.deepcopy(client)
        logs = local.train(trained, samples, rng(i))
        results.append((state(trained), logs))
    return results


def together(client: L.LightningModule, local: LocalTraining, data: Sequence[Samples], first: int = 0) -> list[Result]:
    trained = copy.deepcopy(client)
    stacked = StackedTraining(trained, local)
    results: list[Result] = []
    for i, logs in stacked.train([(samples, rng(first + k)) for k, samples in enumerate(data)]):
        assert i == len(results)
        results.append((state(trained), logs))
    return results


def check_equal(client: nn.Module, found: list[Result], expected: list[Result], tolerance: float = FLOAT32) -> None:
    """Updates of parameters and of buffers differ by at most `tolerance` of their norm, integers and logs' names not at all."""
    before = state(client)
    assert len(found) == len(expected)
    for (of_found, logs), (of_expected, expected_logs) in zip(found, expected, strict=True):
        floating = [name for name in before if before[name].is_floating_point()]
        for group in (
            [name for name, _ in client.named_parameters()],
            [name for name, _ in client.named_buffers() if name in floating],
        ):
            error = sum(float((of_found[name] - of_expected[name]).square().sum()) for name in group) ** 0.5
            moved = sum(float((of_expected[name] - before[name]).square().sum()) for name in group) ** 0.5
            assert error <= tolerance * moved, (error, moved)
        assert all(torch.equal(of_found[name], of_expected[name]) for name in before if name not in floating)
        assert logs == pytest.approx(expected_logs, rel=max(tolerance, FLOAT32))  # logs are float32 in any case


def in_float64(samples: Samples) -> Samples:
    if isinstance(samples, TensorSamples):
        return samples.with_inputs(samples.inputs.double())
    assert isinstance(samples, MapSamples)
    wide = copy.copy(samples)
    wide.collate_fn = lambda listed: {
        name: value.double() if value.is_floating_point() else value for name, value in samples.collate_fn(listed).items()
    }
    return wide


def check(client: L.LightningModule, local: LocalTraining, data: Sequence[Samples], tolerance: float = FLOAT32) -> list[Result]:
    """Both ways agree to rounding: in float64, where a fault stands out, and in float32, as users train."""
    if local.precision == "32":
        wide, wide_data = copy.deepcopy(client).double(), [in_float64(samples) for samples in data]
        check_equal(wide, together(wide, local, wide_data), one_by_one(wide, local, wide_data), tolerance * FLOAT64 / FLOAT32)
    found = together(client, local, data)
    check_equal(client, found, one_by_one(client, local, data), tolerance)
    return found


@pytest.mark.parametrize("epochs", [0.3, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_ragged_clients(epochs, batch_size):
    torch.manual_seed(0)
    if batch_size > 1:
        client = Client(nn.BatchNorm1d(17))
        check(client, LocalTraining(epochs=epochs, batch_size=batch_size), tables(RAGGED))
    else:
        check(Client(), LocalTraining(epochs=epochs, batch_size=batch_size), tables([20, 0, 5, 1, 20]))


def test_an_empty_client_and_no_client():
    client = Client(nn.BatchNorm1d(17))
    (only,) = together(client, LocalTraining(), tables([0]))
    assert all(torch.equal(tensor, only[0][name]) for name, tensor in state(client).items())
    assert only[1] == {}
    assert together(client, LocalTraining(), []) == []


def test_the_packages_own_networks():
    local = LocalTraining(epochs=1.5, batch_size=16)
    check(MLP(sizes=[FEATURES, 16, 32, CLASSES]), local, tables([40, 70, 3]))
    images = [TensorSamples(torch.randn(n, 1, 8, 8, generator=rng(n)), torch.arange(n) % 10) for n in (40, 3, 70)]
    check(CNN(in_channels=1, image_size=8, channels=[4, 8], hidden=16), local, images)


@pytest.mark.parametrize(
    ("configure", "tolerance"),
    [
        (lambda self: optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2), FLOAT32),
        (lambda self: optim.SGD(self.parameters(), lr=0.05, momentum=0.9, dampening=0.5), FLOAT32),
        (lambda self: optim.Adam(self.parameters(), lr=1e-2, weight_decay=1e-3), 1e-3),
        (lambda self: optim.Adam(self.parameters(), lr=1e-2, amsgrad=True), 1e-3),
        (lambda self: optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1), 1e-3),
        (lambda self: optim.NAdam(self.parameters(), lr=1e-2), 1e-3),
        (lambda self: optim.RAdam(self.parameters(), lr=1e-2), 1e-3),
        (lambda self: optim.RMSprop(self.parameters(), lr=1e-3, momentum=0.5, centered=True), 1e-3),
        (lambda self: optim.Adagrad(self.parameters(), lr=1e-2, initial_accumulator_value=0.1), 1e-3),
        (lambda self: optim.Adadelta(self.parameters()), 1e-3),
        (lambda self: optim.Adamax(self.parameters(), lr=1e-2), 1e-3),
    ],
)
def test_optimizers(configure, tolerance):
    torch.manual_seed(1)
    check(Client(configure=configure), LocalTraining(epochs=1.5, batch_size=8), tables(RAGGED), tolerance)


def test_groups_with_options_of_their_own():
    def configure(self):
        first, last = self.first, self.last
        return optim.AdamW(
            [{"params": first.parameters(), "lr": 1e-3}, {"params": last.parameters(), "weight_decay": 0.5}], lr=1e-2
        )

    check(Client(configure=configure), LocalTraining(batch_size=8), tables([30, 9]), 1e-3)


def test_frozen_and_unused_parameters_stay():
    class Part(Client):
        def __init__(self):
            super().__init__(configure=lambda self: optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.5))
            self.unused = nn.Parameter(torch.ones(4))
            self.first.bias.requires_grad_(False)

    client = Part()
    for trained, _ in check(client, LocalTraining(batch_size=8), tables([30, 9]), 1e-3):
        assert torch.equal(trained["unused"], torch.ones(4))  # neither does weight decay move it
        assert torch.equal(trained["first.bias"], client.first.bias)


def test_gradients_are_clipped_for_each_client():
    local = LocalTraining(epochs=1.5, batch_size=8, gradient_clip_norm=0.1)
    client = Client()
    client.scale = nn.Parameter(torch.ones(()))
    client.after = lambda self, loss: loss * self.scale
    found = check(client, local, tables(RAGGED))
    unclipped = together(client, LocalTraining(epochs=1.5, batch_size=8), tables(RAGGED))
    assert (found[2][0]["first.weight"] - unclipped[2][0]["first.weight"]).norm() > 0.01


def test_bf16():
    torch.manual_seed(0)
    client = Client()

    def watch(self, loss):
        assert (self.first.weight @ torch.ones(FEATURES, 2)).dtype == torch.bfloat16
        return loss

    client.after = watch
    found = check(client, LocalTraining(epochs=1.5, batch_size=8, precision="bf16"), tables(RAGGED), 0.05)
    assert all(tensor.dtype == torch.float32 for tensor in found[0][0].values())


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("epochs", [1.0, 2.5])
def test_schedulers(interval, epochs, recwarn):
    def configure(self):
        optimizer = optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    local = LocalTraining(epochs=epochs, batch_size=8)
    client = Client(configure=configure)
    ends_agree = interval == "step" or epochs <= 1
    check(client, local, tables([30, 2, 0, 17] if ends_agree else [30, 0, 26, 27]))
    if not ends_agree:
        assert_refused(client, "ends of epochs", epochs=epochs)
    assert not [str(warning.message) for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_logs_and_dicts():
    def log(self, loss):
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"number": 0.1, "twice": loss})
        self.log("twice", 2 * loss)
        return {"loss": loss, "more": "not a tensor"}

    found = check(Client(after=log), LocalTraining(epochs=1.5, batch_size=8), tables(RAGGED))
    assert set(found[0][1]) == {"loss", "number", "twice"}
    assert found[1][1] == {}


def test_logs_of_some_steps_alone():
    class Seldom(Client):
        def training_step(self, batch, batch_idx):
            if batch_idx % 2:
                self.log("step", float(batch_idx))
            return super().training_step(batch, batch_idx)

    found = check(Seldom(), LocalTraining(batch_size=8), tables([40, 17, 4]))
    assert [logs for _, logs in found] == [{"step": 2.0}, {"step": 1.0}, {}]


def test_a_step_that_takes_no_number_and_data_in_dicts():
    class Named(Client):
        def training_step(self, batch):  # type: ignore[override]
            return super().training_step((batch["x"], batch["label"]), 0)

    data = tables([20, 9])
    listed = [
        MapSamples([{"x": x[0], "label": int(x[1])} for x in (samples[i] for i in range(len(samples)))]) for samples in data
    ]
    check(Named(), LocalTraining(batch_size=8), listed)


def test_augmentation_draws_as_before():
    def noise(inputs, generator):
        return inputs + torch.randn(inputs.shape, generator=generator)

    check(Client(), LocalTraining(epochs=2, batch_size=8), tables([20, 40, 3], augment=noise))


def test_buffers_that_are_replaced_and_parts_with_two_names():
    class Counts(Client):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
            self.register_buffer("mean", torch.zeros(FEATURES), persistent=False)
            self.again = self.first

        def training_step(self, batch, batch_idx):
            self.seen = self.seen + len(batch[0])
            self.mean = 0.5 * self.mean + batch[0].mean(0)
            return super().training_step(batch, batch_idx) + self.again.weight.square().sum()

    found = check(Counts(), LocalTraining(batch_size=8), tables([20, 9]))
    assert [int(trained["seen"]) for trained, _ in found] == [20, 9]


def test_weights_that_two_parts_share():
    class Tied(Client):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(FEATURES, 17)
            self.other.weight = self.first.weight

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.other(batch[0]).square().mean()

    check(Tied(), LocalTraining(batch_size=8), tables([20, 9]))


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.sets(st.integers(1, 5)),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.sampled_from([4, 8, 16]),
)
def test_how_clients_are_split_into_stacks_does_not_matter(sizes, cuts, epochs, batch_size):
    torch.manual_seed(0)
    client, local, data = Client(), LocalTraining(epochs=epochs, batch_size=batch_size), tables(sizes)
    edges = [0, *sorted(cut for cut in cuts if cut < len(sizes)), len(sizes)]
    split = [result for a, b in pairwise(edges) for result in together(client, local, data[a:b], first=a)]
    check_equal(client, split, together(client, local, data))


def test_one_object_trains_round_after_round():
    client, local, data = Client(nn.BatchNorm1d(17)), LocalTraining(batch_size=8), tables([20, 33])
    stacked = StackedTraining(client, local)
    for _ in range(2):  # from whatever the module holds
        expected, before = one_by_one(client, local, data), copy.deepcopy(client)
        found = [(state(client), logs) for _, logs in stacked.train([(samples, rng(i)) for i, samples in enumerate(data)])]
        check_equal(before, found, expected)
    assert client.training
    assert "log" not in vars(client)
