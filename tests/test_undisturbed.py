"""Evaluation leaves the model as it was, however its forward behaves, and counts the same hits on any number of ranks."""

import copy
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from ranks import on_ranks
from tiny import Relabel, TinyClient, fit, tiny_data, tiny_federation, tiny_trainer
from torch import nn
from torchmetrics.classification import BinaryAccuracy

from fl_lightning import Federation
from fl_lightning.callbacks import BackdoorMetrics
from fl_lightning.callbacks.run_record import weights_sha256
from fl_lightning.undisturbed import Keepsake, undisturbed


class Rich(L.LightningModule):
    """Something of every kind that a module may keep."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.table = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Embedding(5, 3, max_norm=0.1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("nothing", None)
        self.again = self.layer
        self.n, self.not_a_number, self.seen, self.found = 0, float("nan"), [0], {"a": 1}
        self.last, self.pair = deque(maxlen=3), (1, [2])
        self.tensor, self.array = torch.zeros(3), np.zeros(3)
        self.draws, self.plain_draws = torch.Generator().manual_seed(0), random.Random(0)
        self.numpy_draws, self.old_draws = np.random.default_rng(0), np.random.RandomState(0)
        self.act = torch.relu
        self.accuracy = BinaryAccuracy()

    def next_draws(self) -> list[float]:
        old = [self.plain_draws.random(), self.numpy_draws.random(), self.old_draws.rand()]
        return [*old, float(torch.rand(1, generator=self.draws))]


def in_train_mode(module: Rich) -> None:
    module.norm.train()
    module.norm(torch.randn(4, 4))


CHANGES: dict[str, tuple[Callable[[Rich], Any], list[str]]] = {
    "nothing": (lambda m: m.norm(m.layer(torch.randn(2, 3))), []),
    "another function": (lambda m: setattr(m, "act", torch.tanh), ["act"]),
    "the same value": (lambda m: setattr(m, "pair", (1, [2])), []),
    "the same tensor": (lambda m: setattr(m, "tensor", torch.zeros(3)), []),
    "the same NaN": (lambda m: setattr(m, "not_a_number", float("nan")), []),
    "buffer in place": (lambda m: m.count.add_(1), ["count"]),
    "buffer replaced": (lambda m: setattr(m, "count", m.count + 1), ["count"]),
    "buffer deleted": (lambda m: delattr(m, "count"), ["count"]),
    "buffer where none was": (lambda m: setattr(m, "nothing", torch.ones(2)), ["nothing"]),
    "sign of zero": (lambda m: m.count.neg_(), ["count"]),
    "new buffer": (lambda m: m.register_buffer("other", torch.ones(2)), ["other"]),
    "new module": (lambda m: setattr(m, "other", nn.Linear(2, 2)), ["other"]),
    "behind autograd's back": (lambda m: m.layer.weight.data.mul_(2), ["layer.weight"]),
    "other memory": (lambda m: setattr(m.layer.weight, "data", m.layer.weight.data * 2), ["layer.weight"]),
    "other parameter": (lambda m: setattr(m.layer, "bias", nn.Parameter(torch.ones(4))), ["layer.bias"]),
    "through numpy": (lambda m: m.layer.bias.detach().numpy().fill(3.0), ["layer.bias"]),
    "larger memory": (lambda m: m.count.resize_(3), ["count"]),
    "another type": (lambda m: m.layer.half(), ["layer.weight", "layer.bias"]),
    "a metric": (lambda m: m.accuracy.update(torch.ones(2), torch.ones(2)), ["accuracy._update_count", "accuracy.tp"]),
    "its class": (lambda m: setattr(Rich, "total", 1), ["Rich.total"]),
    "max_norm": (lambda m: m.table(torch.tensor([1, 2])), ["table.weight"]),
    "statistics": (in_train_mode, ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "norm.training"]),
    "number": (lambda m: setattr(m, "n", m.n + 1), ["n"]),
    "NaN": (lambda m: setattr(m, "not_a_number", 1.0), ["not_a_number"]),
    "list": (lambda m: m.seen.append(1), ["seen"]),
    "dict": (lambda m: m.found.update(b=2), ["found.b"]),
    "deque": (lambda m: m.last.append(3), ["last"]),
    "inside a tuple": (lambda m: m.pair[1].append(3), ["pair[1]"]),
    "tensor": (lambda m: m.tensor.add_(1), ["tensor"]),
    "array": (lambda m: m.array.fill(2), ["array"]),
    "new attribute": (lambda m: setattr(m, "attention", torch.ones(3)), ["attention"]),
    "torch's draws": (lambda m: torch.rand(2, generator=m.draws), []),
    "random's draws": (lambda m: m.plain_draws.random(), []),
    "numpy's draws": (lambda m: m.numpy_draws.random(), []),
    "numpy's old draws": (lambda m: m.old_draws.rand(), []),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_found_and_undone(name: str, mode: Any) -> None:
    change, expected = CHANGES[name]
    module = Rich().eval()
    objects = {key: id(tensor) for key, tensor in (*module.named_parameters(), *module.named_buffers())}
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    data, draws = module.layer.weight.data_ptr(), copy.deepcopy(module).next_draws()
    kept = Keepsake(module)
    with mode():
        change(module)
        assert kept.put_back(thoroughly=True) == expected
        assert kept.put_back(thoroughly=True) == []
    assert {key: id(tensor) for key, tensor in (*module.named_parameters(), *module.named_buffers())} == objects
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    assert list(module.state_dict()) == list(state)
    assert module.layer.weight.data_ptr() == data
    assert module.next_draws() == draws
    assert (module.n, module.seen, module.found, module.pair, len(module.last)) == (0, [0], {"a": 1}, (1, [2]), 0)
    assert Rich.total == 0
    assert not module.tensor.any()
    assert not module.array.any()
    assert not hasattr(module, "attention")
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.detach().add_(0)  # none of them has become one of inference mode


def test_most_changes_show_without_a_look_at_values() -> None:
    for change, expected in CHANGES.values():
        if expected not in (["layer.weight"], ["layer.bias"]):
            module = Rich().eval()
            kept = Keepsake(module)
            with torch.no_grad():
                change(module)
            assert kept.put_back() == expected


def test_what_is_large_is_looked_at_where_pytorch_counts_a_change() -> None:
    module = Rich()
    images = module.images = torch.zeros(2**22 + 1)
    kept = Keepsake(module)
    images.data.add_(1)
    assert kept.put_back(thoroughly=True) == []
    images.add_(1)
    assert kept.put_back() == ["images"]
    assert not images.any()
    assert kept.put_back() == []


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.int32, torch.float64, torch.complex64, torch.complex128]
)
def test_tensors_of_any_type(dtype: torch.dtype) -> None:
    module = nn.Module()
    for name in ("first", "second", "third"):
        module.register_buffer(name, torch.zeros(2, 3, dtype=dtype))
    kept = Keepsake(module)
    module.get_buffer("second")[1, 2] = 1
    assert kept.put_back() == ["second"]
    assert not module.get_buffer("second").any()


def test_scripted_modules_too() -> None:
    module = torch.jit.script(nn.BatchNorm1d(2))
    kept = Keepsake(module)
    module(torch.randn(4, 2))
    assert kept.put_back() == ["running_mean", "running_var", "num_batches_tracked"]
    assert not dict(module.named_buffers())["running_mean"].any()


def test_parts_that_are_not_in_train_mode_stay_so() -> None:
    module = Rich()
    module.norm.eval()
    with undisturbed(module):
        module.eval().train()
    assert not module.norm.training
    assert module.layer.training


def test_it_is_as_it_was_where_something_fails() -> None:
    module = Rich()

    @undisturbed(module)
    def fail() -> None:
        module.eval()
        module.count.add_(1)
        module.seen.append(1 // module.n)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert module.layer.training
    assert not module.count


def test_draws_of_its_own_depend_on_what_they_are_seeded_for() -> None:
    one, other = Rich(), Rich()
    one.next_draws()
    draws = []
    for module, key in ((one, 0), (other, 0), (other, 1)):
        kept = Keepsake(module)
        kept.seed(5, "evaluation", key)
        draws.append(module.next_draws())
        kept.put_back()
    assert draws[0] == draws[1]
    assert not set(draws[1]) & set(draws[2])
    assert other.next_draws() == Rich().next_draws()


# ---- in a run --------------------------------------------------------------------------------------------------------


class Counts(TinyClient):
    """Every batch that it predicts moves its weights, a buffer, a number and its predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))
        self.calls = 0

    def forward(self, inputs):
        if not self.training:
            self.calls += 1
            self.batches = self.batches + 1
            with torch.no_grad():
                self.net[0].get_parameter("weight").mul_(1.01)
        return super().forward(inputs) + torch.tensor([0.0, 0.3, 0.0]) * (self.calls - 1)


