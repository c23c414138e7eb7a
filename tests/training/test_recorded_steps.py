"""Recorded steps: the same bits as plain ones, for whatever can be recorded."""

from typing import Any

import pytest
import torch
from recorded_clients import CLIENTS, Net, assert_same, samples, trained
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import SGD

from fl_lightning.models import CNN, MLP, VGG11, DropoutCNN, ResNet18, ViT, vgg
from fl_lightning.models.resnet import ResNet
from fl_lightning.modules import traced_graphs
from fl_lightning.modules.traced_graphs import NotRecordableError, code_of, without_python
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.recorded_steps import RecordedSteps
from fl_lightning.training.recordings import RECORD_AFTER
from fl_lightning.updates.layout import Snapshot

OPTIMIZERS = {
    "plain": lambda m: SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9),
    "nesterov, decay": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "foreach": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.5, foreach=True),
    "groups": lambda m: SGD(
        [{"params": m.net[0].parameters(), "lr": 0.01}, {"params": [*m.net[4].parameters(), m.unused], "momentum": 0.0}],
        lr=0.1,
        momentum=0.9,
    ),
    "scheduler": lambda m: (
        [optimizer := SGD(m.parameters(), lr=0.1, momentum=0.9)],
        [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}],
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_bits_and_logs(name: str) -> None:
    torch.manual_seed(0)
    stepper = assert_same(Net(OPTIMIZERS[name]), LocalTraining(epochs=2.5, batch_size=8), CLIENTS)
    assert stepper.recordings


@pytest.mark.parametrize("local", [{"gradient_clip_norm": 0.05}, {"precision": "bf16"}, {"batch_size": 1, "epochs": 0.2}])
def test_whatever_local_training_asks_for(local: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = Net() if local.get("batch_size") != 1 else MLP(sizes=(6, 5, 3))
    settings: dict[str, Any] = {"batch_size": 8, "epochs": 2.0, **local}
    assert_same(module, LocalTraining(**settings), CLIENTS)


def test_steps_of_other_kinds() -> None:
    assert_same(Net(dict=True), LocalTraining(batch_size=8), CLIENTS)
    assert_same(Net(), LocalTraining(batch_size=8), CLIENTS, steps=7)


def test_what_was_logged_may_be_changed_afterwards() -> None:
    module: Any = Net()
    module.net[3] = nn.Identity()  # steps that draw nothing are taken together, before anyone sees what they logged
    module.register_buffer("steps", torch.zeros(()))
    module.also.append(lambda m, _: m.log("steps", m.steps.add_(1.0)))
    stepper = assert_same(module, LocalTraining(batch_size=8), CLIENTS)
    assert stepper.recordings
    (_, logs), *_ = trained(module, LocalTraining(batch_size=8), CLIENTS, stepper)
    assert logs["steps"] == 3.0  # of 1, 2, ..., 5


def test_bf16_products_go_to_gradients_without_a_copy_in_between() -> None:
    torch.manual_seed(0)
    data = [samples(24, (3, 8, 8), seed=i) for i in range(3)]
    module = DropoutCNN(image_size=8, num_classes=3)
    stepper = assert_same(module, LocalTraining(batch_size=4, precision="bf16"), data)
    recording: Any = next(iter(stepper.recordings.values()))
    casts = recording.graph.code.count("_to_copy.default(mm")
    copies = recording.graph.code.count("copy_.default(arg")
    assert (casts, copies) == (0, 8)  # two layers' products among eight gradients


def test_what_happens_between_steps_counts() -> None:
    module: Any = Net()

    def pull(step: int, steps: int) -> None:
        with torch.no_grad():
            module.net[0].weight.mul_(0.5 + step / steps)

    assert_same(module, LocalTraining(batch_size=8), CLIENTS, after_step=pull)


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)


class Shallow(ResNet):
    """What ResNet-20 is made of, in two blocks."""

    recordable = True

    def __init__(self) -> None:
        settings: dict[str, Any] = {"num_classes": 3, "stem": "cifar", "norm": "batch", "width": 4, "channels_last": False}
        super().__init__(blocks=(1, 1), projection=False, optimizer=sgd, **settings)


