import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_lightning.data import MapSamples, TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.training.batches import epoch_batches
from fl_lightning.training.client_steps import read_loss
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.optimizers import configured, read_optimizers

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(n: int = 20) -> TensorSamples:
    inputs = torch.randn(n, 4, generator=rng(9))
    return TensorSamples(inputs, (inputs[:, 0] > 0).long())


class Client(L.LightningModule):
    """Remembers what it was shown."""

    def __init__(self, output: str = "tensor", configure=None) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.optimizer: Any = None
        self.output, self.configure = output, configure
        self.seen: list[int] = []
        self.lrs: list[float] = []
        self.accuracy = torchmetrics.MeanMetric()

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        self.seen.append(len(targets))
        loss = nn.functional.cross_entropy(self(inputs), targets)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"step": float(batch_idx)})
        self.accuracy.update(1.0)
        self.log("metric", self.accuracy)
        if self.output == "skip":
            return None
        return {"loss": loss, "more": 1} if self.output == "dict" else loss

    def configure_optimizers(self):
        if self.configure is not None:
            return self.configure(self)
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TestBatches:
    @settings(max_examples=80, deadline=None)
    @given(st.integers(1, 200), st.sampled_from([0.1, 0.5, 1.0, 1.3, 2.0, 3.0]), st.integers(1, 70))
    def test_epochs_cover_the_data_without_repeats(self, n, epochs, batch_size):
        passes = list(epoch_batches(n, epochs, batch_size, rng(), CPU))
        assert len(passes) == math.ceil(epochs)
        for i, (order, sizes) in enumerate(passes):
            indices = order[: sum(sizes)].tolist()
            assert len(indices) == len(set(indices))
            assert all(0 <= index < n for index in indices)
            part = epochs - i
            if part >= 1:
                assert len(indices) == n
            else:
                least = math.ceil(round(part * n / batch_size, 6))
                assert len(sizes) in (least, least - 1)  # one less where a single sample was joined
                assert sizes
            if batch_size == 1:
                assert set(sizes) == {1}
            elif n > 1:
                assert min(sizes) > 1

    def test_a_tenth_of_an_epoch_is_a_tenth_of_the_batches(self):
        ((_, sizes),) = epoch_batches(500, 0.1, 64, rng(), CPU)
        assert sizes == [64]
        ((_, sizes),) = epoch_batches(2000, 0.1, 64, rng(), CPU)
        assert len(sizes) == 4  # ceil(200 / 64)

    def test_every_epoch_is_shuffled_anew(self):
        (first, _), (second, _) = epoch_batches(50, 2, 64, rng(), CPU)
        assert first.tolist() != second.tolist()

    def test_a_lone_last_sample_joins_the_batch_before(self):
        ((_, sizes),) = epoch_batches(65, 1, 32, rng(), CPU)
        assert sizes == [32, 33]


@pytest.mark.parametrize("output", ["tensor", "dict"])
def test_matches_a_hand_written_loop(output):
    client, data = Client(output), samples()
    weight, bias = client.layer.weight.detach().clone(), client.layer.bias.detach().clone()
    LocalTraining(epochs=2, batch_size=8).train(client, data, rng(3))

    weight.requires_grad_(), bias.requires_grad_()
    draws = rng(3)
    for _ in range(2):
        for indices in torch.randperm(20, generator=draws).split(8):
            loss = nn.functional.cross_entropy(data.inputs[indices] @ weight.T + bias, data.targets[indices])
            grads = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                weight -= 0.1 * grads[0]
                bias -= 0.1 * grads[1]
    torch.testing.assert_close(client.layer.weight, weight)
    torch.testing.assert_close(client.layer.bias, bias)
    assert all(p.grad is None for p in client.parameters())


def test_a_skipped_batch_changes_nothing():
    client = Client("skip")
    before = client.layer.weight.detach().clone()
    LocalTraining(batch_size=8).train(client, samples(), rng())
    assert torch.equal(client.layer.weight, before)
    assert client.seen == [8, 8, 4]


def test_logs_are_averaged_over_steps_and_metrics_start_afresh():
    client = Client()
    for _ in range(2):
        logs = LocalTraining(batch_size=8).train(client, samples(), rng())
        assert logs["step"] == 1.0  # of 0, 1, 2
        assert logs["metric"] == 1.0
        assert client.accuracy.update_count == 3
        assert 0 < logs["loss"] < 3
    assert "log" not in client.__dict__


