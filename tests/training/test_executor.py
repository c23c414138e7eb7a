"""The choice of how local steps are taken: by measurement, never at the cost of a bit or of a run."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from tiny import TinyClient, fit, tiny_federation, tiny_tensors
from torch import Tensor

from fl_lightning import LocalTraining
from fl_lightning.errors import ConfigurationError
from fl_lightning.models import MLP
from fl_lightning.modules.recordable import python_state
from fl_lightning.training import executor as executors
from fl_lightning.training.executor import LocalExecutor
from fl_lightning.training.recorded_steps import RecordedSteps
from fl_lightning.updates.layout import Snapshot, named_state, parameter_layout

SIZES = (6, 16, 3)


def weights_after(executor: LocalExecutor, clients: int = 6) -> Tensor:
    """(clients, d) what each client of 30 samples ends with, all from the same start."""
    found, executor.start = [], Snapshot(executor.module)
    for i in range(clients):

        def draws(i: int = i) -> torch.Generator:
            torch.manual_seed(i)
            return torch.Generator().manual_seed(i)

        executor.train(tiny_tensors(30, seed=i), draws)
        found.append(torch.cat([weight.flatten() for weight in executor.weights]))
        executor.start_anew()
    return torch.stack(found)


def made(executor: str, module: Any = None) -> LocalExecutor:
    torch.manual_seed(0)
    return LocalExecutor(module or MLP(sizes=SIZES), LocalTraining(batch_size=4, executor=executor))  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds that a client takes in each way, in place of real ones; local training has taken long enough at once."""
    monkeypatch.setattr(executors, "SECONDS_BEFORE_TRIAL", -1.0)
    cost, now = {"sequential": 1.0, "graph": 0.5}, [0.0]
    real = LocalTraining.train

    def train(self: LocalTraining, *args: Any, stepper: Any = None, **kwargs: Any) -> Any:
        now[0] += cost["sequential" if stepper is None else "graph"]
        return real(self, *args, stepper=stepper, **kwargs)

    monkeypatch.setattr(LocalTraining, "train", train)
    monkeypatch.setattr(executors.time, "perf_counter", lambda: now[0])
    return cost


def test_auto_takes_the_faster(clock: dict[str, float]) -> None:
    expected = weights_after(made("sequential"))
    executor = made("auto")
    assert torch.equal(weights_after(executor), expected)
    assert (executor.chosen, executor.reason) == ("graph", "recorded steps of MLP take 0.50 times as long")
    clock["graph"] = 1.5
    executor = made("auto")
    assert torch.equal(weights_after(executor), expected)
    assert (executor.chosen, executor.reason) == ("sequential", "recorded steps of MLP take 1.50 times as long")
    assert executor.recorded is None


def test_once_steps_are_recorded_further_kinds_have_to_pay(clock: dict[str, float]) -> None:
    executor = made("graph")
    weights_after(executor)
    assert executor.recorded is not None
    assert executor.recorded.recordings.thrifty


def test_auto_does_not_measure_before_it_could_pay() -> None:
    executor = made("auto")
    assert torch.equal(weights_after(executor), weights_after(made("sequential")))
    assert executor.chosen is None


def test_auto_records_what_says_that_it_can_be(clock: dict[str, float]) -> None:
    class Other(MLP):
        """A subclass must say so itself."""

    assert made("auto", Other(sizes=SIZES)).reason == "Other does not say that it is recordable"
    executor = made("graph", Other(sizes=SIZES))
    weights_after(executor)
    assert executor.chosen == "graph"


def test_a_copy_makes_its_own_recordings(clock: dict[str, float]) -> None:
    executor = made("graph")
    weights_after(executor)
    other = copy.deepcopy(executor)
    assert (executor.chosen, other.chosen, other.recorded) == ("graph", None, None)


