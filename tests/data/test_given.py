"""Data sets of every kind that a user may hand over: what is held, what is read and what is believed."""

import collections
import random
from functools import partial
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from own_data import NAMES, Made, N, PassesOn, X, Y, batch, classes, number, pairs, taken
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from fl_lightning import ConfigurationError
from fl_lightning.data import MapSamples, TensorSamples, given

PIXELS = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
Pair = collections.namedtuple("Pair", "x y")


# ---- what is taken ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train",
    [
        TensorDataset(X, Y),
        TensorDataset(X, Y.to(torch.uint8)[:, None]),
        TensorDataset(X, torch.eye(4)[Y]),
        Subset(TensorDataset(X, Y), range(N)),
        ConcatDataset([TensorDataset(X[:9], Y[:9]), TensorDataset(X[9:], Y[9:])]),
        pairs(),
        Made(lambda i: [X[i], number(i)]),
        Made(lambda i: (X[i].numpy(), Y[i].numpy())),
        Made(lambda i: (X[i].tolist(), [number(i)])),
        Made(lambda i: (X[i], torch.eye(4)[Y[i]])),
        Made(lambda i: (X[i], NAMES[Y[i]])),
        Made(lambda i: (X[i], f"{number(i)}")),
    ],
)
def test_pairs_of_one_shape_are_held_in_tensors(train):
    data = taken(train)
    assert type(data.train) is TensorSamples
    assert torch.equal(data.train.inputs, X)
    assert torch.equal(data.train.targets, Y)
    assert data.task.num_classes == 4


def test_parts_of_data_sets_have_their_own_samples():
    part = random_split(TensorDataset(X, Y), [30, 10], generator=torch.Generator().manual_seed(0))[0]
    data = taken(part)
    assert torch.equal(data.train.inputs, X[part.indices])
    assert torch.equal(data.train.targets, Y[part.indices])


@pytest.mark.parametrize(
    ("sample", "key", "entry"),
    [
        (lambda i: {"x": X[i], "label": number(i)}, "x", "label"),
        (lambda i: {"x": X[i].tolist(), "text": "t", "y": number(i)}, "x", "y"),
        (lambda i: collections.UserDict(x=X[i], label=number(i)), "x", "label"),
        (lambda i: Pair(X[i], number(i)), 0, 1),
    ],
)
def test_samples_keep_their_form(sample, key, entry):
    data = taken(Made(sample))
    found = batch(data)
    assert torch.equal(found[key], X[:3])
    assert torch.equal(found[entry], Y[:3])
    assert isinstance(found, dict) or found.x is found[0]
    assert torch.equal(data.client(0).batch(torch.arange(2))[key], X[data.clients[0][:2]])


@pytest.mark.parametrize(("key", "place"), [(1, 1), (2, 2)])
def test_the_class_of_longer_tuples_is_where_it_is_said_to_be(key, place):
    data = taken(Made(lambda i: (X[i], number(i), (number(i) + 1) % 4)), target_key=key)
    assert data.train.targets.tolist() == ((Y + place - 1) % 4).tolist()
    assert len(batch(data)) == 3


def test_a_class_may_be_named():
    data = taken(Made(lambda i: {"x": X[i], "label": 0, "fine": number(i)}), target_key="fine")
    assert torch.equal(batch(data)["fine"], Y[:3])
    assert data.task.num_classes == 4


@pytest.mark.parametrize("images", [None, True, False])
def test_pictures_become_tensors_of_zero_to_one(images):
    data = taken(Made(lambda i: (Image.fromarray(PIXELS[i]), number(i))), images=images)
    expected = torch.from_numpy(PIXELS[:3]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(batch(data)[0], expected)
    assert isinstance(data.train, MapSamples if images is False else TensorSamples)


def test_what_is_joined_by_a_function_of_the_users_is_so_everywhere():
    def padded(samples: list[Any]) -> Any:
        inputs = torch.nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True)
        return inputs, torch.tensor([y for _, y in samples])

    data = taken(Made(lambda i: (torch.full((1 + i % 3,), float(i)), number(i))), collate_fn=padded)
    assert batch(data)[0].tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 2]]
    (clean,) = data.val_dataloader()
    assert next(iter(clean))[0][0].shape == (N, 3)
    assert data.client(0).batch(torch.arange(2))[1].tolist() == Y[data.clients[0][:2]].tolist()