def narrow_vgg() -> VGG11:
    """With few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vgg, "CHANNELS", (4,) * 8)
        return VGG11(in_channels=1, norm="none", hidden=4, num_classes=3)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: CNN(image_size=8, channels=[4, 6], hidden=8), (3, 8, 8)),
        (lambda: CNN(image_size=8, channels=[4], hidden=8, channels_last=True), (3, 8, 8)),
        (lambda: DropoutCNN(image_size=8, num_classes=3), (3, 8, 8)),
        (lambda: DropoutCNN(image_size=6, num_classes=3, in_channels=1), (1, 6, 6)),
        (lambda: ResNet18(stem="cifar", num_classes=3), (3, 8, 8)),
        (lambda: ResNet18(stem="cifar", num_classes=3, norm="group"), (3, 8, 8)),
        (Shallow, (3, 8, 8)),
        (narrow_vgg, (1, 32, 32)),
        (lambda: ViT(image_size=8, dimension=6, depth=1, num_classes=3, optimizer=sgd), (3, 8, 8)),
    ],
    ids=["CNN", "channels last", "dropout", "grey dropout", "ResNet", "group norm", "ResNet-20's", "VGG", "ViT"],
)
def test_the_packages_networks(module: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    stepper = assert_same(module(), LocalTraining(batch_size=2), [samples(2 * RECORD_AFTER + 5, shape)])
    assert stepper.recordings
    replayed: Any = next(iter(stepper.recordings.values()))
    assert isinstance(replayed.run.steps, torch.jit.ScriptFunction), "replayed in Python"


def test_rare_shapes_are_not_recorded() -> None:
    stepper = assert_same(Net(), LocalTraining(batch_size=8), [samples(n) for n in (24, 24, 13, 14, 15)])
    assert len(stepper.recordings) == 1
    assert len(stepper.recordings.seen) == 4  # full batches, and remainders of 5, 6 and 7


def test_a_replaced_buffer_is_found_again() -> None:
    torch.manual_seed(0)
    module, local = Net(), LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    trained(module, local, CLIENTS, stepper)
    module.net[1].running_mean = torch.full((16,), 0.5)
    expected = trained(module, local, CLIENTS, None)
    for (a, _), (b, _) in zip(expected, trained(module, local, CLIENTS, stepper), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_an_attribute_that_changed_ends_a_recording() -> None:
    torch.manual_seed(0)
    module: Any = Net()
    module.factor = 1.0
    module.also.append(lambda module, _: module.log("factor", torch.tensor(module.factor)))
    local = LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    trained(module, local, CLIENTS, stepper)
    module.factor = 2.0
    assert [logs["factor"] for _, logs in trained(module, local, CLIENTS, stepper)] == [2.0] * len(CLIENTS)


def test_an_optimizer_of_other_parameters_ends_a_recording() -> None:
    torch.manual_seed(0)
    module: Any = Net(lambda m: SGD(m.net[m.which].parameters(), lr=0.1))
    module.which = 0
    local = LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    for which in (0, 4, 0):
        module.which = which
        expected = trained(module, local, CLIENTS, None)
        for (a, _), (b, _) in zip(expected, trained(module, local, CLIENTS, stepper), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_parameters_that_are_replaced_as_a_client_begins() -> None:
    class Renews(MLP):
        def configure_optimizers(self) -> Any:
            last: Any = self.layers[2]
            last.weight = nn.Parameter(last.weight.detach() * 0.5)
            return super().configure_optimizers()

    torch.manual_seed(0)
    module, local = Renews(sizes=(6, 6, 3)), LocalTraining(batch_size=8)
    stepper = RecordedSteps(module, local)
    for data in CLIENTS:
        start = Snapshot(module)
        expected = [p.detach().clone() for p in (local.train(module, data, torch.Generator()), *module.parameters())[1:]]
        start.restore(module)
        local.train(module, data, torch.Generator(), stepper=stepper)
        stepper.known = True  # which is not so
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), expected, strict=True))


def test_tied_weights() -> None:
    class Tied(MLP):
        def __init__(self) -> None:
            super().__init__(sizes=(6, 6, 6))
            self.layers[2].weight = self.layers[0].weight  # type: ignore[assignment]

    torch.manual_seed(0)
    assert_same(Tied(), LocalTraining(batch_size=8), CLIENTS)


def test_weights_that_are_replaced_between_steps() -> None:
    module: Any = Net()

    def replace(step: int, steps: int) -> None:
        module.net[0].weight.data = module.net[0].weight.data * 0.5

    assert_same(module, LocalTraining(batch_size=8), CLIENTS, after_step=replace)


def test_an_attribute_that_changes_between_steps() -> None:
    module: Any = Net()
    module.factor = 1.0
    module.also.append(lambda module, _: module.log("factor", torch.tensor(module.factor)))

    def change(step: int, steps: int) -> None:
        module.factor = float(step) if step < steps else 1.0

    assert_same(module, LocalTraining(batch_size=8), CLIENTS, after_step=change)


def test_what_is_trained_must_not_change_between_steps() -> None:
    module, local = Net(), LocalTraining(batch_size=8)
    with pytest.raises(NotRecordableError, match="what it trains changes between its steps"):
        trained(module, local, CLIENTS, RecordedSteps(module, local), after_step=lambda *_: module.unused.requires_grad_(False))


def test_parameters_of_two_types_are_refused() -> None:
    module, local = Net(), LocalTraining(batch_size=8)
    module.unused.data = module.unused.data.double()
    with pytest.raises(NotRecordableError, match="of several types"):
        trained(module, local, CLIENTS, RecordedSteps(module, local))


def test_a_graph_that_torchscript_does_not_know_is_replayed_as_it_is() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            torch._foreach_add_([x], 1.0)  # TorchScript does not see that this writes into x
            return [x]

    x = torch.ones(2)
    graph = make_fx(Unknown())(x.clone())
    steps = without_python(graph, code_of(graph, 0, 1), [], [x])
    assert torch.equal(x, torch.ones(2)), "the example is not written into"
    assert not isinstance(steps, torch.jit.ScriptFunction)
    steps([], [[x], [x]])
    assert torch.equal(x, torch.full((2,), 3.0))


def test_two_steps_are_tried_on_tensors_that_share_memory_as_the_state_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that reads weights as they were before its first step must be found out."""

    def function(vector: Tensor, part: Tensor, x: Tensor) -> list[Tensor]:
        out = part * x
        vector.add_(1.0)
        return [out]

    def unlike(state: list[Tensor], batches: list[list[Tensor]]) -> list[list[Tensor]]:
        outputs = [[state[1] * x] for (x,) in batches]
        state[0].add_(float(len(batches)))
        return outputs

    vector, x = torch.zeros(4), torch.ones(2)
    state = [vector, vector[:2]]
    graph = make_fx(function)(*state, x)
    monkeypatch.setattr(traced_graphs, "compiled", lambda _: unlike)  # which would be kept
    vector.zero_()
    assert without_python(graph, code_of(graph, len(state), 1), state, [x]) is not unlike