@pytest.mark.parametrize("asked", ["auto", "graph"])
def test_other_bits_are_refused(clock: dict[str, float], asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RecordedSteps.step

    def step(self: RecordedSteps, *args: Any) -> None:
        real(self, *args)
        self.state[0].view(-1)[0] += 1e-3

    monkeypatch.setattr(RecordedSteps, "step", step)
    executor = made(asked)
    assert torch.equal(weights_after(executor), weights_after(made("sequential")))
    assert (executor.chosen, executor.reason) == ("sequential", "recorded steps of MLP give other bits")


@pytest.mark.parametrize(
    ("anywhere", "usual", "error", "chosen"),
    [
        (True, 1e-6, 1e-6, "graph"),
        (True, 1e-6, 1e-4, "sequential"),
        (True, 0.1, 0.1, "sequential"),  # that is no rounding
        (False, 1e-6, 1e-6, "sequential"),
    ],
)
def test_where_sequential_training_is_not_the_same_twice_recorded_steps_may_differ_as_much(
    clock: dict[str, float], anywhere: bool, usual: float, error: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, noise = LocalTraining.train, torch.Generator().manual_seed(0)

    def train(self: LocalTraining, module: Any, *args: Any, stepper: Any = None, **kwargs: Any) -> Any:
        logs = real(self, module, *args, stepper=stepper, **kwargs)
        for weight in module.parameters():
            weight.data += torch.randn(weight.shape, generator=noise) * (usual if stepper is None else error)
        return logs

    monkeypatch.setattr(LocalTraining, "train", train)
    monkeypatch.setattr(executors, "adds_in_any_order", lambda device: anywhere)
    executor = made("auto")
    weights_after(executor)
    assert executor.chosen == chosen


def test_whole_numbers_have_no_noise() -> None:
    start, end, again = ([torch.zeros(3), torch.tensor([True])] for _ in range(3))
    end[0] += 1
    again[0] += 1.001
    found = [torch.full((3,), 1.001), torch.tensor([True])]
    assert executors.agree(found, end, again, start)
    found[1] = ~found[1]
    assert not executors.agree(found, end, again, start)


def test_a_cpu_and_a_gpu_that_is_told_so_add_in_order() -> None:
    assert not executors.adds_in_any_order(torch.device("cpu"))
    assert executors.adds_in_any_order(torch.device("cuda"))
    torch.use_deterministic_algorithms(True)
    try:
        assert not executors.adds_in_any_order(torch.device("cuda"))
    finally:
        torch.use_deterministic_algorithms(False)


class Counting(MLP):
    recordable = True

    def __init__(self) -> None:
        super().__init__(sizes=SIZES)
        self.steps_taken = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps_taken += 1
        return super().training_step(batch, batch_idx)


class Warming(MLP):
    """Its first batch counts less: a recording of another batch would not know."""

    recordable = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (0.1 if batch_idx == 0 else 1.0)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Counting, "steps of Counting are not recorded: its steps_taken changes as it trains"),
        (
            lambda: Warming(sizes=SIZES),
            "steps of Warming are not recorded: its step looks at batch_idx, which changes from step to step",
        ),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "graph"])
def test_what_a_recording_would_miss_is_seen(clock: dict[str, float], asked: str, module: Any, reason: str) -> None:
    executor = made(asked, module())
    found = weights_after(executor)
    torch.manual_seed(0)
    assert (executor.chosen, executor.reason) == ("sequential", reason)
    assert torch.equal(found, weights_after(made("sequential", executor.module)))


class ReadsBack(MLP):
    recordable = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * 2 if loss.item() > 1e9 else loss


@pytest.mark.parametrize("asked", ["auto", "graph"])
def test_what_cannot_be_recorded_falls_back_with_one_line(
    clock: dict[str, float], asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    executor = made(asked, ReadsBack(sizes=SIZES))
    with caplog.at_level(logging.INFO, logger="fl_lightning"):
        found = weights_after(executor)
    assert torch.equal(found, weights_after(made("sequential", executor.module)))
    (record,) = caplog.records
    assert record.message.startswith("local training is sequential: steps of ReadsBack are not recorded: ")
    assert record.levelno == (logging.WARNING if asked == "graph" else logging.INFO)


def test_graph_is_taken_from_the_first_client_on() -> None:
    executor = made("graph")
    assert torch.equal(weights_after(executor), weights_after(made("sequential")))
    assert executor.recorded is not None
    assert executor.recorded.recordings


@pytest.mark.parametrize("make", [lambda: MLP(sizes=SIZES), TinyClient], ids=["no buffers", "BatchNorm"])
def test_recorded_steps_leave_parameters_where_they_were(make: Any) -> None:
    executor = made("graph", make())
    weights_after(executor)
    before = [(name, tensor.clone()) for name, tensor in named_state(executor.module)]
    executor.train(tiny_tensors(30), lambda: torch.Generator().manual_seed(0))
    assert executor.ahead
    parameters = [name for name, _ in executor.module.named_parameters()]
    now = dict(named_state(executor.module))
    assert all(torch.equal(now[name], tensor) for name, tensor in before if name in parameters)
    assert not torch.equal(executor.weights[0], now[parameters[0]])
    executor.start_anew()
    assert not executor.ahead
    assert all(torch.equal(now, tensor) for (_, now), (_, tensor) in zip(named_state(executor.module), before, strict=True))


class Scaled(MLP):
    recordable = True
    scale = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.scale


def test_what_changes_between_rounds_is_seen() -> None:
    module = Scaled(sizes=SIZES)
    executor = made("graph", module)
    for module.scale in (1.0, 0.5):
        plain = made("sequential", copy.deepcopy(module))
        assert torch.equal(weights_after(executor), weights_after(plain))
    assert executor.chosen == "graph"


def test_what_changes_under_a_client_that_others_look_at_is_seen() -> None:
    """An attack may do more to the module than to its weights."""

    def all_of(executor: LocalExecutor) -> list[Tensor]:
        module: Any = executor.module
        executor.start, found = Snapshot(module), []

        def change(step: int, steps: int) -> None:
            module.scale = 0.5

        for after_step in (None, None, change, None):
            executor.train(tiny_tensors(30), lambda: torch.Generator().manual_seed(0), after_step)
            found.append(torch.cat([weight.flatten() for weight in executor.weights]))
            executor.start_anew()
        return found

    torch.manual_seed(0)
    module = Scaled(sizes=SIZES)
    expected = all_of(made("sequential", copy.deepcopy(module)))
    executor = made("graph", module)
    assert all(torch.equal(a, b) for a, b in zip(all_of(executor), expected, strict=True))
    assert not torch.equal(expected[0], expected[2])
    assert torch.equal(expected[0], expected[3])  # what a client's turn has changed is put back after it


def test_a_client_whose_recorded_steps_fail_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = made("graph", TinyClient(dropout=0.5))
    module = copy.deepcopy(executor.module)
    real, after_choice = RecordedSteps.step, []

    def step(self: RecordedSteps, *args: Any) -> None:
        after_choice.append(executor.chosen == "graph")
        if sum(after_choice) == 12:
            raise RuntimeError("out of memory")
        real(self, *args)

    monkeypatch.setattr(RecordedSteps, "step", step)
    assert torch.equal(weights_after(executor), weights_after(made("sequential", module)))
    assert executor.reason == "steps of TinyClient are not recorded: RuntimeError: out of memory"


@pytest.mark.parametrize("executor", ["graph", "auto"])
def test_a_run_ends_with_the_same_bits(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "SECONDS_BEFORE_TRIAL", 0.0)

    def run(executor: Any) -> tuple[Tensor, Any]:
        federation = tiny_federation(local=LocalTraining(epochs=1.5, batch_size=8, executor=executor))
        trainer = fit(federation, rounds=3)
        return federation.parameters_layout.flatten(federation.client), trainer.callback_metrics["client/loss"]

    expected, found = run("sequential"), run(executor)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]


