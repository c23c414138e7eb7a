"""The digits and the pool of digits on their side."""

import pytest
import torch
from sklearn.datasets import load_digits

from fl_lightning.data.base import TensorSamples
from fl_lightning.data.digits import MEAN_INK, Digits, RotatedDigits, _digits
from fl_lightning.data.joined import join
from fl_lightning.data.partition import IID
from fl_lightning.errors import ConfigurationError


def loaded(**settings) -> Digits:
    data = Digits(IID(num_clients=20), **settings)
    data.setup("fit")
    return data


def rows(samples: TensorSamples) -> set[bytes]:
    return {image.tobytes() for image in samples.inputs.numpy()}


def tensors(samples) -> TensorSamples:
    assert isinstance(samples, TensorSamples)
    return samples


def test_images_and_classes_are_those_of_scikit_learn() -> None:
    pixels, classes = load_digits(return_X_y=True)
    images, targets = _digits()
    assert torch.equal(images, torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16 - MEAN_INK)
    assert torch.equal(targets, torch.as_tensor(classes, dtype=torch.int64))


def test_shapes_and_scale() -> None:
    data = loaded()
    inputs, targets = data.train.batch(torch.arange(len(data.train)))
    assert inputs.shape == (1438, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert abs(float(inputs.mean())) < 0.05
    assert float(inputs.max() - inputs.min()) == pytest.approx(1.0)
    assert targets.dtype == torch.int64
    assert len(data.evaluation["clean"]) == 359
    assert data.task is not None
    assert data.task.num_classes == 10


def test_split_is_balanced_and_disjoint_and_covers_the_data() -> None:
    data = loaded()
    train, test = tensors(data.train), tensors(data.evaluation["clean"])
    per_class = torch.cat([train.targets, test.targets]).bincount()
    assert int(per_class.sum()) == 1797
    assert (test.targets.bincount() - 0.2 * per_class).abs().max() <= 0.5
    assert not rows(train) & rows(test)  # no two images of the data set are equal


def test_split_does_not_depend_on_the_seed_but_the_partition_does() -> None:
    one, other = loaded(seed=1), loaded(seed=2)
    assert torch.equal(tensors(one.train).inputs, tensors(other.train).inputs)
    assert torch.equal(tensors(one.evaluation["clean"]).inputs, tensors(other.evaluation["clean"]).inputs)
    assert not torch.equal(one.clients[0], other.clients[0])


@pytest.mark.parametrize("digit", [0, 1, 7])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_pool_holds_turned_images_of_its_own_side_of_the_split(digit: int, turns: int) -> None:
    data, pool = loaded(), RotatedDigits(digit=digit, turns=turns)
    assert pool.label == digit
    for turned, upright in ((pool.train(), tensors(data.train)), (pool.test(), tensors(data.evaluation["clean"]))):
        assert (turned.targets == digit).all()
        back = TensorSamples(turned.inputs.rot90(-turns, (2, 3)), turned.targets)
        assert rows(back) == rows(upright.subset(torch.nonzero(upright.targets == digit).squeeze(1)))


def test_pool_joins_the_digits_in_one_tensor() -> None:
    data, pool = loaded(), RotatedDigits()
    both = join([data.client(0), pool.train()])
    assert isinstance(both, TensorSamples)
    assert len(both) == len(data.client(0)) + len(pool.train())


def test_pool_is_read_once() -> None:
    pool = RotatedDigits()
    assert pool.train() is pool.train()
    assert pool.test() is pool.test()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotatedDigits(digit=10), "digit must be from 0 to 9, got 10"),
        (lambda: RotatedDigits(turns=0), "turns must be 1, 2 or 3 quarter turns, got 0"),
        (lambda: RotatedDigits(test_fraction=1.0), "pool.test_fraction must lie between 0 and 1, got 1.0"),
        (lambda: loaded(test_fraction=0.0), "data.test_fraction must lie between 0 and 1, got 0.0"),
        (lambda: loaded(test_fraction=0.001), "both must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()
