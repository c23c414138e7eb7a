import math
from typing import Any

import pytest
import torch
from tiny import tiny_data, tiny_tensors

from fl_lightning.data import IID, FederatedDataModule, TensorSamples
from fl_lightning.data.probe import Noise, ProbeBatches, check_probe
from fl_lightning.errors import ConfigurationError

CPU = torch.device("cpu")


def ready(data: FederatedDataModule) -> FederatedDataModule:
    data.setup("fit")
    return data


def test_noise_has_the_form_of_the_models_inputs() -> None:
    images = TensorSamples(torch.zeros(30, 3, 4, 4, dtype=torch.uint8), torch.arange(30) % 2, prepare=lambda x: x.double() - 5)
    data = ready(FederatedDataModule.from_datasets(images, images, partition=IID(num_clients=2), eval_batch_size=8))
    probe = ProbeBatches(Noise(samples=100, low=-1.0, high=3.0), data, CPU, seed=4)
    batches = list(probe)
    assert [len(inputs) for inputs, _ in batches] == [8] * 12 + [4]
    drawn = torch.cat([inputs for inputs, _ in batches])
    assert drawn.shape == (len(probe), 3, 4, 4)
    assert drawn.dtype == torch.float64
    assert -1 <= drawn.min() < -0.9
    assert 2.9 < drawn.max() < 3
    assert len(drawn.unique()) == drawn.numel()
    assert not torch.cat([targets for _, targets in batches]).any()


def test_noise_is_the_same_within_a_round_and_new_in_the_next() -> None:
    probe = ProbeBatches(Noise(samples=10), ready(tiny_data()), CPU, seed=4)
    torch.manual_seed(1)
    first = torch.cat([inputs for inputs, _ in probe])
    torch.manual_seed(2)
    assert torch.equal(torch.cat([inputs for inputs, _ in probe]), first)
    probe.round_number = 1
    assert not torch.equal(torch.cat([inputs for inputs, _ in probe]), first)


def test_samples_inputs_and_nothing() -> None:
    own, data = tiny_tensors(11, seed=9), ready(tiny_data())
    probe = ProbeBatches(own, data, CPU, seed=0)
    assert torch.equal(torch.cat([targets for _, targets in probe]), own.targets)
    assert torch.equal(torch.cat([inputs for inputs, _ in probe]), own.inputs)
    probe = ProbeBatches(own.inputs, data, CPU, seed=0)
    assert torch.equal(torch.cat([inputs for inputs, _ in probe]), own.inputs)
    assert list(ProbeBatches(None, data, CPU, seed=0)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "Noise.samples must be at least 1, got 0"),
        ({"samples": 2.5}, "Noise.samples must be a whole number"),
        ({"low": 1.0}, "Noise needs numbers with low < high, got 1.0 and 1.0"),
        ({"high": math.inf}, "got 0.0 and inf"),
        ({"low": math.nan}, "got nan and 1.0"),
    ],
)
def test_bad_noise_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Noise(**arguments)


def test_noise_for_words_is_refused() -> None:
    words = TensorSamples(torch.zeros(20, 5, dtype=torch.int64), torch.arange(20) % 2)
    data = ready(FederatedDataModule.from_datasets(words, words, partition=IID(num_clients=2)))
    with pytest.raises(ConfigurationError, match=r"tensors of real numbers, but the task's are torch.int64; use the root set"):
        check_probe(Noise(), data, "Rule")
    check_probe(words, data, "Rule")