def test_what_a_step_raises_leaves_the_log_method_as_it_was():
    client = Client(configure=lambda self: torch.optim.SGD(self.parameters(), lr=0.1))
    with pytest.raises(IndexError):
        LocalTraining().train(client, TensorSamples(torch.zeros(4, 4), torch.full((4,), 7)), rng())
    assert "log" not in client.__dict__


def schedule(interval: str, frequency: int):
    def configure(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        self.optimizer = optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": interval, "frequency": frequency},
        }

    return configure


@pytest.mark.parametrize(
    ("interval", "frequency", "expected"), [("step", 1, 0.5**6), ("step", 2, 0.5**2), ("epoch", 1, 0.25), ("epoch", 2, 0.5)]
)
def test_schedulers_step_as_configured(interval, frequency, expected):
    client = Client(configure=schedule(interval, frequency))
    LocalTraining(epochs=2, batch_size=8).train(client, samples(), rng())
    assert client.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def sgd(self):
    return torch.optim.SGD(self.parameters(), lr=0.1)


def step_lr(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


@pytest.mark.parametrize(
    ("configure", "scheduled"),
    [
        (sgd, False),
        (lambda self: [sgd(self)], False),
        (lambda self: {"optimizer": sgd(self)}, False),
        (lambda self: [{"optimizer": sgd(self)}], False),
        (lambda self: ([o := sgd(self)], [step_lr(o)]), True),
        (lambda self: ([o := sgd(self)], [{"scheduler": step_lr(o), "interval": "step"}]), True),
        (lambda self: {"optimizer": (o := sgd(self)), "lr_scheduler": step_lr(o)}, True),
    ],
)
def test_every_form_of_configure_optimizers_is_read(configure, scheduled):
    optimizer, scheduler = read_optimizers(configure(Client()))
    assert isinstance(optimizer, torch.optim.SGD)
    assert (scheduler.scheduler is not None) == scheduled


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda self: [sgd(self), sgd(self)], r"exactly one optimizer, but its configure_optimizers gives 2: \['SGD', 'SGD'\]"),
        (lambda _: None, "exactly one optimizer"),
        (lambda self: ([o := sgd(self)], [step_lr(o), step_lr(o)]), "one learning-rate scheduler, got 2"),
        (
            lambda self: {
                "optimizer": (o := sgd(self)),
                "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(o), "monitor": "x"},
            },
            "ReduceLROnPlateau",
        ),
    ],
)
def test_optimizers_that_cannot_work_are_refused(configure, message):
    with pytest.raises(ConfigurationError, match=message):
        read_optimizers(configure(Client()))


def test_an_output_without_a_loss_is_refused():
    with pytest.raises(ConfigurationError, match="got dict"):
        read_loss({"not the loss": torch.zeros(())})
    with pytest.raises(ConfigurationError, match="got float"):
        read_loss(0.5)


def test_gradients_are_clipped():
    client, plain = Client(), Client()
    plain.load_state_dict(client.state_dict())
    before = client.layer.weight.detach().clone()
    LocalTraining(batch_size=64, gradient_clip_norm=1e-3).train(client, samples(), rng())
    LocalTraining(batch_size=64).train(plain, samples(), rng())
    moved = (client.layer.weight - before).norm()
    assert 0 < moved <= 1.001e-4  # learning rate .1 times the norm
    assert (plain.layer.weight - before).norm() > 10 * moved


def test_clients_train_in_training_mode_whatever_mode_the_module_is_in():
    class Watch(Client):
        def training_step(self, batch, batch_idx):
            self.modes = [part.training for part in self.modules()]
            return super().training_step(batch, batch_idx)

    client = Watch()
    client.layer.eval()
    LocalTraining().train(client, samples(), rng())
    assert all(client.modes)


def test_bf16_is_used_inside_the_step_alone():
    class Watch(Client):
        def training_step(self, batch, batch_idx):
            self.dtype_inside = self(batch[0]).dtype
            return super().training_step(batch, batch_idx)

    client = Watch()
    LocalTraining(precision="bf16").train(client, samples(), rng())
    assert client.dtype_inside == torch.bfloat16
    assert client.layer.weight.dtype == torch.float32
    LocalTraining().train(client, samples(), rng())
    assert client.dtype_inside == torch.float32