def test_functions_of_the_users_get_samples_as_the_data_set_gives_them():
    seen: list[Any] = []

    def keep(samples: list[Any]) -> Any:
        seen.extend(samples)
        return torch.zeros(len(samples)), torch.tensor([int(y) for _, y in samples])

    picture = Image.fromarray(PIXELS[0])
    batch(taken(Made(lambda i: ([1, 2], number(i))), collate_fn=keep))
    batch(taken(Made(lambda i: (picture, Y[i])), collate_fn=keep))
    assert seen[0] == ([1, 2], 0)
    assert type(seen[0][1]) is int
    assert seen[-1][0] is picture
    assert isinstance(seen[-1][1], torch.Tensor)


# ---- Hugging Face -------------------------------------------------------------------------------------------------------


def table(**columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist(), **columns})


@pytest.mark.parametrize(
    "train",
    [table(), table().with_format("torch"), table().with_format("numpy"), table(label=[NAMES[y] for y in Y])],
    ids=["plain", "torch", "numpy", "texts"],
)
def test_tables_need_no_format(train):
    data = taken(train)
    assert torch.equal(torch.as_tensor(batch(data)["x"]), X[:3])
    assert torch.equal(batch(data)["label"], Y[:3])


def test_rows_are_read_once():
    data = taken(table())
    assert isinstance(data.train.dataset, given.Rows)
    assert isinstance(taken(pictures()).train.dataset, list)


def test_parts_and_orders_of_tables_are_kept():
    train: Any = table().shuffle(seed=0)
    train = train.select(range(30))
    data = taken(train)
    assert data.train.targets.tolist() == train["label"][:]
    assert torch.equal(batch(data, 30)["x"], torch.tensor(train["x"][:]))


def test_classes_of_a_table_have_its_names():
    train = datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()}, features=classes([*NAMES, "eel"]))
    data = taken(train)
    assert (data.class_names, data.task.num_classes) == ((*NAMES, "eel"), 5)
    other = datasets.Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()}, features=classes(NAMES[::-1]))
    with pytest.raises(ConfigurationError, match=r"classes 0, 1, .* are called"):
        taken(train, other)


def pictures() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": Y.tolist()}, features=features
    )


def test_pictures_of_a_table_become_tensors():
    data = taken(pictures())
    assert torch.equal(batch(data)["image"], torch.from_numpy(PIXELS[:3]).permute(0, 3, 1, 2).float() / 255)
    assert data.class_names == tuple(NAMES)


def test_functions_that_make_samples_of_a_table_are_called():
    def make(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"inputs": [torch.tensor(x) * 2 for x in rows["x"]], "labels": rows["label"]}

    data = taken(table().with_transform(make))
    assert torch.equal(batch(data)["inputs"], X[:3] * 2)
    assert torch.equal(batch(data)["labels"], Y[:3])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (table().with_format("pandas"), r"in the format 'pandas', .* give \.with_format\('torch'\)"),
        (table().to_iterable_dataset(), "no map-style data set; .* without streaming"),
        (datasets.DatasetDict({"train": table()}), "has the entries train; give one of them"),
        (table(extra=[None] * 39 + [1]), "column 'extra' of the training data is empty in 39 of 40 rows, first in row 0"),
        (table(label=[None, *Y.tolist()[1:]]), "class of sample 0 in the training data is None"),
        (table(x=[[1.0] * (2 + i % 3) for i in range(N)]), r"samples 0 and 1 .* shapes \(2,\) and \(3,\), .* pass collate_fn="),
        (datasets.Dataset.from_dict({"x": X.tolist(), "fine": Y.tolist()}), r"entries fine, x, none .* target_key="),
        (datasets.Dataset.from_dict({"x": [[0.0]], "label": [-1]}, features=classes(NAMES)), "-1, which stands for a class"),
    ],
)
def test_tables_that_are_none_are_refused(train, message):
    with pytest.raises(ConfigurationError, match=message):
        taken(train)