class Silent(TinyClient):
    """Renormalises by a way that PyTorch does not see."""

    def forward(self, inputs):
        if not self.training:
            self.net[0].get_parameter("weight").data.mul_(1.3).add_(0.1)
        return super().forward(inputs)


class Draws(TinyClient):
    """Drops out in evaluation too."""

    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), 0.5, training=True)


class OwnDraws(TinyClient):
    """Predicts with noise of a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, inputs):
        logits = super().forward(inputs)
        return logits + torch.from_numpy(self.rng.normal(size=logits.shape)).float()


CLIENTS = {"counts": Counts, "silent": Silent, "draws": Draws, "own draws": OwnDraws}


def made(client: Any, **kwargs: Any) -> Federation:
    """From the same initial weights every time."""
    torch.manual_seed(0)
    return tiny_federation(client=client(), **kwargs)


def run_clients(world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, client in CLIENTS.items():
        federation = made(client)
        trainer = fit(federation, devices=world, rounds=1, callbacks=[BackdoorMetrics()])
        found[name] = weights_sha256(federation.client), {k: float(v) for k, v in trainer.callback_metrics.items()}
    return found


def test_evaluation_is_the_same_on_any_number_of_ranks() -> None:
    (alone,) = on_ranks(1, run_clients, 1)
    assert all(found == alone for found in on_ranks(3, run_clients, 3))


@pytest.mark.parametrize("client", [Counts, Silent, OwnDraws])
def test_the_model_trains_as_if_it_were_never_evaluated(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    never, always = made(client), made(client)
    fit(never, rounds=2, limit_val_batches=0)
    with caplog.at_level(logging.WARNING):
        fit(always, rounds=2)
    assert weights_sha256(never.client) == weights_sha256(always.client)
    told = [record.getMessage() for record in caplog.records if "evaluation changes" in record.getMessage()]
    assert len(told) == (client is not OwnDraws)
    assert all("net.0.weight" in message and ("calls" in message) is (client is Counts) for message in told)


def test_validate_and_test_leave_it_as_it_was() -> None:
    federation = tiny_federation(client=Counts())
    before = weights_sha256(federation.client)
    for verb in ("validate", "test"):
        getattr(tiny_trainer(), verb)(federation, tiny_data(), verbose=False)
    assert weights_sha256(federation.client) == before
    assert federation.client.calls == 0


def predicted(world: int) -> dict[str, list[Any]]:
    """By client, each batch of this rank's: its logits, and what was left of them."""
    found = {}
    for name, client in CLIENTS.items():
        federation = made(client)
        before = weights_sha256(federation.client)
        logits: Any = tiny_trainer(devices=world).predict(federation, tiny_data())
        assert weights_sha256(federation.client) == before
        found[name] = [batch.tolist() for batch in logits or []]
    return found


