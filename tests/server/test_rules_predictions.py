"""What a rule predicts is what Acc and ASR count."""

from pathlib import Path
from typing import Any

import pytest
import torch
from probing import Probing
from tiny import CLASSES, fit, tiny_data, tiny_federation, tiny_trainer

from fl_lightning import BackdoorMetrics, ConfigurationError
from fl_lightning.aggregators import FedAvg, NearestNeighborMixing


class Constant(FedAvg):
    """Predicts class 1 with a probability that `accepts` is asked about."""

    share = 0.6

    def predict(self, module, batch, generator):
        rest = (1 - self.share) / (CLASSES - 1)
        return torch.full((len(batch[0]), CLASSES), rest).index_fill(1, torch.tensor([1]), self.share)

    def accepts(self, probabilities):
        self.asked = probabilities
        return probabilities.amax(1) >= 0.5


def metrics(trainer: Any) -> dict[str, float]:
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.endswith(("acc", "asr"))}


@pytest.mark.parametrize("around", [False, True], ids=["alone", "inside"])
def test_accuracy_is_that_of_the_rules_predictions_that_it_accepts(around: bool) -> None:
    rule, data = Constant(), tiny_data()
    of = NearestNeighborMixing(rule=rule, num_malicious=2) if around else rule
    found = metrics(fit(tiny_federation(aggregator=of), data, rounds=1, callbacks=[BackdoorMetrics()]))
    assert found["val/acc"] == pytest.approx(float((data.evaluation["clean"].targets == 1).double().mean()))
    assert found["val/asr"] == 0  # the target is class 0
    assert torch.equal(rule.asked[0], torch.tensor([0.2, 0.6, 0.2]))  # probabilities as they are, without another softmax
    rule.share = 0.4
    found = metrics(fit(tiny_federation(aggregator=of), data, rounds=1, callbacks=[BackdoorMetrics()]))
    assert found["val/acc"] == 0


def test_a_checkpoint_is_evaluated_as_it_was_in_training(tmp_path: Path) -> None:
    data, federation = tiny_data(), tiny_federation(aggregator=Probing())
    trainer = fit(federation, data, rounds=2, callbacks=[BackdoorMetrics()])
    found = metrics(trainer)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    other = tiny_federation(aggregator=Probing())
    alone = tiny_trainer(callbacks=[BackdoorMetrics()])
    alone.validate(other, data, ckpt_path=tmp_path / "two.ckpt", verbose=False)
    assert metrics(alone) == found
    predicted: Any = tiny_trainer().predict(other, data, ckpt_path=tmp_path / "two.ckpt")
    shares = torch.cat(predicted)
    targets = data.evaluation["clean"].targets
    accepted = (shares.argmax(1) == targets) & (shares.amax(1) > 0.5)
    assert float(accepted.double().mean()) == pytest.approx(found["val/acc"])


def test_draws_differ_from_round_to_round() -> None:
    drawn: list[int] = []

    class Drawing(Constant):
        def predict(self, module, batch, generator):
            drawn.append(int(torch.randint(2**31, (1,), generator=generator)))
            return super().predict(module, batch, generator)

    fit(tiny_federation(aggregator=Drawing()), rounds=2, callbacks=[BackdoorMetrics()])
    assert len(set(drawn)) == len(drawn) > 8


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda batch: torch.zeros(len(batch[0]), dtype=torch.int64),
            r"Bad.predict must .* got a tensor of torch.int64",
        ),
        (lambda batch: "class 1", r"Bad.predict must return logits or probabilities \(b, C\), got 'class 1'"),
        (lambda batch: torch.zeros(3, CLASSES), r"Bad.predict gives an output of shape \(3, 3\) for 2 samples"),
        (lambda batch: torch.zeros(len(batch[0]), 2), r"Bad.predict gives .* the task has 3 classes"),
    ],
    ids=["classes", "text", "rows", "columns"],
)
def test_predictions_that_are_none_are_refused_before_training(returned: Any, message: str) -> None:
    class Bad(FedAvg):
        def predict(self, module, batch, generator):
            return returned(batch)

        def forward(self, shard):
            raise AssertionError("training has begun")

    with pytest.raises(ConfigurationError, match=message):
        fit(tiny_federation(aggregator=Bad()), rounds=1)