# ---- what is believed ---------------------------------------------------------------------------------------------------


class PassesOnByProperty(PassesOn):
    @property
    def targets(self) -> Any:
        return self.base.targets


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the data were so large that neither are they held nor are all of them read."""
    monkeypatch.setattr(given, "HELD_BYTES", 0)
    monkeypatch.setattr(given, "CHECKED", 8)


@pytest.mark.parametrize("kind", [PassesOn, PassesOnByProperty])
@pytest.mark.parametrize("rows", [list(range(N))[::-1], list(range(15)), list(range(39, 19, -1))])
@pytest.mark.usefixtures("few_checks")
def test_classes_are_those_of_the_samples(kind, rows):
    data = taken(kind(pairs(targets=Y.tolist()), rows))
    assert data.train.targets.tolist() == Y[rows].tolist()


@pytest.mark.parametrize("targets", [Y.tolist(), Y, Y.numpy(), tuple(Y.tolist())])
@pytest.mark.usefixtures("few_checks")
def test_right_targets_save_reading(targets):
    train = pairs(targets=targets, classes=NAMES)
    data = taken(train, TensorDataset(X, Y))
    assert (data.train.targets.tolist(), data.class_names) == (Y.tolist(), tuple(NAMES))
    assert train.reads < 2 * given.TWICE + 8 + 10  # read twice, checked, and looked at


@pytest.mark.parametrize("targets", [[1] * 60, Y.flip(0), [0] * N])
def test_wrong_targets_do_not_count(targets):
    assert torch.equal(taken(pairs(targets=targets)).train.targets, Y)


def test_targets_before_a_transform_do_not_count():
    assert torch.equal(taken(pairs(targets=["a"] * N, target_transform=lambda y: y)).train.targets, Y)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((Y + 0.5).tolist(), r"sample 0 in the attribute `targets` of the training data is 0\.5"),
        (["a", "b"] * 20, "classes as texts in `targets`, but as numbers in their samples"),
        (torch.eye(4)[Y], "classes as one-hot rows in `targets`, but as numbers"),
    ],
)
def test_targets_of_another_kind_are_refused(targets, message):
    with pytest.raises(ConfigurationError, match=message):
        taken(pairs(targets=targets))


# ---- what changes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(()),
        lambda: torch.tensor(random.random()),
        lambda: torch.tensor(np.random.rand()),  # noqa: NPY002  as transforms of others draw
        partial(lambda own: torch.tensor(own.random()), np.random.default_rng(0)),
    ],
)
def test_random_transforms_are_drawn_anew_for_every_batch(draw):
    data = taken(Made(lambda i: (X[i].double() + draw(), number(i))))
    assert isinstance(data.train, MapSamples)
    assert not torch.equal(batch(data)[0], batch(data)[0])


def test_reading_leaves_the_users_generators_alone_and_draws_the_same_anywhere():
    def classes_after(seed: int) -> Any:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        data = taken(Made(lambda i: (torch.rand(2), number(i))))
        assert torch.equal(before, torch.get_rng_state())
        return data.train.targets

    assert torch.equal(classes_after(0), classes_after(1))


def test_classes_must_stay():
    with pytest.raises(ConfigurationError, match=r"class of sample .* is another when it is read again"):
        taken(Made(lambda i: (X[i], int(torch.randint(4, ())))))


def test_large_data_are_not_held(monkeypatch):
    monkeypatch.setattr(given, "HELD_BYTES", X.nbytes - 1)
    assert isinstance(taken(pairs()).train, MapSamples)
    held = Made(lambda i: (torch.zeros(3, 8, 8), number(i)))
    assert isinstance(taken(held).train, MapSamples)
    assert isinstance(taken(held, images=True).train, TensorSamples)
