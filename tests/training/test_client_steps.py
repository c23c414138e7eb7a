"""A client's training against a Trainer of Lightning's own on the same batches: hooks, their order, and weights."""

from typing import Any

import lightning as L
import pytest
import torch
from plain_clients import Plain, assert_equal_weights, by_lightning, by_us

from fl_lightning.modules.hooks import CALLED, hooks_of, uncalled_hooks


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


@pytest.mark.parametrize(
    "taken", ["batch", "batch, batch_idx=None", "*given", "batch, *rest", "batch, **rest", "batch, *, scale=1.0"]
)
def test_a_training_step_is_given_what_it_takes_as_by_lightning(taken):
    got: list[Any] = []
    written = f"lambda self, {taken}: got.append({{k: v for k, v in locals().items() if k != 'self'}}) or step(self)"

    def step(module: Plain) -> Any:
        batch = got[-1]["given"][0] if "given" in got[-1] else got[-1].pop("batch")
        got[-1] = {name: value[1:] if name == "given" else value for name, value in got[-1].items()}
        return Plain.training_step(module, batch, 0)

    kind = type("Own", (Plain,), {"training_step": eval(written, {"got": got, "step": step})})
    theirs, ours = kind(), kind()
    by_lightning(theirs)
    of_lightning, got[:] = [*got], []
    by_us(ours)
    assert got == of_lightning
    assert_equal_weights(ours, theirs)


def test_a_training_step_set_on_the_module_itself_is_given_what_it_takes():
    ours, other = Plain(), Plain()
    vars(ours)["training_step"] = lambda batch: Plain.training_step(ours, batch, 0)
    by_us(ours)
    by_us(other)
    assert_equal_weights(ours, other)


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
