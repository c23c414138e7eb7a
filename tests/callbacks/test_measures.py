"""Metrics of every kind of task: what they are, that ranks change no bit of them, and which are refused."""

import json
from typing import Any

import lightning as L
import pytest
import torch
from ranks import on_ranks
from tiny import tiny_trainer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, PearsonCorrCoef, R2Score
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassF1Score,
    MultilabelF1Score,
)
from torchmetrics.text import Perplexity

from fl_lightning import BackdoorMetrics, CohortSampler, ConfigurationError, FederatedDataModule, Federation, RunRecord
from fl_lightning.aggregators import FedAvg
from fl_lightning.attacks import Attack, LabelFlip
from fl_lightning.callbacks.measures import Measure, Share, check_metric, merged
from fl_lightning.data import IID, MultiLabel, Regression, TensorSamples, Tokens
from fl_lightning.models import MLP, WordLSTM

V = 7


class Numbers(L.LightningModule):
    """A line, or a logit for each of several labels."""

    def __init__(self, outputs: int, labels: bool = False) -> None:
        super().__init__()
        self.layer, self.labels = nn.Linear(4, outputs), labels

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        output, targets = self(batch[0]), batch[1].float()
        return binary_cross_entropy_with_logits(output, targets) if self.labels else mse_loss(output.squeeze(1), targets)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.2)


def inputs_of(n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def sequences(n: int, seed: int) -> TensorSamples:
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, V, (n, 6), generator=draws)
    targets = (rows + 1) % V  # 0 is padding, also within
    targets[torch.arange(6) >= torch.randint(1, 7, (n, 1), generator=draws)] = 0
    targets[:, 0] = targets[:, 0].clamp(min=1)
    return TensorSamples(rows, targets, outcome=Tokens(padding=0, perplexity=True))


class Stamped(Attack):
    """An attack of the user's: inputs far out shall give 5, or the first label alone."""

    outcomes = (Regression, MultiLabel)

    def stamp(self, test):
        assert isinstance(test, TensorSamples)
        wanted = torch.full_like(test.targets, 5.0) if test.targets.ndim == 1 else torch.tensor([[1, 0]]).expand(len(test), 2)
        return test.with_inputs(test.inputs.abs() + 3).relabel(wanted)


TASKS: dict[str, Any] = {
    "tokens": (
        lambda: WordLSTM(num_words=V, dimension=6, hidden=6, optimizer=lambda p: torch.optim.SGD(p, lr=1.0)),
        sequences,
        [LabelFlip(source_label=2, target_label=3)],
        {"own": MulticlassAccuracy(num_classes=V, average="micro"), "again": Perplexity()},
    ),
    "labels": (
        lambda: Numbers(2, labels=True),
        lambda n, seed: TensorSamples(x := inputs_of(n, seed), (x[:, :2] > 0).long(), outcome=MultiLabel()),
        [Stamped()],
        {"f1": MultilabelF1Score(num_labels=2)},
    ),
    "numbers": (
        lambda: Numbers(1),
        lambda n, seed: TensorSamples(x := inputs_of(n, seed), x.sum(1), outcome=Regression(tolerance=9.0)),
        [Stamped()],
        {"mae": MeanAbsoluteError(), "mse": MeanSquaredError()},
    ),
    "classes": (
        lambda: MLP(sizes=(4, 8, 3)),
        lambda n, seed: TensorSamples(x := inputs_of(n, seed), x[:, :3].argmax(1)),
        [LabelFlip(source_label=1, target_label=0)],
        {"f1": MulticlassF1Score(num_classes=3, average="macro"), "auroc": MulticlassAUROC(num_classes=3)},
    ),
}


def run(kind: str, devices: int) -> dict[str, float]:
    make, samples, attacks, metrics = TASKS[kind]
    torch.manual_seed(0)
    client = make()
    data = FederatedDataModule.from_datasets(samples(60, 0), samples(41, 1), partition=IID(num_clients=5), eval_batch_size=6)
    federation = Federation(client, FedAvg(), attacks, CohortSampler(clients_per_round=4, malicious_fraction=0.3))
    trainer = tiny_trainer(2, devices=devices, callbacks=[BackdoorMetrics(dict(metrics)), RunRecord()], default_root_dir=kind)
    trainer.fit(federation, data)
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    if devices == 1:
        check_against_one_batch(kind, federation, data, found)
    return found


def check_against_one_batch(kind: str, federation: Any, data: FederatedDataModule, found: dict[str, float]) -> None:
    """What torchmetrics makes of the whole test set at once; sums in another order differ in the last digits."""
    samples, client = data.evaluation["clean"], federation.client.eval()
    inputs, targets = samples.batch(torch.arange(len(samples)))
    with torch.no_grad():
        output = client(inputs)
    if kind == "tokens":
        counted = targets != 0
        expected = {
            "acc": MulticlassAccuracy(num_classes=V, average="micro", ignore_index=0)(output.movedim(2, 1), targets),
            "perplexity": Perplexity(ignore_index=0)(output, targets),
            "again": output[counted].log_softmax(1)[torch.arange(int(counted.sum())), targets[counted]].mean().neg().exp(),
            "asr": (output.argmax(2) == 3)[targets == 2].double().mean(),
        }
        expected["own"] = expected["acc"]
    elif kind == "labels":
        expected = {"acc": ((output > 0) == targets.bool()).all(1).double().mean()}
        expected["f1"] = MultilabelF1Score(num_labels=2)(output, targets)
    elif kind == "numbers":
        expected = {"acc": R2Score()(output[:, 0], targets), "mae": (output[:, 0] - targets).abs().mean()}
        stamped = data.evaluation["stamped"].batch(torch.arange(41))[0]
        with torch.no_grad():
            expected["asr"] = ((client(stamped)[:, 0] - 5).abs() <= 9).double().mean()
    else:
        expected = {
            "acc": (output.argmax(1) == targets).double().mean(),
            "auroc": MulticlassAUROC(num_classes=3)(output, targets),
        }
    for name, value in expected.items():
        assert found[f"val/{name}"] == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def run_all(devices: int) -> dict[str, dict[str, float]]:
    return {kind: run(kind, devices) for kind in TASKS}


