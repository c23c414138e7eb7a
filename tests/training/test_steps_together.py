"""Recorded steps that are taken together, several in one call: the same bits as one after the other."""

from typing import Any

import numpy as np
import pytest
import torch
from recorded_clients import Net, assert_same, samples, trained
from torch import Tensor, nn
from torch.optim import SGD

from fl_lightning.data import TensorSamples
from fl_lightning.models import Classifier
from fl_lightning.models.dropout import MOST, ByteDropout
from fl_lightning.training import recorded_steps
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recorded_steps import RecordedSteps
from fl_lightning.training.recordings import ScriptRecording
from fl_lightning.updates.layout import Snapshot


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each replay takes of a client."""
    found: list[int] = []
    real = ScriptRecording.replay

    def replay(self: Any, states: Any, batches: list[list[list[Tensor]]], logs: Any) -> None:
        found.append(len(batches[0]))
        real(self, states, batches, logs)

    monkeypatch.setattr(ScriptRecording, "replay", replay)
    return found


def without_dropout() -> Net:
    torch.manual_seed(0)
    module = Net()
    module.net[3] = nn.Identity()
    return module


def test_steps_that_draw_nothing_are_taken_together(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    data = [samples(n, seed=n) for n in (40, 40, 43, 48)]
    assert_same(without_dropout(), LocalTraining(batch_size=8), data)
    assert calls == [1, 1, 5, 5, 6]  # the first 3 of all are unrecorded, as is a rest of 3; recording replays its own batch
    calls.clear()
    monkeypatch.setattr(recorded_steps, "WAITING_BYTES", 2 * 8 * (6 * 4 + 8))
    assert_same(without_dropout(), LocalTraining(batch_size=8), data)
    assert max(calls) == 2


class Shaken(TensorSamples):
    """Samples that draw from the global generator as they are read."""

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        inputs, targets = super().batch(indices, generator)
        return inputs + torch.randn_like(inputs), targets


def shaken(inputs: Tensor) -> Tensor:
    return inputs + torch.randn_like(inputs)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.3), ByteDropout(0.25)])
def test_steps_with_dropout_are_taken_together_unless_others_draw_as_well(calls: list[int], dropout: nn.Module) -> None:
    module, local = without_dropout(), LocalTraining(batch_size=8)
    module.net[3] = dropout
    data = [samples(n, seed=n) for n in (40, 40, 43, 48)]
    stepper = assert_same(module, local, data)
    assert calls == [1, 1, 5, 5, 6]
    replayed: Any = next(iter(stepper.recordings.values()))
    assert isinstance(replayed.run.steps, torch.jit.ScriptFunction), "replayed in Python"
    drawing: list[list[TensorSamples]] = [
        [Shaken(of.inputs, of.targets) for of in data],
        [TensorSamples(of.inputs, of.targets, prepare=shaken) for of in data],
    ]
    for others in drawing:
        calls.clear()
        assert_same(module, local, others)
        assert set(calls) == {1}
    calls.clear()
    module.configure = lambda m: (
        [optimizer := SGD(m.parameters(), lr=0.1)],
        [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1 + 0 * torch.rand(()).item())}],
    )
    assert_same(module, LocalTraining(batch_size=8, epochs=2), data)  # a scheduler that draws, whatever for
    assert set(calls) == {1}


def test_masks_are_drawn_step_by_step_as_by_hand() -> None:
    """SGD on a linear layer behind dropout, written out."""

    class Linear(Classifier):
        def __init__(self) -> None:
            super().__init__(optimizer=lambda parameters: SGD(parameters, lr=0.5))
            self.drop, self.layer = ByteDropout(0.5), nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(self.drop(inputs))

    torch.manual_seed(0)
    module, local, data = Linear(), LocalTraining(batch_size=8), samples(64)
    stepper, start = RecordedSteps(module, local), Snapshot(module)
    trained(module, local, [data], stepper)
    assert all(getattr(recording, "draws", False) for recording in stepper.recordings.values())
    ((found, _),) = trained(module, local, [data], stepper)  # eight steps in one call
    weight, bias = (tensor.double().numpy() for tensor in start.tensors)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for batch in order.split(8):
        drawn = torch.randint(-MOST, MOST, (6,)).numpy().view(np.uint8)  # 48 bytes for 8 x 6 numbers
        x = np.where(drawn.reshape(8, 6) >= 128, 2.0, 0.0) * data.inputs[batch].double().numpy()
        exponents = np.exp(x @ weight.T + bias)
        wrong = exponents / exponents.sum(1, keepdims=True) - np.eye(3)[data.targets[batch].numpy()]
        weight, bias = weight - 0.5 * wrong.T @ x / 8, bias - 0.5 * wrong.mean(0)
    # Eight float32 steps on numbers of about 1, each of some tens of roundings of 6e-8.
    np.testing.assert_allclose(found[0].numpy(), weight, rtol=0, atol=3e-5)
    np.testing.assert_allclose(found[1].numpy(), bias, rtol=0, atol=3e-5)


def test_steps_do_not_wait_beyond_what_looks_at_weights(calls: list[int]) -> None:
    module, seen = without_dropout(), []

    def look(step: int, steps: int) -> None:
        seen.append(module.average.item())

    assert_same(module, LocalTraining(batch_size=8), [samples(40, seed=1)] * 3, after_step=look)
    assert set(calls) == {1}
    assert seen[:15] == seen[15:]


def test_what_a_failed_client_left_waiting_is_forgotten() -> None:
    class Fails(TensorSamples):
        def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Any:
            if len(indices) < 8:
                raise OSError("gone")
            return super().batch(indices, generator)

    module, local = without_dropout(), LocalTraining(batch_size=8)
    stepper, start, data = RecordedSteps(module, local), Snapshot(module), samples(40, seed=1)
    expected = trained(module, local, [data], None)
    trained(module, local, [data], stepper)
    with pytest.raises(OSError, match="gone"):
        trained(module, local, [Fails(torch.zeros(20, 6), torch.zeros(20).long())], stepper)
    start.restore(module)
    found = trained(module, local, [data], stepper)
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], expected[0][0], strict=True))