def test_an_executor_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be auto, sequential, stacked or graph, got 'fast'"):
        LocalTraining(executor="fast")  # type: ignore[arg-type]


def test_python_state_is_what_a_step_may_change() -> None:
    module = TinyClient()
    before = python_state(module)
    module.net[0].seen = [1]  # type: ignore[assignment]
    module.lr = 0.2
    assert {name for name, value in python_state(module).items() if before.get(name) != value} == {"net.0.seen", "lr"}


# ---- stacked ---------------------------------------------------------------------------------------------------------


def run(module: Any, executor: Any, rounds: int = 2) -> tuple[Tensor, Any]:
    """The weights that a run ends with, and its clients."""
    federation = tiny_federation(client=module, local=LocalTraining(epochs=1.5, batch_size=8, executor=executor))
    fit(federation, rounds=rounds)
    return federation.parameters_layout.flatten(federation.client), federation.clients


def test_a_stacked_run_ends_close_to_a_sequential_one() -> None:
    torch.manual_seed(0)
    module = MLP(sizes=SIZES)
    expected, _ = run(copy.deepcopy(module), "sequential")
    found, clients = run(copy.deepcopy(module), "stacked")
    assert clients.way == "stacked"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(found, parameter_layout(module).flatten(module))


def test_what_cannot_be_stacked_is_trained_sequentially_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    module = TinyClient(dropout=0.5)
    expected, _ = run(copy.deepcopy(module), "sequential")
    with caplog.at_level(logging.WARNING, logger="fl_lightning"):
        found, clients = run(copy.deepcopy(module), "stacked")
    assert torch.equal(found, expected)
    assert clients.way == "stacked"  # it is tried again in every round
    line, *_ = [record.message for record in caplog.records if "in a stack" in record.message]
    assert line.startswith("in round 0 clients are trained one after the other: TinyClient cannot be trained in a stack: ")


# ---- ranks and resume ------------------------------------------------------------------------------------------------


def bits_on_ranks(executors_of_ranks: list[str], folder: str, rounds: int) -> tuple[bytes, str]:
    """On a rank: the weights after so many rounds of a run that goes on from where `folder` left it, and how it trained."""
    executor: Any = executors_of_ranks[dist.get_rank()]
    federation = tiny_federation(local=LocalTraining(epochs=1.5, batch_size=8, executor=executor))
    checkpoint = Path(folder) / "last.ckpt"
    trainer = fit(
        federation, rounds=rounds, devices=dist.get_world_size(), ckpt_path=checkpoint if checkpoint.exists() else None
    )
    trainer.save_checkpoint(checkpoint)
    return federation.parameters_layout.flatten(federation.client).numpy().tobytes(), federation.clients.way


def test_recorded_steps_give_the_same_bits_on_any_ranks_and_after_a_resume(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    ((expected, _),) = on_ranks(1, bits_on_ranks, ["sequential"], str(tmp_path / "a"), 4)
    mixed = on_ranks(3, bits_on_ranks, ["graph", "sequential", "graph"], str(tmp_path / "b"), 4)
    assert [bits for bits, _ in mixed] == [expected] * 3
    assert [way for _, way in mixed] == ["graph", "sequential", "graph"]
    on_ranks(2, bits_on_ranks, ["graph", "graph"], str(tmp_path / "c"), 2)
    ((resumed, _),) = on_ranks(1, bits_on_ranks, ["graph"], str(tmp_path / "c"), 4)
    assert resumed == expected