def test_after_step_follows_every_optimizer_step():
    calls = []
    LocalTraining(epochs=2, batch_size=8).train(Client(), samples(), rng(), after_step=lambda *step: calls.append(step))
    assert calls == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_after_step_sees_the_last_batch_even_if_it_was_skipped():
    class Skips(Client):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx == 0 else None

    calls = []
    LocalTraining(epochs=1, batch_size=8).train(Skips(), samples(), rng(), after_step=lambda *step: calls.append(step))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_a_number_of_steps_goes_before_the_number_of_epochs():
    local = LocalTraining(epochs=2, batch_size=8)
    assert local.num_steps(len(samples())) == 6
    for steps in (1, 6, 7, 20):
        calls: list[tuple[int, int]] = []
        local.train(Client(), samples(), rng(), after_step=lambda step, of, calls=calls: calls.append((step, of)), steps=steps)
        assert calls == [(step, steps) for step in range(1, steps + 1)]
    one, other = Client(), Client()
    other.load_state_dict(one.state_dict())
    local.train(one, samples(), rng())
    local.train(other, samples(), rng(), steps=6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_map_style_data_train_too():
    data = samples()
    listed = MapSamples([(data.inputs[i], int(data.targets[i])) for i in range(20)])
    one, other = Client(), Client()
    other.load_state_dict(one.state_dict())
    LocalTraining(batch_size=8).train(one, data, rng())
    LocalTraining(batch_size=8).train(other, listed, rng())
    assert torch.equal(one.layer.weight, other.layer.weight)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1e-06"),
        ({"epochs": float("inf")}, "epochs must be at most 100,000, got inf"),
        ({"epochs": 1e-10}, "epochs must be at least"),
        ({"precision": "16"}, "precision must be 32 or bf16"),
        ({"gradient_clip_norm": math.nan}, "gradient_clip_norm must be 0"),
        ({"epochs": "1"}, "model.local.epochs must be a number, got '1' of type str; give a float"),
        ({"epochs": None}, "epochs must be a number, got None"),
        ({"batch_size": "8"}, "batch_size must be a whole number, got '8' of type str; give an int"),
        ({"batch_size": 8.0}, "batch_size must be a whole number, got 8.0"),
        ({"gradient_clip_norm": "1"}, "gradient_clip_norm must be a number, got '1'"),
        ({"branches": 1.5}, "branches must be a whole number, got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"gradient_clip_norm": -1}, "gradient_clip_norm must be 0"),
    ],
)
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises(ConfigurationError, match=message):
        LocalTraining(**settings_)


def test_numbers_of_numpy_are_taken():
    local = LocalTraining(epochs=np.float32(0.5), batch_size=np.int64(8))  # type: ignore[arg-type]
    assert local == LocalTraining(epochs=0.5, batch_size=8)
    assert type(local.batch_size) is int


@pytest.mark.parametrize(
    ("precision", "supported", "warned"), [("bf16", False, True), ("bf16", True, False), ("32", False, False)]
)
def test_bf16_without_instructions_for_it_is_warned_of(precision, supported, warned, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    LocalTraining(precision=precision).warn_of_slow_precision(CPU)
    assert ("this CPU has no instructions for it" in caplog.text) is warned


def configured_as(lr_scheduler: Any, **more: Any) -> Any:
    return lambda self: {"optimizer": (o := sgd(self)), "lr_scheduler": lr_scheduler(o), **more}


class NoScheduler:
    def step(self): ...


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (
            configured_as(lambda o: {"scheduler": step_lr(o), "intervall": "step"}),
            "dict for the scheduler with the key 'intervall', which would do nothing; did you mean interval",
        ),
        (configured_as(step_lr, lr_schedulers=1), "dict for the optimizer with the key 'lr_schedulers'.*lr_scheduler"),
        (configured_as(lambda o: {"interval": "step"}), r"gives a dict with \['interval'\], which lacks the key 'scheduler'"),
        (lambda self: {"lr_scheduler": step_lr(sgd(self))}, "lacks the key 'optimizer'"),
        (configured_as(lambda o: {"scheduler": step_lr(o), "interval": "batch"}), "interval must be step or epoch"),
        (configured_as(lambda o: {"scheduler": step_lr(o), "frequency": 0.5}), "frequency at least 1"),
        (configured_as(lambda o: None), "gives NoneType as a learning-rate scheduler, which cannot step"),
        (lambda self: ([sgd(self)], [step_lr(sgd(self))]), "the scheduler StepLR was made for another optimizer"),
        (configured_as(lambda o: NoScheduler()), "NoScheduler of the client Client is not one of PyTorch's kind"),
    ],
)
def test_what_configure_optimizers_says_in_vain_is_refused(configure, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        configured(Client(configure=configure))
    assert "\n" not in str(raised.value)