def test_predictions_leave_it_as_it_was_and_are_the_same_on_any_number_of_ranks() -> None:
    (alone,) = on_ranks(1, predicted, 1)
    ranks = on_ranks(3, predicted, 3)
    for name, batches in alone.items():
        assert len({str(batch) for batch in batches}) > 1, name
        assert batches == [ranks[i % 3][name][i // 3] for i in range(len(batches))], name


def test_the_users_own_draws_go_on_as_without_an_evaluation() -> None:
    federation = tiny_federation(client=Draws())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tiny_trainer().validate(federation, tiny_data(), verbose=False)
    assert torch.equal(torch.rand(2), expected)


class Looks(Relabel):
    """Predicts with the global model before a round, as one does who optimises a trigger."""

    def plan(self, module, datasets, attackers):
        module.eval()
        with torch.no_grad():
            module(datasets[0].batch(torch.arange(2))[0])


def test_attackers_who_look_at_the_global_model_leave_it_as_it_was() -> None:
    plain, looked_at = made(Silent, attacks=[Relabel()]), made(Silent, attacks=[Looks()])
    for federation in (plain, looked_at):
        fit(federation, rounds=2)
    assert weights_sha256(plain.client) == weights_sha256(looked_at.client)


class Lends(L.Callback):
    """Has other weights evaluated than the last ones."""

    def __init__(self) -> None:
        self.lent, self.evaluated = "", []

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.own = copy.deepcopy(pl_module.client.state_dict())
        with torch.no_grad():
            for parameter in pl_module.client.parameters():
                parameter.mul_(0.5)
        self.lent = weights_sha256(pl_module.client)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.evaluated.append(weights_sha256(pl_module.client) == self.lent)

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.client.load_state_dict(self.own)


def test_weights_that_a_callback_lends_for_an_evaluation_are_evaluated() -> None:
    lends, plain, lent = Lends(), made(Counts), made(Counts)
    fit(plain, rounds=2)
    fit(lent, rounds=2, callbacks=[lends, BackdoorMetrics()])
    assert len(lends.evaluated) > 10
    assert all(lends.evaluated)
    assert weights_sha256(lent.client) == weights_sha256(plain.client)


def test_nothing_is_told_of_a_usual_client(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit(tiny_federation(), rounds=1)
    assert "evaluation changes" not in caplog.text
