"""Data sets and settings that cannot be dealt out are refused in a line."""

from typing import Any

import pytest
import torch
from hypothesis import given as given_by
from hypothesis import strategies as st
from own_data import NAMES, Made, PassesOn, X, Y, batch, pairs, taken
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fl_lightning import ConfigurationError, FederatedDataModule
from fl_lightning.data import IID, MapSamples, TensorSamples


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(X[0], 0)])


class NoLength(Dataset):
    def __getitem__(self, index: int) -> Any:
        return X[index], 0


class Raises(Dataset):
    def __len__(self) -> int:
        raise NotImplementedError("no idea")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (DataLoader(TensorDataset(X, Y)), "of type DataLoader, no map-style data set; give the data set that it reads"),
        (Endless(), "of type Endless, no map-style data set; .* load them into a list"),
        (NoLength(), "of type NoLength, no map-style data set; give a data set with __len__ and __getitem__"),
        (Raises(), "have no length .NotImplementedError: no idea"),
        (Made, r"the class Made, .* give an instance, Made\(\.\.\.\)"),
        (X, r"of type Tensor, .* give torch\.utils\.data\.TensorDataset\(inputs, classes\)"),
        ((X, Y), r"of type tuple, .*TensorDataset\(inputs, classes\), both as tensors"),
        ({"x": X, "y": Y}, "has the entries x, y; give one of them"),
        ("data/train", "of type str, .* not the place of its files"),
        (None, "of type NoneType"),
        ((pair for pair in [(X[0], 0)]), "of type generator"),
        ([], "the training data set is empty"),
        ([7], r"must be \(input, class\) pairs or mappings with a class entry, got int"),
        ([(X[0],)], "got tuple of 1"),
        (TensorDataset(X, Y, Y), r"samples have 3 parts .* say which is the class with target_key="),
        (Made(lambda i: {"x": X[i], "label": 0, "y": 1}), "any of label, y may be the class"),
        (Made(lambda i: (torch.zeros(1 + i % 3), 0)), r"samples 0 and 1 .* \(1,\) and \(2,\).* pass collate_fn="),
        (
            Made(lambda i: ([1, 2] if i < 5 else [1.5, 2.0], 0)),
            r"samples 0 and 5 .* entries of torch\.int64 and torch\.float32",
        ),
        (Made(lambda i: (X[i], 0) if i < 5 else ("a text", 0)), r"samples 0 and 5 .* shapes \(2,\) and None"),
        (Made(lambda i: (Image.new("RGB", (8 + i % 2, 8)), 0)), r"shapes \(3, 8, 8\) and \(3, 8, 9\).*by resizing"),
        (Made(lambda i: (Image.new("CMYK", (8, 8)), 0)), r"PIL's mode CMYK, .* image\.convert\('RGB'\)"),
        (Made(lambda i: (X[i], 1 // (i - 7))), "sample 7 of Made cannot be read .ZeroDivisionError"),
        (Made(lambda i: (X[i], Y[i]), n=45), "sample 4. of Made cannot be read .IndexError: .* as its length says"),
        (Made(lambda i: (X[i], 0.7)), r"class of sample 0 in the training data is 0\.7"),
        (Made(lambda i: (X[i], None if i == 9 else 1)), "class of sample 9 in the training data is None"),
        (Made(lambda i: (object(), 0)), "samples of Made cannot be joined into a batch by default_collate"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(train, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        taken(train, TensorDataset(X, Y))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"collate_fn": 3}, "collate_fn must be a function"),
        ({"collate_fn": lambda samples: samples[0]["x"]}, "2 samples of Made cannot be joined into a batch by <lambda>"),
        ({"target_key": 2}, r"target_key is 2, but samples are tuples of 2; give a place from 0 to 1"),
        ({"target_key": "label"}, "target_key is 'label', but samples are tuples of 2"),
        ({"images": True}, r"images is True, but the input of sample 0 of the training data is torch.float32 of shape \(2,\)"),
        ({"images": "yes"}, "images must be True, False or None, got 'yes'"),
        ({"class_names": "abcd"}, "class_names must be a list of texts, got 'abcd'"),
        ({"class_names": [0, 1, 2, 3]}, "class_names must be a list of texts"),
        ({"eval_batch_size": None}, "eval_batch_size must be a whole number, got None of type NoneType; give an int"),
        ({"root": 5}, r"data\.root must be a RootSet, such as RootSet\(samples=100\), got 5"),
        ({"keys": [1, 2]}, "keys must be one per training sample, got 2 for 40 samples"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        taken(pairs(), **settings)


def test_tensors_with_a_graph_behind_them_are_read_one_by_one():
    data = taken(TensorDataset(X.clone().requires_grad_(), Y))
    assert isinstance(data.train, MapSamples)
    assert torch.equal(batch(data)[0], X[:3])


def test_sparse_tensors_need_a_function_that_joins_them():
    train = TensorDataset(X.to_sparse(), Y)
    with pytest.raises(ConfigurationError, match=r"sparse tensors are not .* pass collate_fn="):
        taken(train)
    data = taken(train, collate_fn=lambda samples: (torch.stack([x.to_dense() for x, _ in samples]), [y for _, y in samples]))
    assert torch.equal(batch(data)[0], X[:3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MapSamples(DataLoader(TensorDataset(X, Y))), "the given data are of type DataLoader, no map-style data set"),
        (lambda: MapSamples(None), "the given data are of type NoneType"),
        (lambda: MapSamples(pairs(), torch.zeros(3)), "a class for every sample, got 3 for 40"),
        (lambda: MapSamples(pairs(), Y + 0.5), r"class of sample 0 in the targets given is 0\.5"),
        (lambda: TensorSamples(X, Y + 0.5), r"class of sample 0 in the targets given is 0\.5"),
        (lambda: TensorSamples(X.numpy(), Y), r"inputs must be a tensor, got ndarray"),  # pyrefly: ignore
    ],
)
def test_samples_are_made_of_classes_too(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("classes", [torch.eye(4)[Y], Y[:, None], Y.double(), Y.tolist(), [NAMES[y] for y in Y]])
def test_classes_of_samples_may_be_stated_in_any_form(classes):
    assert torch.equal(TensorSamples(X, classes).targets, Y)
    assert torch.equal(MapSamples(pairs(), classes).targets, Y)


def test_a_module_of_the_users_own_must_load_samples():
    class Own(FederatedDataModule):
        def load(self) -> Any:
            from fl_lightning.data import Task

            return Task(TensorDataset(X, Y), TensorDataset(X, Y), 4)  # pyrefly: ignore[bad-argument-type]

    with pytest.raises(ConfigurationError, match=r"load\(\) gives TensorDataset as training data, not Samples; wrap"):
        Own(IID(num_clients=2)).setup("fit")


@given_by(st.permutations(range(12)), st.integers(1, 12), st.booleans())
def test_any_part_in_any_order_has_the_classes_of_its_samples(order, count, held):
    rows = order[:count]
    data = taken(PassesOn(pairs(n=12, targets=Y[:12].tolist()), rows), TensorDataset(X, Y), num_classes=4, images=held and None)
    found = data.train.batch(torch.arange(count))
    assert torch.equal(found[0], X[rows])
    assert torch.equal(found[1], Y[rows])