def test_no_bit_of_any_metric_depends_on_ranks(tmp_path):
    alone = run_all(1)
    for kind, found in alone.items():
        assert set(found) >= {"val/acc", "val/asr", *(f"val/{name}" for name in TASKS[kind][3])}
        record = json.loads((tmp_path / kind / "run.json").read_text())
        assert record["metrics"] == {name[4:]: value for name, value in found.items() if name[4:7] not in ("acc", "asr")}
    for world in (2, 3):
        assert on_ranks(world, run_all, world) == [alone] * world


BATCHES = [(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])), (torch.tensor([[0.0, 3.0]]), torch.tensor([1]))]


def test_states_are_merged_in_the_order_of_batches():
    metric: Any = MulticlassAUROC(num_classes=2, thresholds=None)
    measure: Any = Measure(metric, torch.device("cpu"))
    for number, batch in enumerate(BATCHES):
        measure.update(number, *batch)
    value = merged(measure.metric, [state for _, state in measure.states])
    in_order = torch.cat([logits for logits, _ in BATCHES]).softmax(1)
    assert torch.equal(torch.cat(measure.metric.preds), in_order)
    for batch in BATCHES:
        metric.update(*batch)
    assert value == metric.compute()


def test_a_share_is_of_what_counts_on_all_ranks_and_undefined_without_any():
    ranks = [Share(torch.device("cpu")) for _ in range(2)]
    hits = [torch.tensor([[True, False], [True, True]]), torch.tensor([True]), torch.tensor([False, True, True])]
    counted = [torch.tensor([[True, True], [True, False]]), torch.tensor([True]), torch.tensor([True, False, True])]
    for number in range(3):
        ranks[number % 2].update(number, hits[number], counted[number])
    value = ranks[0].value([rank.found for rank in ranks])
    assert value.dtype == torch.float64
    assert float(value) == 4 / 6
    assert Share(torch.device("cpu")).value([[0, 0], [0, 0]]).isnan()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("f1", r"must be a torchmetrics object, such as .*, got 'f1'"),
        (MulticlassF1Score, "must be a torchmetrics object"),
        (MetricCollection([MulticlassAccuracy(num_classes=2)]), "must be a torchmetrics object"),
        (BinaryAccuracy(), r"BinaryAccuracy cannot be fed with predictions and targets of shapes \(2, 2\) and \(2,\)"),
        (MulticlassAccuracy(num_classes=2, average=None), r"gives a tensor of shape \(2,\); it must give one number"),
    ],
)
def test_metrics_that_cannot_be_used_are_refused(metric, message):
    with pytest.raises(ConfigurationError, match=f"(?s)^metrics.f1.*{message}"):
        check_metric("metrics.f1", metric, BATCHES)


class TooEarly(MeanAbsoluteError):  # noqa: N818  no error but a metric
    """Divides too early, so that batches of different sizes count alike."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.sum_abs_error = (preds - target).abs().mean()
        self.total = torch.tensor(1)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (PearsonCorrCoef(), "what PearsonCorrCoef knows of two batches cannot be merged"),
        (TooEarly(), r"TooEarly gives 1 for two batches in a row, but 2 for both merged"),
    ],
)
def test_metrics_that_ranks_could_not_share_are_refused(metric, message):
    parts = [(torch.tensor([1.0, 5.0]), torch.tensor([0.0, 0.0])), (torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))]
    with pytest.raises(ConfigurationError, match=message):
        check_metric("metrics.r", metric, parts)


@pytest.mark.parametrize("name", ["acc", "asr_x", "a b", "", "round", "perplexity", 1])
def test_names_that_are_taken_or_none_are_refused(name):
    with pytest.raises(ConfigurationError, match=r"BackdoorMetrics.metrics has the name"):
        BackdoorMetrics({name: MeanAbsoluteError()})


def test_a_metric_is_tried_before_the_first_round():
    make, samples, attacks, _ = TASKS["classes"]
    data = FederatedDataModule.from_datasets(samples(60, 0), samples(41, 1), partition=IID(num_clients=5))
    federation = Federation(make(), FedAvg(), attacks, CohortSampler(clients_per_round=4, malicious_fraction=0.0))
    trainer = tiny_trainer(1, callbacks=[BackdoorMetrics({"r": R2Score()})])
    with pytest.raises(ConfigurationError, match=r"BackdoorMetrics.metrics.r: R2Score cannot be fed with"):
        trainer.fit(federation, data)
    assert federation.client_updates == 0
