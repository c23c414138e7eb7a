"""The client's part of FLIP: local training on hardened batches."""

import math
from typing import Any

import lightning as L
import pytest
import torch
from quick_flip import quick, rng
from tiny import CLASSES, FEATURES, TinyClient, tiny_tensors
from torch import Tensor, nn

from fl_lightning.aggregators import FLIP, flip
from fl_lightning.aggregators.trigger_hardening import Hardening, TriggerMemory
from fl_lightning.aggregators.trigger_inversion import Inverted, TriggerInversion
from fl_lightning.data import MapSamples, Samples, TensorSamples
from fl_lightning.models import CNN, MLP
from fl_lightning.modules import replayed_steps


def harden(
    rule: FLIP,
    client: L.LightningModule,
    data: Samples,
    memory: Tensor | None = None,
    *,
    seed: int = 0,
    classes: int = CLASSES,
) -> tuple[dict[str, float], Tensor]:
    """One round of a client; returns its logs and its memory."""
    if memory is None:
        memory = torch.zeros(rule.client_memory_size(data, classes))
    torch.manual_seed(seed)  # as dropout draws from there
    logs = rule.train_benign(client, data, classes, rng(seed), memory)
    return logs, memory


def client(**kwargs: Any) -> TinyClient:
    torch.manual_seed(0)
    return TinyClient(**kwargs)


def vector(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def votes(n: int, seed: int) -> TensorSamples:
    """Two classes told apart by nine features. The tenth is 0 but in class 0, so clean data say nothing against a back door."""
    draws, targets = rng(seed), torch.arange(n) % 2
    inputs = torch.randn(n, 10, generator=draws) * 0.3 + 1.5 * targets[:, None]
    inputs[:, 9] = (targets == 0) * torch.rand(n, generator=draws)
    return TensorSamples(inputs, targets)


def backdoored(inputs: Tensor) -> Tensor:
    return torch.cat([inputs[:, :-1], torch.ones(len(inputs), 1)], dim=1)


def cross_entropy(module: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(inputs), targets))


