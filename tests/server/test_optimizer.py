"""The server's optimizer and its scheduler: what works, across a resume, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import fit, tiny_data, tiny_federation

from fl_lightning import Federation
from fl_lightning.callbacks import LastCheckpoint
from fl_lightning.callbacks.run_record import experiment, weights_sha256
from fl_lightning.configuration import build
from fl_lightning.errors import ConfigurationError
from fl_lightning.server.optimizer import check_server_optimizer


def halving(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


class Watched(Federation):
    """Writes the server's learning rate down."""

    def server_step(self, gradient, broadcast):
        optimizer: Any = self.optimizers()
        self.__dict__.setdefault("rates", []).append(optimizer.param_groups[0]["lr"])
        return super().server_step(gradient, broadcast)


class OfASubclass(Watched):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]


def federation(kind: type[Federation] = Watched, **kwargs: Any) -> Any:
    made = tiny_federation(attacks=[], **kwargs)
    made.__class__ = kind
    return made


def test_its_scheduler_steps_after_every_round_and_across_a_resume(tmp_path):
    whole = federation(server_scheduler=halving)
    fit(whole, rounds=4)
    assert whole.rates == [1.0, 0.5, 0.25, 0.125]
    settings: dict[str, Any] = {"enable_checkpointing": True, "default_root_dir": str(tmp_path)}
    fit(federation(server_scheduler=halving), rounds=2, callbacks=[LastCheckpoint()], **settings)
    rest = federation(server_scheduler=halving)
    fit(rest, rounds=4, callbacks=[LastCheckpoint()], ckpt_path="last", **settings)
    assert rest.rates == [0.25, 0.125]
    assert weights_sha256(rest.client) == weights_sha256(whole.client)


def test_a_subclass_gives_one_in_its_own_way():
    model = federation(OfASubclass)
    fit(model, rounds=5)
    assert model.rates == [1.0, 1.0, 0.5, 0.5, 0.25]


class NeedsClosure(torch.optim.SGD):
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("requires closure")
        return super().step(closure)


class TwoModes(torch.optim.SGD):
    def train(self): ...

    def eval(self): ...


class NoClosure(torch.optim.SGD):
    def step(self):  # pyrefly: ignore[bad-override]
        super().step()


class NeedsGradients(torch.optim.SGD):
    def step(self, closure=None):
        torch.stack([p.grad.norm() for p in self.param_groups[0]["params"]])
        return super().step(closure)


class SharpWithClosure(torch.optim.SGD):
    def step(self, closure=None):
        if closure is not None:
            self.zero_grad()
            closure()
        return super().step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: torch.optim.SGD([torch.zeros(3, requires_grad=True)], 1.0),
            r"SGD holds 1 of 1 tensors that are not the client",
        ),
        (lambda p: torch.optim.SGD([*p, torch.zeros(3)], 1.0), r"SGD holds 1 of \d+ tensors that are not the"),
        (lambda p: torch.optim.SGD([q.detach().clone() for q in p], 1.0), r"make it of the parameters that it is given"),
        (lambda p: torch.optim.SGD([{"params": []}], 1.0), r"SGD holds no trainable parameter"),
        (lambda p: torch.optim.SGD(p, lr=float("inf")), r"model.server_optimizer SGD has lr = inf, with which every step"),
        (lambda p: torch.optim.SGD(p, lr=torch.tensor(float("nan"))), r"SGD has lr = nan"),
        (lambda p: torch.optim.SGD(p, lr=1.0, momentum=float("nan")), r"SGD has momentum = nan"),
        (lambda p: torch.optim.LBFGS(p), r"server_optimizer LBFGS asks step for more than a dense gradient"),
        (lambda p: torch.optim.SparseAdam(p), r"SparseAdam asks step for more than a dense gradient \(SparseAdam does not"),
        (lambda p: NeedsClosure(p, lr=1.0), r"NeedsClosure asks step for more than a dense gradient \(requires closure\)"),
        (lambda p: TwoModes(p, lr=1.0), r"TwoModes keeps one set of weights to train and one to evaluate"),
        (lambda p: NoClosure(p, lr=1.0), r"NoClosure cannot be stepped as Lightning does it"),
        (lambda p: NeedsGradients(p, lr=1.0), r"NeedsGradients fails without gradients"),
        (lambda p: SharpWithClosure(p, lr=1.0), r"SharpWithClosure takes another step where a closure is given"),
    ],
)
def test_one_that_cannot_work_is_refused_before_training(make, message):
    model = tiny_federation(server_optimizer=make)
    with pytest.raises(ConfigurationError, match=message) as raised:
        fit(model, rounds=1)
    assert "\n" not in str(raised.value)
    assert model.client_updates == 0


def test_one_over_a_part_of_the_parameters_is_warned_of(caplog):
    parameters = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    check_server_optimizer(torch.optim.SGD(parameters, lr=1.0), None, parameters)
    assert not caplog.messages
    check_server_optimizer(torch.optim.SGD(parameters[:2], lr=1.0), None, parameters)
    assert "SGD holds 2 of the client's 3 trainable parameters; the others keep their initial values" in caplog.text


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "Adadelta", "Rprop", "ASGD", "RAdam"])
def test_those_of_pytorch_work(kind):
    parameter = torch.zeros(3, requires_grad=True)
    check_server_optimizer(getattr(torch.optim, kind)([parameter], lr=0.1))
    assert parameter.grad is None
    assert not parameter.count_nonzero()


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, "ReduceLROnPlateau waits for a metric, which the server does not have"),
        (lambda optimizer: optimizer, "gives SGD as a learning-rate scheduler, which cannot step"),
        (
            lambda optimizer: torch.optim.lr_scheduler.SequentialLR(optimizer, [], []),
            "model.server_optimizer or its scheduler cannot be made",
        ),
    ],
)
def test_schedulers_that_cannot_work_are_refused(scheduler, message):
    with pytest.raises(ConfigurationError, match=message):
        fit(tiny_federation(server_scheduler=scheduler), rounds=1)


def test_several_optimizers_are_refused():
    class Two(Federation):
        def configure_optimizers(self):
            return [torch.optim.SGD(self.client.parameters(), lr=1.0) for _ in range(2)]

    with pytest.raises(
        ConfigurationError, match="the server needs exactly one optimizer, but its configure_optimizers gives 2"
    ):
        fit(federation(Two), tiny_data(), rounds=1)


def test_it_is_a_setting_and_changes_no_digest_where_it_is_left_out():
    command = ["fit", "--config", str(Path(__file__).parents[2] / "configs/quickstart.yaml"), "--trainer.logger", "false"]
    plain = build(command)
    assert plain.model.server_scheduler is None
    scheduled = build([*command, "--model.server_scheduler", "StepLR", "--model.server_scheduler.step_size", "3"])
    scheduler = scheduled.model.configure_optimizers()["lr_scheduler"]
    assert isinstance(scheduler, torch.optim.lr_scheduler.StepLR)
    assert scheduler.step_size == 3
    assert experiment({"model": {"server_scheduler": None, "seed": 0}}) == experiment({"model": {"seed": 0}})
    assert experiment({"model": {"server_scheduler": {"class_path": "x"}}}) != experiment({"model": {}})
