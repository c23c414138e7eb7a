"""Optimizers and losses of clients: each gets what its step asks for, or is refused."""

from typing import Any

import pytest
import torch
from plain_clients import BATCH, EPOCHS, Batches, Plain, assert_equal_weights, by_lightning, by_us, data
from torch import Tensor, nn

from fl_lightning.errors import ConfigurationError
from fl_lightning.training.executor import LocalExecutor
from fl_lightning.training.local_training import LocalTraining
from fl_lightning.training.stack import NotStackableError
from fl_lightning.training.stacked_training import StackedTraining
from fl_lightning.updates.layout import Snapshot


class Sharpness(torch.optim.Optimizer):
    """As SAM is used: gradients are there, and a closure finds others at another place."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def each(self):
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):  # pyrefly: ignore[bad-override]
        assert closure is not None, "needs a closure"
        norm = torch.stack([p.grad.norm() for p in self.each()]).norm()
        steps = [0.05 * p.grad / norm for p in self.each()]
        for p, way in zip(self.each(), steps, strict=True):
            p.add_(way)
        closure()
        for p, way in zip(self.each(), steps, strict=True):
            p.sub_(way).sub_(p.grad, alpha=self.param_groups[0]["lr"])


class Bare(torch.optim.SGD):
    def step(self):  # pyrefly: ignore[bad-override]
        super().step()


class Averaging(torch.optim.SGD):
    """Trains one set of weights, and gives their average."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.training, self.averages, self.count = False, {}, 0

    def train(self):
        self.training = True

    @torch.no_grad()
    def eval(self):
        self.training = False
        for p, average in self.averages.items():
            p.copy_(average)

    @torch.no_grad()
    def step(self, closure=None):
        if not self.training:
            raise RuntimeError("Optimizer was not in train mode when step is called")
        loss = super().step(closure)
        self.count += 1
        for p in self.param_groups[0]["params"]:
            self.averages[p] = self.averages.get(p, torch.zeros_like(p)).lerp(p, 1 / self.count)
        return loss


def with_optimizer(kind: Any) -> Plain:
    class Net(Plain):
        def configure_optimizers(self):
            return kind(self.parameters(), lr=0.1)

    return Net()


def hand_written(kind: str) -> Plain:
    net = Plain()
    parameters = list(net.parameters())
    averages = [torch.zeros_like(p) for p in parameters]
    batches = Batches()

    def gradients(batch: tuple[Tensor, Tensor]) -> Any:
        return torch.autograd.grad(net.training_step(batch, 0), parameters)

    for step, batch in enumerate(batch for _ in range(EPOCHS) for batch in batches):
        found = gradients(batch)
        with torch.no_grad():
            if kind == "sharpness":
                norm = torch.stack([g.norm() for g in found]).norm()
                steps = [0.05 * g / norm for g in found]
                for p, way in zip(parameters, steps, strict=True):
                    p.add_(way)
                with torch.enable_grad():
                    found = gradients(batch)
                for p, way in zip(parameters, steps, strict=True):
                    p.sub_(way)
            for i, (p, g) in enumerate(zip(parameters, found, strict=True)):
                p.sub_(0.1 * g)
                averages[i] = averages[i].lerp(p, 1 / (step + 1))
    if kind == "averaging":
        with torch.no_grad():
            for p, average in zip(parameters, averages, strict=True):
                p.copy_(average)
    return net


@pytest.mark.parametrize(("kind", "optimizer"), [("sharpness", Sharpness), ("plain", Bare), ("averaging", Averaging)])
def test_optimizers_get_what_their_step_asks_for(kind, optimizer):
    net = with_optimizer(optimizer)
    by_us(net)
    expected = hand_written(kind)
    for a, b in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class GivesALoss(Plain):
    """A loss made into something else, from the gradients of every sample's own."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.make(nn.functional.cross_entropy(self.layer(batch[0]), batch[1], reduction="none"))


@pytest.mark.parametrize("executor", ["sequential", "graph", "stacked"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda losses: losses, r"training_step gives a loss of shape \(8,\), not one number; return loss.mean\(\)"),
        (lambda losses: {"loss": losses[None]}, r"gives a loss of shape \(1, 8\), not one number"),
        (lambda losses: losses[:0], r"gives a loss of shape \(0,\), not one number"),
        (lambda losses: losses.mean().detach(), r"gives a loss of dtype torch.float32 that no gradient can be taken of"),
        (lambda losses: torch.zeros(()), r"that no gradient can be taken of: it was detached"),
        (lambda losses: losses.mean().long(), r"a loss of dtype torch.int64 that no gradient can be taken of"),
        (lambda losses: losses.mean() * 1j, r"a loss of dtype torch.complex64; return a real number"),
    ],
)
def test_a_loss_that_is_no_number_to_minimize_is_refused(make, message, executor):
    start = Snapshot(module := GivesALoss(make))
    one = LocalExecutor(module, LocalTraining(batch_size=BATCH, executor=executor))
    one.start = start
    with pytest.raises(ConfigurationError, match=message) as refused:
        one.train(data(), lambda: torch.Generator().manual_seed(3))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "make", [lambda losses: losses, lambda losses: losses.mean().detach(), lambda losses: losses.mean() * 1j]
)
def test_a_stack_leaves_such_a_loss_to_the_sequential_steps(make):
    draws = [(data(), torch.Generator().manual_seed(seed)) for seed in range(2)]
    with pytest.raises(NotStackableError, match="GivesALoss cannot be trained in a stack"):
        StackedTraining(GivesALoss(make), LocalTraining(batch_size=BATCH, executor="stacked")).train(draws)


def test_a_loss_of_one_number_in_any_shape_trains_as_in_lightning():
    ours, theirs = (GivesALoss(lambda losses: losses.mean(0, keepdim=True)) for _ in range(2))
    by_us(ours)
    by_lightning(theirs)
    assert_equal_weights(ours, theirs)


def test_a_module_with_a_backward_of_its_own_may_give_any_loss():
    class Sums(GivesALoss):
        def backward(self, loss: Tensor) -> None:  # pyrefly: ignore[bad-override]
            loss.sum().backward()

    by_us(module := Sums(lambda losses: losses))
    assert not torch.equal(module.layer.weight, Plain().layer.weight)


def test_an_optimizer_step_that_forgets_its_closure_is_refused():
    class Forgets(Plain):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            optimizer.step()

    with pytest.raises(ConfigurationError, match="did not call its closure"):
        by_us(Forgets())
