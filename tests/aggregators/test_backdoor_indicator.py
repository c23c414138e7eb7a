"""BackdoorIndicator: planting, what is measured of submitted models, and who is turned away."""

import copy
import math
from typing import Any

import pytest
import torch
from tiny import CLASSES, FEATURES, TinyClient, tiny_tensors
from torch import Tensor, nn

from fl_lightning import ConfigurationError
from fl_lightning.aggregators import BackdoorIndicator
from fl_lightning.aggregators.backdoor_indicator import best_class
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.data import EdgePool, Noise, TensorSamples
from fl_lightning.updates import UpdateShard
from fl_lightning.updates.examined import Examined

P = 30
QUICK: dict[str, Any] = {"ood": Noise(samples=P, low=-1.0, high=1.0), "epochs": 3, "batch_size": 8, "learning_rate": 0.1}


def planting(**kwargs: Any) -> BackdoorIndicator:
    rule = BackdoorIndicator(**{**QUICK, **kwargs})
    rule.check_task(tiny_tensors(4), CLASSES)
    return rule


def planted(**kwargs: Any) -> tuple[Tensor, Tensor]:
    found = planting(**kwargs).planted
    assert found is not None
    return found


def client() -> TinyClient:
    torch.manual_seed(1)
    return TinyClient(dropout=0.0)