def test_an_attribute_that_changes_as_a_client_begins() -> None:
    class Fades(MLP):
        factor = 1.0
        clients = 0

        def configure_optimizers(self) -> Any:
            self.clients += 1
            self.factor = 0.5 if self.clients > 4 else 1.0
            return super().configure_optimizers()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * self.factor

    def all_of(stepper_for: Any) -> list[Tensor]:
        torch.manual_seed(0)
        module, found = Fades(sizes=(6, 6, 3)), []
        stepper, start = stepper_for(module), Snapshot(module)
        for _ in range(6):
            local.train(module, samples(40), torch.Generator().manual_seed(0), stepper=stepper)
            found += [p.detach().clone() for p in module.parameters()]
            start.restore(module)
            if stepper is not None:
                stepper.known = True
        return found

    local = LocalTraining(batch_size=8)
    expected = all_of(lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(all_of(lambda module: RecordedSteps(module, local)), expected, strict=True))
    assert not torch.equal(expected[0], expected[-4])


def test_gradients_are_written_where_sgd_reads_them() -> None:
    stepper = assert_same(MLP(sizes=(6, 5, 3)), LocalTraining(batch_size=8), [samples(40)] * 2)
    recording: Any = next(iter(stepper.recordings.values()))
    assert len(stepper.recordings) == 1
    assert "copy_" not in recording.graph.code
    assert recording.graph.code.count("aten.add_.") == 2  # momentum and weights, whatever the number of layers
