"""A client sees its own training where it looks for its Trainer, on any number of ranks, and the server's is out of reach."""

import copy
from typing import Any

import lightning as L
import pytest
import torch
from ranks import on_ranks
from tiny import TinyClient, fit, tiny_federation

from fl_lightning import CohortSampler, LocalTraining
from fl_lightning.aggregators import FedAvg
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.errors import ConfigurationError
from fl_lightning.modules.lightning_modules import lightning_base

SEEN: list[dict[str, Any]] = []
"""What clients have seen, by client; a list outside of them, as what they keep is undone."""


class Reaching(TinyClient):
    """Reaches for everything that a Trainer has."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch, batch_idx):
        trainer, scheduler, optimizer = self.trainer, self.lr_schedulers(), self.optimizers()
        if batch_idx == 0 and self.current_epoch == 0:
            SEEN.append({"steps": trainer.estimated_stepping_batches, "epochs": trainer.max_epochs, "rates": []})
            SEEN[-1]["first"] = (self.global_step, self.global_rank, self.local_rank, trainer.world_size, bool(self.logger))
        SEEN[-1]["rates"].append(scheduler.get_last_lr()[0])  # pyrefly: ignore[missing-attribute]
        SEEN[-1]["last"] = (self.global_step, self.current_epoch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        optimizer.param_groups[0]["lr"] *= 0.05  # pyrefly: ignore[missing-attribute]
        SEEN[-1]["metrics"] = {**trainer.callback_metrics}
        return loss * (1 + 0.1 * self.global_step)


def federation(client: L.LightningModule, **kwargs: Any) -> Any:
    cohort = CohortSampler(clients_per_round=4, malicious_fraction=0.0)
    defaults: dict[str, Any] = {"local": LocalTraining(epochs=1.5, batch_size=8), "aggregator": FedAvg()}
    return tiny_federation(client=client, attacks=[], cohort=cohort, **{**defaults, **kwargs})


def test_a_client_sees_its_own_training():
    SEEN.clear()
    model = federation(Reaching())
    trainer = fit(model, rounds=2)
    assert len(SEEN) == 9  # of which the first is trained twice, to see that it ends the same
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1.0  # the server's
    for seen in SEEN:
        assert seen["steps"] == len(seen["rates"]) > 2
        assert seen["epochs"] == 2
        assert seen["first"] == (0, 0, 0, 1, False)
        assert seen["last"][:2] == (seen["steps"] - 1, 1)
        assert seen["metrics"].keys() == {"loss"}
    assert model.client.trainer is trainer


def digest_of(kind: type[L.LightningModule], **kwargs: Any) -> str:
    torch.manual_seed(0)
    model = federation(kind(), **kwargs)
    trainer = fit(model, rounds=2, devices=torch.distributed.get_world_size())
    assert trainer.optimizers[0].param_groups[0]["lr"] == 1.0
    return weights_sha256(model.client)


class Stopping(TinyClient):
    """Has had enough at its third batch."""

    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = self.global_step == 2
        return super().training_step(batch, batch_idx)


def digests(world: int) -> list[str]:
    return [digest_of(Reaching), digest_of(Stopping)]


def test_what_a_client_sees_is_the_same_on_any_number_of_ranks():
    one, (two, same) = on_ranks(1, digests, 1)[0], on_ranks(2, digests, 2)
    assert one == two == same


def test_a_client_that_stops_ends_its_own_training_alone():
    model, short = federation(Stopping()), federation(TinyClient(), local=LocalTraining(epochs=1.0, batch_size=8))
    trainer = fit(model, rounds=3)
    assert trainer.current_epoch == 3
    assert not trainer.should_stop
    fit(short, rounds=3)
    assert weights_sha256(model.client) != weights_sha256(short.client)


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        (lambda self: self.all_gather(torch.ones(1)), "strategy for all_gather: clients of different ranks share nothing"),
        (lambda self: self.trainer.strategy.barrier(), "strategy for barrier"),
        (lambda self: self.trainer.fit_loop, "asks its Trainer for fit_loop, which a client does not have"),
        (lambda self: self.trainer.datamodule, "asks its Trainer for datamodule"),
        (lambda self: self.logger.experiment, "a client has no logger"),
        (lambda self: self.optimizers().step(), "calls step of self.optimizers"),
    ],
)
def test_what_a_client_does_not_have_is_refused_by_name(reach, message):
    class Net(TinyClient):
        def training_step(self, batch, batch_idx):
            assert not hasattr(self.trainer, "no such thing")
            assert getattr(self.trainer, "datamodule", None) is None
            reach(self)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ConfigurationError, match=message) as raised:
        fit(federation(Net()), rounds=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("executor", ["graph", "stacked"])
def test_other_executors_show_it_too(executor):
    class Warm(TinyClient):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=steps)
            return [optimizer], [{"scheduler": cycle, "interval": "step"}]

    weights = []
    for local in (LocalTraining(1.5, 8, executor="sequential"), LocalTraining(1.5, 8, executor=executor)):
        torch.manual_seed(0)
        model = federation(Warm(), local=local)
        fit(model, rounds=2)
        weights.append(torch.cat([p.detach().flatten() for p in model.client.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)  # a stack gives up, as clients differ


def test_it_leaves_nothing_behind():
    class Copies(TinyClient):
        def training_step(self, batch, batch_idx):
            assert copy.deepcopy(self)._trainer is None
            return super().training_step(batch, batch_idx)

    client = Copies()
    with pytest.raises(IndexError):
        LocalTraining().train(client, bad_samples(), torch.Generator())
    assert client._trainer is None
    assert lightning_base(Copies) is L.LightningModule


def bad_samples():
    from fl_lightning.data import TensorSamples

    return TensorSamples(torch.zeros(4, 6), torch.full((4,), 7))


MODES: list[tuple[bool, bool]] = []  # of all modules: what a client holds itself is put back


def test_hooks_of_batch_transfer_are_called_in_evaluation_too():
    MODES.clear()

    class Scales(TinyClient):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            MODES.append((self.trainer.training, self.trainer.validating))
            return batch[0] / 100, batch[1]

    model = federation(Scales())
    fit(model, rounds=1)
    assert {*MODES} >= {(True, False), (False, True)}
    model.client.eval()
    batch = torch.ones(2, 6), torch.zeros(2)
    assert torch.equal(model.predict(batch), model.client(batch[0] / 100))
