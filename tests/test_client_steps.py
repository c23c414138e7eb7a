"""A client's training against a Trainer of Lightning's own on the same batches: hooks, their order, and weights."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from fl_lightning.data import TensorSamples
from fl_lightning.errors import ConfigurationError
from fl_lightning.executors import LocalExecutor
from fl_lightning.hooks import CALLED, hooks_of, uncalled_hooks
from fl_lightning.local_training import LocalTraining
from fl_lightning.stack import NotStackableError
from fl_lightning.stacked_training import StackedTraining
from fl_lightning.updates.layout import Snapshot

N, BATCH, EPOCHS = 20, 8, 2


def data() -> TensorSamples:
    inputs = torch.randn(N, 4, generator=torch.Generator().manual_seed(9))
    return TensorSamples(inputs, (inputs[:, 0] > 0).long())


class Batches:
    """Those that local training draws, epoch by epoch, as a loader."""

    def __init__(self) -> None:
        self.draws = torch.Generator().manual_seed(3)

    def __len__(self) -> int:
        return -(-N // BATCH)

    def __iter__(self):
        samples = data()
        for indices in torch.randperm(N, generator=self.draws).split(BATCH):
            yield samples.batch(indices)


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def by_lightning(module: L.LightningModule, **kwargs: Any) -> L.Trainer:
    """Trained by Lightning."""
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    trainer = L.Trainer(**settings)
    loader: Any = Batches()
    trainer.fit(module, loader)
    return trainer


def by_us(module: L.LightningModule, **kwargs: Any) -> dict[str, float]:
    """Trained as a client."""
    local = LocalTraining(epochs=EPOCHS, batch_size=BATCH, **kwargs)
    return local.train(module, data(), torch.Generator().manual_seed(3))


def assert_equal_weights(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


class Hooked(Plain):
    """Calls everything that Lightning would, and writes down what it sees of its training."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def note(self, name: str, *facts: Any) -> None:
        seen = (self.current_epoch, self.global_step, self.trainer.is_last_batch)
        self.calls.append((name, *seen, *facts))

    def on_train_start(self):
        self.note("on_train_start", self.trainer.num_training_batches, self.trainer.max_epochs)

    def on_train_end(self):
        self.note("on_train_end")

    def on_train_epoch_start(self):
        self.note("on_train_epoch_start")

    def on_train_epoch_end(self):
        self.note("on_train_epoch_end")

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.note("on_before_batch_transfer", dataloader_idx)
        return batch[0] * 2, batch[1]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.note("transfer_batch_to_device", str(device))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.note("on_after_batch_transfer")
        return batch[0] + 1, batch[1]

    def on_train_batch_start(self, batch, batch_idx) -> int | None:
        self.note("on_train_batch_start", batch_idx, float(batch[0].sum()))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        scheduler: Any = self.lr_schedulers()
        self.note("on_train_batch_end", float(outputs["loss"]), batch_idx, scheduler.get_last_lr())

    def training_step(self, batch, batch_idx):
        self.note("training_step", batch_idx, [p.grad is None for p in self.parameters()])
        return super().training_step(batch, batch_idx)

    def on_before_zero_grad(self, optimizer):
        self.note("on_before_zero_grad")

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        self.note("optimizer_zero_grad", epoch, batch_idx)
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_before_backward(self, loss):
        self.note("on_before_backward", float(loss))

    def backward(self, loss, *args, **kwargs):
        self.note("backward")
        super().backward(2 * loss, *args, **kwargs)

    def on_after_backward(self):
        gradient = self.layer.bias.grad
        assert gradient is not None
        self.note("on_after_backward", float(gradient.norm()))

    def on_before_optimizer_step(self, optimizer):
        self.note("on_before_optimizer_step", type(optimizer).__name__)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.note("configure_gradient_clipping", gradient_clip_val, gradient_clip_algorithm)
        self.clip_gradients(optimizer, 0.05, "norm")

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        self.note("optimizer_step", epoch, batch_idx)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.param_groups[0]["lr"] *= 0.9

    def lr_scheduler_step(self, scheduler, metric):
        self.note("lr_scheduler_step", metric)
        scheduler.step()

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "cycle"}}


def test_every_hook_is_called_as_lightning_calls_it():
    theirs, ours = Hooked(), Hooked()
    by_lightning(theirs)
    by_us(ours)
    assert {name for name, *_ in ours.calls} == CALLED | {"training_step"}
    assert ours.calls == theirs.calls
    assert_equal_weights(ours, theirs)


class SkipsRest(Hooked):
    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        return -1 if batch_idx == 1 and self.current_epoch == 0 else None


class SkipsBatches(Hooked):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 1 else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.note("on_train_batch_end", {name: float(value) for name, value in outputs.items()})


class Stops(Hooked):
    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = batch_idx == 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [SkipsRest, SkipsBatches, Stops])
def test_what_ends_an_epoch_or_skips_a_batch_does_it_as_in_lightning(kind):
    theirs, ours = kind(), kind()
    by_lightning(theirs)
    by_us(ours)
    assert ours.calls == theirs.calls
    assert_equal_weights(ours, theirs)


def schedule(interval: str, frequency: int) -> type[Plain]:
    class Scheduled(Plain):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            config = {"scheduler": scheduler, "interval": interval, "frequency": frequency, "monitor": "x", "strict": False}
            return [optimizer], [config]

    return Scheduled


class Warm(Plain):
    """Sets its own learning rate, and takes a number from its own epoch."""

    def training_step(self, batch, batch_idx):
        optimizer: Any = self.optimizers()
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + self.global_step)
        return super().training_step(batch, batch_idx) * (1 + self.current_epoch)


class OwnBackward(Plain):
    """Leaves gradients behind that Lightning drops, and looks at those of the step before."""

    def training_step(self, batch, batch_idx):
        before = 0.0 if self.layer.bias.grad is None else float(self.layer.bias.grad.norm())
        (self.layer.weight.square().sum()).backward()
        return super().training_step(batch, batch_idx) * (1 + before)


class Quasi(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


@pytest.mark.parametrize(
    "kind",
    [Plain, schedule("step", 1), schedule("step", 2), schedule("epoch", 1), schedule("epoch", 2), Warm, OwnBackward, Quasi],
)
def test_weights_are_those_of_lightning(kind):
    theirs, ours = kind(), kind()
    by_lightning(theirs)
    by_us(ours)
    assert_equal_weights(ours, theirs)


def test_gradients_are_clipped_as_by_lightning():
    theirs, ours = Plain(), Plain()
    by_lightning(theirs, gradient_clip_val=0.01)
    by_us(ours, gradient_clip_norm=0.01)
    assert_equal_weights(ours, theirs)


def test_the_warning_names_what_is_overridden_and_not_called():
    class Net(Plain):
        def on_fit_start(self): ...

        def validation_step(self, batch, batch_idx): ...

        def on_save_checkpoint(self, checkpoint): ...

        def on_after_backward(self): ...

        def predict_step(self, batch, batch_idx): ...

        def log(self, name, value, *args, **kwargs): ...

        def print(self, *args, **kwargs): ...

    net = Net()
    assert uncalled_hooks(net) == ["log", "on_fit_start", "on_save_checkpoint", "validation_step"]
    net.setup = lambda stage: None
    assert "setup" in uncalled_hooks(net)
    assert uncalled_hooks(Plain()) == []


def test_every_hook_that_is_called_is_one_of_lightnings():
    assert hooks_of(L.LightningModule) >= CALLED


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
