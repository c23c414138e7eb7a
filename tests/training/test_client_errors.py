"""What a client's own code raises: known mistakes in one line, all else with a note of where it was."""

import json
from typing import Any

import lightning as L
import pytest
import torch
from tiny import CLIENTS, TinyClient, fit, tiny_federation, tiny_tensors, tiny_trainer
from torch import nn

from fl_lightning import FederatedDataModule
from fl_lightning.callbacks import RunRecord
from fl_lightning.data import IID
from fl_lightning.errors import ConfigurationError, noted


class Backward(TinyClient):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        return loss


class Sparse(TinyClient):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]).to_sparse(), batch[1])


class SparseLogits(TinyClient):
    def forward(self, inputs):
        return super().forward(inputs).to_sparse()


class OneCycle(TinyClient):
    """Its scheduler takes as many steps as are said."""

    def __init__(self, steps: int, interval: str = "step") -> None:
        super().__init__()
        self.steps, self.interval = steps, interval

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


class TwoCycles(OneCycle):
    """A scheduler that has one inside."""

    def configure_optimizers(self):
        given: dict[str, Any] = super().configure_optimizers()
        given["lr_scheduler"]["scheduler"] = torch.optim.lr_scheduler.ChainedScheduler([given["lr_scheduler"]["scheduler"]])
        return given


class Freezing(TinyClient):
    def on_train_batch_start(self, batch, batch_idx):
        self.requires_grad_(batch_idx == 0)


class Raising(TinyClient):
    """Raises in one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def fail(self, method: str, *, now: bool = True) -> None:
        if method == self.method and now:
            raise KeyError("no\nkey")

    def training_step(self, batch, batch_idx):
        self.fail("training_step", now=batch_idx == 1)
        return super().training_step(batch, batch_idx)

    def on_after_backward(self):
        self.fail("on_after_backward")

    def on_train_end(self):
        self.fail("on_train_end")


def even_data() -> FederatedDataModule:
    """Four batches of eight for every client."""
    return FederatedDataModule.from_datasets(
        tiny_tensors(32 * CLIENTS), tiny_tensors(20, seed=1), partition=IID(num_clients=CLIENTS), num_classes=3
    )


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (Backward(), "the client Backward calls manual_backward, but local training .* return the loss from training_step"),
        (Sparse(), "the client Sparse gives a sparse tensor to log_softmax, .* make it dense with .to_dense()"),
        (
            SparseLogits(),
            r"forward of the client SparseLogits gives a tensor that is sparse \(torch.sparse_coo\); return dense",
        ),
        (
            OneCycle(5),
            "the scheduler OneCycleLR of the client OneCycle is made for 5 steps, but the largest client, of 32 samples, "
            "takes 6 of them in a round",
        ),
        (OneCycle(1, "epoch"), "is made for 1 steps, but the largest client, of 32 samples, takes 2 of them"),
        (TwoCycles(5), "the client TwoCycles has a scheduler for 5 steps, but this client takes more"),
        (Freezing(), "comes of nothing that is trained, as of layers frozen by now"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_known_mistake_is_one_line(client, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        fit(tiny_federation(client=client, attacks=[]), even_data(), rounds=1)
    assert "\n" not in str(caught.value)


def test_a_scheduler_for_all_steps_is_taken():
    federation = tiny_federation(client=OneCycle(6), attacks=[])
    assert fit(federation, even_data(), rounds=1).global_step == 1
    assert federation.excluded_updates == 0


@pytest.mark.parametrize(
    ("method", "place"),
    [("training_step", "on batch 2 of 6"), ("on_after_backward", "on batch 1 of 6"), ("on_train_end", "after its 6 batches")],
)
def test_any_other_error_stays_as_it_is_and_says_where(method, place, tmp_path):
    with pytest.raises(KeyError) as caught:
        fit(
            tiny_federation(client=Raising(method), attacks=[]),
            even_data(),
            rounds=1,
            callbacks=[RunRecord()],
            default_root_dir=tmp_path,
        )
    said = noted(caught.value)
    assert said.startswith(f"{place} while client ")
    assert said.endswith(", a Raising, was trained in round 0 on 32 samples")
    assert caught.traceback[-1].name == "fail"
    assert json.loads((tmp_path / "run.json").read_text())["reason"].endswith(said)


class Replacing(TinyClient):
    """Puts another parameter of the same shape in a parameter's place."""

    def on_train_end(self):
        layer = self.net[0]
        layer.weight = nn.Parameter(torch.zeros(37, 6))


def test_a_client_that_replaces_what_the_server_steps_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"in or before round 0 changes .* net.0.weight is another object than the server"
    ):
        fit(tiny_federation(client=Replacing()), rounds=1)


class Meddling(L.Callback):
    """Changes what the client is made of, after a round."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def on_train_epoch_end(self, trainer, pl_module):
        self.change(pl_module.client)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.net[0].weight.requires_grad_(False), "requires_grad of net.0.weight becomes False"),
        (lambda c: c.__setattr__("extra", nn.Linear(2, 2)), "its parameter extra.weight is new"),
        (lambda c: c.net.__setitem__(0, nn.Linear(6, 37)), "its parameter net.0.weight is new"),
        (lambda c: c.net[0].__setattr__("weight", nn.Parameter(torch.ones(37, 6))), "net.0.weight is another object than the"),
        (lambda c: c.net.__delitem__(1), "a parameter of shape .* is gone"),
    ],
    ids=["frozen", "added", "replaced", "parameter", "gone"],
)
def test_a_callback_that_changes_the_client_is_refused(change, said):
    with pytest.raises(ConfigurationError, match=f"in or before round 1 changes what .*{said}"):
        tiny_trainer(2, callbacks=[Meddling(change)]).fit(tiny_federation(), even_data())


@pytest.mark.parametrize("end", [StopIteration(), GeneratorExit(), SystemExit(0)], ids=lambda end: type(end).__name__)
def test_what_would_end_a_run_as_if_it_were_done_is_an_error(end):
    class Ends(TinyClient):
        def training_step(self, batch, batch_idx):
            raise end

    with pytest.raises(RuntimeError, match=f"the client Ends raises {type(end).__name__}") as caught:
        fit(tiny_federation(client=Ends()))
    assert noted(caught.value).startswith("on batch 1 of ")


def test_an_error_that_cannot_say_what_it_is_keeps_its_class():
    class SilentError(Exception):
        def __str__(self):
            raise TypeError("no words")

    class Raises(TinyClient):
        def training_step(self, batch, batch_idx):
            raise SilentError

    with pytest.raises(SilentError) as caught:
        fit(tiny_federation(client=Raises()))
    assert noted(caught.value).startswith("on batch 1 of ")
