"""Functions that join samples in another order keep their classes; those that lose them are refused before training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from fl_lightning import ConfigurationError, FederatedDataModule
from fl_lightning.data import IID

N = 12
INPUTS = torch.arange(float(N))[:, None]
CLASSES = (torch.arange(N) * 5 + 1) % 3


def loader(collate_fn: Any, **settings: Any) -> Any:
    given = TensorDataset(INPUTS, CLASSES)
    data = FederatedDataModule.from_datasets(
        given, given, partition=IID(num_clients=2), collate_fn=collate_fn, eval_batch_size=5, **settings
    )
    data.setup("fit")
    return data.val_dataloader()[0]


def backwards(samples: list[Any]) -> Any:
    return default_collate(samples[::-1])


def mapped(samples: list[Any]) -> Any:
    inputs, classes = backwards(samples)
    return {"x": inputs, "labels": classes}


def with_lengths(samples: list[Any]) -> Any:
    inputs, classes = backwards(samples)
    return inputs, torch.full((len(samples),), 7), classes


def nested(samples: list[Any]) -> Any:
    inputs, classes = backwards(samples)
    return inputs, {"y": classes[:, None]}


def one_hot(samples: list[Any]) -> Any:
    inputs, classes = backwards(samples)
    return inputs, torch.nn.functional.one_hot(classes, 3).float()


def listed(samples: list[Any]) -> Any:
    return backwards(samples)[0], [int(y) for _, y in samples[::-1]]


def as_object(samples: list[Any]) -> Any:
    inputs, classes = backwards(samples)
    return SimpleNamespace(x=inputs, y=classes)


def inputs_of(batch: Any) -> Tensor:
    if isinstance(batch, dict):
        return batch["x"]
    return batch.x if isinstance(batch, SimpleNamespace) else batch[0]


@pytest.mark.parametrize("collate_fn", [default_collate, backwards, mapped, with_lengths, nested, one_hot, listed, as_object])
def test_every_input_meets_its_own_class(collate_fn):
    for batch, targets in loader(collate_fn):
        assert targets.tolist() == CLASSES[inputs_of(batch).flatten().long()].tolist()


@pytest.mark.parametrize(
    ("collate_fn", "message"),
    [
        (lambda samples: default_collate([s for s in samples if s[0] != 1] or samples), "of 5 samples has 4 rows"),
        (lambda samples: default_collate(samples)[0], "of 5 samples carries no classes"),
        (lambda samples: (default_collate(samples)[0], torch.zeros(len(samples)).long()), "carries other classes"),
    ],
)
def test_a_batch_that_lost_its_classes_is_refused_before_training(collate_fn, message):
    with pytest.raises(ConfigurationError, match=message):
        loader(collate_fn)