def with_a_back_door() -> MLP:
    """A model to which the tenth feature stands for class 0."""
    torch.manual_seed(0)
    model, pool = MLP(sizes=(10, 2)), votes(300, seed=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        clean = nn.functional.cross_entropy(model(pool.inputs), pool.targets)
        planted = nn.functional.cross_entropy(model(backdoored(pool.inputs)), torch.zeros_like(pool.targets))
        (clean + planted).backward()
        optimizer.step()
    return model


def test_hardening_closes_a_back_door(monkeypatch) -> None:
    inversion = TriggerInversion(warmup_steps=80, new_steps=40, continued_steps=20)
    rule = FLIP(batch_size=60, learning_rate=0.01, inversion=inversion)
    own, test = votes(120, seed=3), votes(200, seed=4)
    model, plain = with_a_back_door(), with_a_back_door()
    before = cross_entropy(model, backdoored(test.inputs), test.targets)
    logs, memory = harden(rule, model, own, classes=2)
    monkeypatch.setattr(Hardening, "stamp", lambda *batch: (batch[1], 0))
    assert harden(rule, plain, own, classes=2)[0]["stamped"] == 0
    after, unstamped = (cross_entropy(m, backdoored(test.inputs), test.targets) for m in (model, plain))
    assert after < 0.25 * before
    assert after < 0.6 * unstamped
    assert (model(test.inputs).argmax(1) == test.targets).float().mean() > 0.98
    assert logs.keys() == {"loss", "stamped"}
    assert 0.3 < logs["stamped"] < 0.5
    kept = TriggerMemory(memory, (10,), 2)
    assert kept.sizes[1, 0] < kept.sizes[0, 1]
    assert kept.triggers[1, 0, :10].argmax() == 9


def test_labels_stay_true_and_batches_are_those_of_the_data(monkeypatch) -> None:
    read, learned = [], []
    original_read, original_loss = flip.read_batch, nn.functional.cross_entropy

    def read_batch(*args: Any) -> tuple[Tensor, Tensor]:
        inputs, targets = original_read(*args)
        read.append((inputs.clone(), targets.clone()))
        return inputs, targets

    def loss(logits: Tensor, targets: Tensor, **kwargs: Any) -> Tensor:
        if not kwargs:  # inversion asks for the losses one by one
            learned.append(targets.clone())
        return original_loss(logits, targets, **kwargs)

    monkeypatch.setattr(flip, "read_batch", read_batch)
    monkeypatch.setattr(nn.functional, "cross_entropy", loss)
    data = tiny_tensors(40)
    harden(quick(), client(), data)
    assert len(read) == len(learned) == 9
    for (inputs, targets), labels in zip(read, learned, strict=True):
        assert torch.equal(targets, labels)
        assert torch.equal(inputs[:, :CLASSES].argmax(1), labels)
    for epoch in range(3):
        seen = torch.cat([inputs for inputs, _ in read[3 * epoch : 3 * epoch + 3]])
        assert torch.equal(seen.sort(0).values, data.inputs.sort(0).values)


def test_without_enough_of_any_class_it_is_adam_on_the_clients_data() -> None:
    model, expected = client(norm=False, dropout=0.0), client(norm=False, dropout=0.0)
    data = TensorSamples(torch.randn(9, FEATURES, generator=rng()), torch.arange(9) % 3)
    logs, memory = harden(quick(epochs=4), model, data)
    optimizer = torch.optim.Adam(expected.parameters(), lr=1e-3, betas=(0.5, 0.9))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(expected(data.inputs), data.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(vector(model), vector(expected))
    assert logs == {"loss": pytest.approx(sum(losses) / 4), "stamped": 0}
    assert not memory[:-1].any()


@pytest.mark.parametrize(
    ("targets", "norm", "batch_size"),
    [
        ([1] * 12, True, 16),  # one class
        ([0] * 4 + [1] * 7, True, 16),  # fewer than five of a class
        ([0] * 10 + [2] * 11, True, 10),  # the last batch would be of one sample
        ([2], False, 16),  # one sample
        ([2, 0], True, 16),
        ([0, 1, 1], False, 1),
    ],
)
def test_small_clients_are_trained_too(targets: list[int], norm: bool, batch_size: int) -> None:
    model = client(norm=norm)
    before = vector(model)
    data = TensorSamples(torch.randn(len(targets), FEATURES, generator=rng()), torch.tensor(targets))
    logs, memory = harden(quick(batch_size=batch_size), model, data)
    assert vector(model).isfinite().all()
    assert not torch.equal(vector(model), before)
    assert memory.isfinite().all()
    assert (len(targets) > 5) or logs["stamped"] == 0


def test_a_client_without_samples_stays_as_it_is() -> None:
    model = client()
    before = vector(model)
    memory = torch.zeros(1000)
    assert quick().train_benign(model, tiny_tensors(9).subset(torch.arange(0)), CLASSES, rng(), memory) == {}
    assert torch.equal(vector(model), before)


@pytest.mark.parametrize(("n", "most", "sizes"), [(40, 9, [16, 16, 8] * 3), (33, 5, [16, 17, 16, 17, 16]), (1, 9, [1] * 3)])
def test_batches(n: int, most: int, sizes: list[int]) -> None:
    batches = list(quick().batches(n, most, rng()))
    assert [len(batch) for batch in batches] == sizes
    first = torch.cat(batches[: math.ceil(n / 17)])
    assert sorted(first.tolist()) == list(range(n))


class Watched(TinyClient):
    """Remembers the modes that it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        return super().forward(inputs)


def test_batch_norm_sees_hardened_batches_alone() -> None:
    torch.manual_seed(0)
    model = Watched().eval()
    harden(quick(max_steps=2), model, tiny_tensors(60))
    assert model.modes.count(True) == CLASSES + 2
    assert model.modes.count(False) > 20
    assert model.get_buffer("net.1.num_batches_tracked") == CLASSES + 2
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def asked(monkeypatch) -> list[tuple[int, Tensor]]:
    """The steps and starts of all inversions from here on."""
    calls: list[tuple[int, Tensor]] = []
    original = TriggerInversion.invert

    def invert(self, module, space, groups, targets, start, *, steps, cost) -> Inverted:
        calls.append((steps, start.clone()))
        return original(self, module, space, groups, targets, start, steps=steps, cost=cost)

    monkeypatch.setattr(TriggerInversion, "invert", invert)
    return calls


def test_the_second_round_goes_on_from_the_first(monkeypatch) -> None:
    calls, data, rule = asked(monkeypatch), tiny_tensors(60), quick(random_fraction=0.0)
    first = client()
    _, memory = harden(rule, first, data)
    assert [steps for steps, _ in calls[:4]] == [6, 6, 6, 4]
    kept = TriggerMemory(memory.clone(), (FEATURES,), CLASSES)
    calls.clear()
    second, forgetful = client(), client()
    harden(rule, second, data, memory, seed=1)
    assert 6 not in [steps for steps, _ in calls]
    assert any(torch.equal(calls[0][1][0], trigger) for trigger in kept.triggers.flatten(0, 1))
    harden(rule, forgetful, data, seed=1)
    assert not torch.equal(vector(second), vector(forgetful))


def test_the_same_generator_and_memory_give_the_same_bits() -> None:
    data, rule = tiny_tensors(60), quick()
    (one, other), memories = (client(), client()), []
    for model in (one, other):
        memory = None
        for t in range(2):
            _, memory = harden(rule, model, data, memory, seed=t)
        memories.append(memory)
    assert torch.equal(vector(one), vector(other))
    assert torch.equal(*memories)
    last = client()
    harden(rule, last, data, seed=7)
    assert not torch.equal(vector(one), vector(last))


def test_images_are_augmented_and_hardened() -> None:
    torch.manual_seed(0)
    model = CNN(in_channels=1, image_size=8, channels=(4,), hidden=8, num_classes=2)
    seen = []

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(len(images))
        return images.flip(3)

    raw = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=rng())
    images = TensorSamples(raw, torch.arange(40) % 2, augment=augment, prepare=lambda batch: batch / 255)
    rule = quick(inversion=TriggerInversion(2, 2, 2, 2, success_rate=0.1, initial_mask="published"))
    logs, memory = harden(rule, model, images, classes=2)
    assert len(memory) == 4 * (64 + 64 + 2) + 1
    assert seen == [16, 16, 8] * 3
    assert logs["stamped"] > 0.1


class OneLogit(TinyClient):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)[:, 0]


def test_other_modules_and_data_sets() -> None:
    table = tiny_tensors(40)
    listed = MapSamples([(table.inputs[i], int(table.targets[i])) for i in range(40)])
    one, other = client(), client()
    harden(quick(), one, table), harden(quick(), other, listed)
    assert torch.equal(vector(one), vector(other))
    torch.manual_seed(0)
    two = TensorSamples(table.inputs, (table.inputs[:, 0] > 0).long())
    assert harden(quick(), OneLogit(), two, classes=2)[0]["stamped"] > 0
    double = TensorSamples(table.inputs.double(), table.targets)
    assert harden(quick(), TinyClient(norm=False).double(), double)[0]["stamped"] > 0


@pytest.mark.parametrize("targets", [[0, 1, 2] * 15, [1] * 12, [0] * 4 + [1] * 7, [2]])
@pytest.mark.parametrize("broken", [False, True])
def test_recorded_inversions_leave_every_client_the_same_bits(monkeypatch, targets: list[int], broken: bool) -> None:
    """Also one of a single class, one too small for triggers, and one whose loss is no number."""
    data = TensorSamples(torch.randn(len(targets), FEATURES, generator=rng()), torch.tensor(targets))
    ends = []
    for least in (math.inf, 0.0):
        monkeypatch.setattr(replayed_steps, "LEAST_SECONDS", least)
        torch.manual_seed(0)
        model = MLP(sizes=(FEATURES, 8, CLASSES))
        if broken:
            with torch.no_grad():
                next(model.parameters())[0, 0] = math.nan
        logs, memory = harden(quick(), model, data)
        ends.append([vector(model), memory, *map(torch.tensor, logs.values())])
    for plain, recorded in zip(*ends, strict=True):
        torch.testing.assert_close(recorded, plain, rtol=0, atol=0, equal_nan=True)
    assert broken != bool(ends[0][0].isfinite().all())
