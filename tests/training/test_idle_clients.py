"""Clients that nobody trains."""

import logging
from typing import Any

import pytest
from ranks import on_ranks
from tiny import TinyClient, fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import ConfigurationError, LocalTraining
from fl_lightning.training.idle_clients import Taken, check_anybody_trained

NOBODY = "nobody is trained: training_step of the client {} returned None for .* every one of the .* return the loss"


class Silent(TinyClient):
    """Has lost the `return` of its loss, for some batches."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.every = every

    def training_step(self, batch, batch_idx) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % self.every == 0 else loss


class Passing(TinyClient):
    def on_train_batch_start(self, batch, batch_idx) -> int:
        return -1


class ByHand(TinyClient):
    """Trains without a loss, which is its own affair."""

    def training_step(self, batch, batch_idx) -> Any:
        next(self.parameters()).data.add_(0.1)


@pytest.mark.parametrize("executor", ["sequential", "graph", "stacked"])
@pytest.mark.parametrize("client", [Silent, Passing])
def test_clients_that_skip_every_batch_are_refused_in_the_first_round(client, executor):
    with pytest.raises(ConfigurationError, match=NOBODY.format(client.__name__)) as caught:
        fit(tiny_federation(client=client(), local=LocalTraining(executor=executor, batch_size=8)))
    assert "\n" not in str(caught.value)


def refused(_: str) -> str:
    trainer = tiny_trainer(2, devices=2)
    with pytest.raises(ConfigurationError) as caught:
        trainer.fit(tiny_federation(client=Silent()), tiny_data())
    return str(caught.value)


def test_all_ranks_say_so():
    first, second = on_ranks(2, refused, "")
    assert first == second
    assert first.startswith("nobody is trained")


@pytest.mark.parametrize("client", [Silent(every=2), ByHand(), TinyClient()], ids=lambda client: type(client).__name__)
def test_who_trains_on_some_batches_or_without_a_loss_goes_on(client, caplog):
    with caplog.at_level(logging.WARNING):
        assert fit(tiny_federation(client=client), rounds=2).global_step == 2
    assert "weights changed" not in caplog.text


def test_weights_that_stay_for_another_reason_are_told_once(caplog):
    class NoBackward(TinyClient):
        def backward(self, loss, *args: Any, **kwargs: Any) -> None:
            pass

    with caplog.at_level(logging.WARNING):
        fit(tiny_federation(client=NoBackward()), rounds=2)
    assert [r.getMessage() for r in caplog.records if "no client's weights changed in round 0" in r.getMessage()] == [
        "no client's weights changed in round 0: look at the learning rate, and at hooks of the client NoBackward that take "
        "steps or call backward themselves"
    ]


def test_a_rank_without_clients_says_nothing_of_the_others():
    check_anybody_trained([Taken(), Taken(batches=3, skipped=3, moved=True)], "Net", 0)
    with pytest.raises(ConfigurationError, match="of the 3 batches that clients had in round 4"):
        check_anybody_trained([Taken(), Taken(batches=3, skipped=3)], "Net", 4)