def parameters(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# ---- the value -------------------------------------------------------------------------------------------------------


def test_the_value_is_the_accuracy_of_the_best_class() -> None:
    assigned = torch.tensor([0, 0, 1, 1, 2, 2])
    assert float(best_class(torch.tensor([0, 0, 1, 1, 2, 1]), assigned)) == 1  # 1, 1, .5
    assert float(best_class(torch.tensor([1, 1, 0, 0, 2, 1]), assigned)) == 0.5
    assert float(best_class(torch.tensor([-1, 2, 0, 2, 0, 1]), assigned)) == 0
    uneven = torch.tensor([0, 0, 0, 1])
    assert float(best_class(torch.tensor([0, 0, 1, 0]), uneven)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("threshold", "kept"), [(0.95, [1, 0, 1]), (1.0, [1, 1, 1]), (0.5, [0, 0, 1])])
def test_who_reaches_the_threshold_is_turned_away(threshold: float, kept: list[float]) -> None:
    rule, shard = planting(threshold=threshold), UpdateShard.from_updates(torch.tensor([[3.0], [90.0], [6.0]]))
    values = torch.tensor([[0.5], [0.95], [0.0]])
    shard.examination = lambda _: Examined(values, torch.ones(1))
    assert rule(shard).item() == 33  # without a plant nobody is asked
    rule.statistics = {}
    assert rule(shard).item() == pytest.approx(sum(k * x for k, x in zip(kept, (3, 90, 6), strict=True)) / sum(kept))
    assert shard.verdict is not None
    assert shard.verdict.tolist() == kept


def test_nobody_is_left(caplog: pytest.LogCaptureFixture) -> None:
    rule, shard = planting(), UpdateShard.from_updates(torch.ones(3, 2))
    shard.examination = lambda _: Examined(torch.ones(3, 1), torch.ones(1))
    rule.statistics = {}
    assert not rule(shard).any()
    assert "BackdoorIndicator: none of 3 clients is left, so the update is zero" in caplog.text


# ---- planting --------------------------------------------------------------------------------------------------------


def test_ood_samples_have_balanced_classes_and_are_the_same_in_every_run() -> None:
    inputs, targets = planted()
    assert inputs.shape == (P, FEATURES)
    assert -1 <= inputs.min() < -0.9 < 0.9 < inputs.max() < 1
    assert targets.bincount().tolist() == [P // CLASSES] * CLASSES
    assert not torch.equal(targets, targets.sort().values)
    again = planted()
    assert torch.equal(again[0], inputs)
    assert torch.equal(again[1], targets)
    assert planted(ood=Noise(samples=5))[1].bincount().tolist() == [2, 2, 1]


def slow_plant(module: TinyClient, inputs: Tensor, targets: Tensor, mu: float, milestones: list[int], passes: int) -> None:
    """The textbook's SGD with momentum, and gradients by hand beyond those of the cross entropy."""
    module.train()
    start = [p.detach().clone() for p in module.parameters()]
    velocity: list[Tensor | None] = [None] * len(start)
    rate = 0.1
    for epoch in range(1, passes + 1):
        order = torch.randperm(len(inputs))
        for first in range(0, len(inputs), 8):
            rows = order[first : first + 8]
            module.zero_grad()
            nn.functional.cross_entropy(module(inputs[rows]), targets[rows]).backward()
            moved = [p.detach() - old for p, old in zip(module.parameters(), start, strict=True)]
            away = math.sqrt(math.fsum(float((m.double() ** 2).sum()) for m in moved))
            with torch.no_grad():
                for i, parameter in enumerate(module.parameters()):
                    assert parameter.grad is not None
                    gradient = parameter.grad + (mu / 2) * (moved[i] / away if away else 0) + 5e-4 * parameter
                    old = velocity[i]
                    velocity[i] = now = gradient if old is None else 0.9 * old + gradient
                    parameter -= rate * now
        rate *= 0.8 ** milestones.count(epoch)


def test_planting_is_sgd_with_a_pull_back_and_statistics_are_kept_apart() -> None:
    rule = planting(epochs=4, milestones=[1, 3], mu=2.0)
    module, expected = client(), client()
    statistics = [buffer.clone() for buffer in module.buffers()]
    torch.manual_seed(7)
    rule.before_broadcast(module, 0)
    assert rule.planted is not None
    torch.manual_seed(7)
    slow_plant(expected, *rule.planted, 2.0, [1, 3], 4)
    torch.testing.assert_close(parameters(module), parameters(expected), rtol=0, atol=1e-5)
    assert all(torch.equal(now, old) for now, old in zip(module.buffers(), statistics, strict=True))
    assert rule.statistics is not None
    assert set(rule.statistics) == {"net.1.running_mean", "net.1.running_var"}
    for name, kept in rule.statistics.items():
        torch.testing.assert_close(kept, expected.state_dict()[name], rtol=0, atol=1e-5)
    # A pull by the square would be another model: the test would see it.
    other = client()
    planting(epochs=4, milestones=[1, 3], mu=1.0).before_broadcast(other, 0)
    assert float((parameters(module) - parameters(other)).abs().max()) > 1e-3


def test_a_model_is_measured_with_the_statistics_of_after_the_planting() -> None:
    rule, module = planting(epochs=30), client()
    rule.before_broadcast(module, 0)
    assert rule.planted is not None
    assert rule.statistics is not None
    inputs, targets = rule.planted
    expected = copy.deepcopy(module).eval()
    expected.load_state_dict(rule.statistics, strict=False)
    classes = expected(inputs).argmax(1)
    value = max(float((classes[targets == c] == c).double().mean()) for c in range(CLASSES))
    probe: Any = type("Probe", (), {"batch_size": 7})
    with torch.no_grad():
        assert rule.examine(module.eval(), probe, torch.Generator()).tolist() == [value]
    assert value > 0.8


def test_patience_ends_the_planting() -> None:
    took: list[int] = []

    class Counting(BackdoorIndicator):
        def batches(self, n):
            took.append(n)
            return super().batches(n)

    for patience, tolerance, passes in ((None, 100.0, 12), (3, 100.0, 4), (3, 1e-12, 12)):
        settings: dict[str, Any] = {**QUICK, "epochs": 12, "patience": patience, "tolerance": tolerance}
        rule = Counting(**settings)
        rule.check_task(tiny_tensors(4), CLASSES)
        took.clear()
        rule.before_broadcast(client(), 0)
        assert len(took) == passes


def test_a_last_batch_of_one_is_joined() -> None:
    sizes = [len(batch) for batch in planting(batch_size=8).batches(25)]
    assert sizes == [8, 8, 9]
    assert [len(batch) for batch in planting(batch_size=1).batches(2)] == [1, 1]


def test_planting_waits_for_its_round_and_is_left_out_where_it_breaks_the_model(caplog: pytest.LogCaptureFixture) -> None:
    rule, module = planting(start_round=2), client()
    before = weights_sha256(module)
    rule.before_broadcast(module, 1)
    assert (rule.statistics, weights_sha256(module)) == (None, before)
    rule.before_broadcast(module, 2)
    assert rule.statistics is not None
    wild, module = planting(learning_rate=1e30), client()
    wild.before_broadcast(module, 0)
    assert (wild.statistics, weights_sha256(module)) == (None, before)
    assert "round 0: BackdoorIndicator's planting makes the model not finite" in caplog.text


# ---- refusals --------------------------------------------------------------------------------------------------------


class Pool(EdgePool):
    def __init__(self, shape: tuple[int, ...]) -> None:
        self.parts = TensorSamples(torch.arange(40.0).view(40, *[1] * len(shape)).expand(40, *shape), torch.zeros(40).long())

    def train(self):
        return self.parts

    test = train


def test_a_pool_is_drawn_from_and_must_have_the_tasks_shape() -> None:
    inputs, _ = planted(ood=Pool((FEATURES,)), max_samples=10)
    assert inputs.shape == (10, FEATURES)
    assert len(inputs.unique()) == 10
    with pytest.raises(
        ConfigurationError, match=r"ood has inputs of shape \(1, 8, 8\), but the task's have \(6,\); give a pool"
    ):
        planting(ood=Pool((1, 8, 8)))
    with pytest.raises(ConfigurationError, match="has 2 OOD samples for 3 classes; give it one for each"):
        planting(ood=Noise(samples=2))
    rule = BackdoorIndicator()
    with pytest.raises(ConfigurationError, match=r"one tensor of real numbers, but the task's are Tensor of torch.int64"):
        rule.check_task(TensorSamples(torch.zeros(4, 3).long(), torch.zeros(4).long()), 2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("ood", 800),
        ("max_samples", 0),
        ("threshold", 95),
        ("start_round", -1),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("weight_decay", math.inf),
        ("mu", -0.1),
        ("milestones", [20, 10]),
        ("decay", 0.0),
        ("patience", 0),
        ("tolerance", math.nan),
    ],
)
def test_settings_outside_their_ranges_are_refused(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"BackdoorIndicator\.{setting} must .*got {value!r}".replace("[", r"\[")):
        BackdoorIndicator(**{setting: value})
